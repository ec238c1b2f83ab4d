"""The picture of the dashboard in the documentation: `python -m benchmarks.dashboard record`, then `draw`.

A real Prometheus scrapes two workers under load. Grafana is not needed: the queries of the panels are sent as Grafana
sends them, and the panels are drawn at their places in its grid.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import click
import matplotlib as mpl
import msgspec
from attrs import frozen
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from benchmarks.databases import Databases, Kind
from benchmarks.plots import GRID, INK, PALETTE, SOFT, STYLE
from benchmarks.processes import ROOT
from benchmarks.proxy import Proxy, call, clean_environment
from benchmarks.rig import CHAT, Bench, Rig, generate_load
from tests.containers import dashboard
from tests.harness.prometheus import Prometheus, running_prometheus

#: Seconds between scrapes, and between the points that are drawn.
INTERVAL, STEP = 1.0, 2.0
#: Seconds of requests, of silence, and of requests with streams.
BUSY, QUIET, MIXED = 25, 8, 35
#: Inches: the width of the sheet, and the height of a unit of Grafana's grid, which is 24 units wide.
_WIDTH, _UNIT = 11.0, 0.22
_TOP = 0.5
#: Text as text, in the reader's own font, so that it can be searched and copied.
_STYLE: dict[Any, Any] = {
    **STYLE,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
}
RECORD = Path(__file__).with_suffix(".json")
PICTURE = ROOT / "docs" / "images" / "architecture" / "dashboard.svg"


@frozen
class Line:
    """A series: its name in the legend, and values by seconds since the begin."""

    name: str
    points: Sequence[tuple[float, float]]


@frozen
class Panel:
    """A panel: its place is x, y, width and height in the units of the grid; `limit` is a line that is drawn across."""

    title: str
    kind: str
    unit: str
    place: tuple[int, int, int, int]
    limit: float | None = None
    lines: Sequence[Line] = ()


def record(bench: Bench) -> list[Panel]:
    """Put load on two workers while Prometheus scrapes them, and query every panel. Raises LoadFailed."""
    with Rig(bench, "dashboard") as rig:
        upstream = rig.start_upstream("--answers", "scripted", "--latency", "lognormal:40ms,0.7")
        served = rig.serve(Kind.POSTGRES, upstream, workers=2)
        (proxy,) = served.proxies
        folder = rig.directory / "prometheus"
        folder.mkdir()
        with running_prometheus(folder, proxy.url.partition("//")[2], interval=f"{INTERVAL:g}s") as prometheus:
            begin = time.time()
            _traffic(proxy, served.token)
            panels = list(_panels(prometheus, begin))
        if problems := served.verify_ledger():
            raise RuntimeError("; ".join(problems))
    return panels


def _traffic(proxy: Proxy, token: str) -> None:
    """Send requests; pause; then send requests together with streams, rejected tokens and provider errors."""
    address = ("--url", proxy.url + CHAT, "--token", token)
    generate_load([*address, "--rate", "60", "--connections", "40", "--seconds", str(BUSY)])
    time.sleep(QUIET)
    with ThreadPoolExecutor(3) as pool:
        plain = pool.submit(generate_load, [*address, "--rate", "40", "--connections", "40", "--seconds", str(MIXED)])
        slow = ("--header", "x-scripted-gap: 0.1", "--header", "x-scripted-chunks: 30", "--stream")
        streams = pool.submit(
            generate_load, [*address, *slow, "--rate", "4", "--connections", "40", "--seconds", str(MIXED)]
        )
        _fail(proxy, token, time.monotonic() + MIXED)
        plain.result()
        streams.result()


def _fail(proxy: Proxy, token: str, until: float) -> None:
    """Send requests that are rejected, and requests at which the provider fails."""
    body = {"model": "gpt-scripted", "messages": [{"role": "user", "content": "Hello"}]}
    used_up = proxy.create_token(proxy.create_project("unused", "used up"), max_requests=1)["token"]
    kinds: Sequence[tuple[str, Mapping[str, str]]] = (
        ("sk-nobody", {}),
        (used_up, {}),
        (token, {"x-scripted-status": "500"}),
        (token, {"x-scripted-abort": "0"}),
    )
    for secret, headers in itertools.cycle(kinds):
        if time.monotonic() > until:
            return
        call("POST", proxy.url + CHAT, body, {"Authorization": f"Bearer {secret}", **headers})
        time.sleep(0.2)


def _panels(prometheus: Prometheus, begin: float) -> Iterator[Panel]:
    everything: list[dict[str, Any]] = json.loads(dashboard.FILE.read_text())["panels"]
    for panel in everything:
        grid = panel["gridPos"]
        place = (grid["x"], grid["y"], grid["w"], grid["h"])
        if panel["type"] == "row":
            yield Panel(panel["title"], "row", "", place)
            continue
        defaults = panel["fieldConfig"]["defaults"]
        drawn = defaults.get("custom", {}).get("thresholdsStyle", {}).get("mode") == "line"
        limits = [step["value"] for step in defaults["thresholds"]["steps"] if step.get("value")] if drawn else []
        lines = [
            Line(_named(query.legend, labels), [(round(at - begin, 1), float(f"{value:.4g}")) for at, value in points])
            for query in dashboard.queries(panel)
            for labels, points in prometheus.series(query.asked(INTERVAL), begin, STEP)
        ]
        yield Panel(
            panel["title"], panel["type"], defaults.get("unit", "short"), place, next(iter(limits), None), lines
        )


def _named(legend: str, labels: Mapping[str, str]) -> str:
    """Fill in the labels, as Grafana does; the port of an instance differs in each run."""
    name = re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend)
    return re.sub(r"127\.0\.0\.1:\d+", "10.0.0.5:8080", name)


def draw(panels: Sequence[Panel]) -> bytes:
    """Return the sheet."""
    title = "The dashboard, with two workers and traffic of all kinds"
    height = _TOP + _UNIT * max(y + h for _, y, _, h in (panel.place for panel in panels))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), facecolor="white")
        FigureCanvasAgg(figure)
        figure.text(0.012, 1 - 0.22 / height, title, fontsize=13, fontweight="bold", va="center", color=INK)
        for panel in panels:
            x, y, w, h = panel.place
            left, width = x / 24, w / 24
            top = 1 - (_TOP + y * _UNIT) / height
            tall = h * _UNIT / height
            if panel.kind == "row":
                figure.text(0.012, top - tall * 0.6, panel.title, fontweight="bold", fontsize=10, color=SOFT)
            elif panel.kind == "stat":
                _draw_number(figure, panel, left + 0.012, top, tall)
            else:
                _draw_lines(figure, panel, (left, top, width, tall))
        file = io.BytesIO()
        # Neither date nor version, so that the same record makes the same file.
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    return file.getvalue()


def drawn() -> bytes:
    """Return the picture of the last record."""
    return draw(msgspec.json.decode(RECORD.read_bytes(), type=list[Panel]))


@click.group(help=__doc__)
def main() -> None:
    """Record and draw."""


@main.command("record")
def write_record() -> None:
    """Run two workers under load on PostgreSQL, with Prometheus, and write the series as JSON."""
    clean_environment()
    databases = Databases(durable=True)
    try:
        with tempfile.TemporaryDirectory(prefix="llm-proxy-dashboard-") as folder:
            panels = record(Bench(Path(folder), databases, [Kind.POSTGRES], 1, 1.0, click.echo))
    finally:
        databases.close()
    RECORD.write_bytes(msgspec.json.encode(list(map(attrs.asdict, panels))) + b"\n")


@main.command("draw")
def write_picture() -> None:
    """Draw the picture of the last record."""
    PICTURE.write_bytes(drawn())


def _draw_number(figure: Figure, panel: Panel, left: float, top: float, tall: float) -> None:
    last = panel.lines[0].points[-1][1] if panel.lines else float("nan")
    figure.text(left, top - tall * 0.22, panel.title, color=SOFT)
    figure.text(left, top - tall * 0.75, _written_value(last, panel.unit), fontsize=17, fontweight="bold", color=INK)


def _draw_lines(figure: Figure, panel: Panel, box: tuple[float, float, float, float]) -> None:
    left, top, width, tall = box
    axes = figure.add_axes((left + 0.045, top - tall * 0.78, width - 0.06, tall * 0.56))
    axes.set_title(panel.title, loc="left", fontsize=9.5, fontweight="bold", color=INK, pad=4)
    for line, color in zip(panel.lines, itertools.cycle(PALETTE), strict=False):
        at, values = zip(*line.points, strict=True)
        axes.plot(at, values, color=color, linewidth=1.3, label=line.name)
    if panel.limit is not None:
        axes.axhline(panel.limit, color="#b00020", linewidth=0.9, linestyle="--")
    axes.set_xlim(0, BUSY + QUIET + MIXED)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, labelsize=7.5)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _written_value(value, panel.unit)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
    legend: dict[str, Any] = {
        "loc": "upper left",
        "bbox_to_anchor": (-0.12, -0.12),
        "ncols": 3,
        "fontsize": 7.5,
        "frameon": False,
    }
    axes.legend(**legend, handlelength=1.0, columnspacing=1.0, handletextpad=0.4, labelspacing=0.2)


def _written_value(value: float, unit: str) -> str:
    """Write a value as Grafana does in its unit."""
    match unit:
        case "s":
            return f"{value * 1000:.3g} ms" if 0 < value < 1 else f"{value:.3g} s"
        case "bytes":
            return f"{value / 2**20:.3g} MiB"
        case "percentunit":
            return f"{value * 100:.3g} %"
        case "reqps":
            return f"{value:.3g} req/s"
        case "ops":
            return f"{value:.3g} ops/s"
        case _:
            return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.dashboard")
