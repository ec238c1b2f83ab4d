"""Three servers behind nginx, restarted one after another under streams: what each of them was doing, and when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import matplotlib as mpl
from attrs import Factory, define, frozen
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.bench import Bench
from benchmarks.databases import Kind
from benchmarks.pictures.look import LOOK, entitle, written
from benchmarks.plots import INK, PALETTE, SOFT, WIDTH
from benchmarks.proxy import Proxy
from benchmarks.rig import CHAT, Rig, generate_load
from llm_proxy.metrics.families import UPSTREAM_REQUESTS
from tests.harness.nginx import find_nginx, running_nginx

SERVERS, CLIENTS = 3, 24
#: Seconds: the delay before a server drains, and how long a stream takes.
DELAY, CHUNKS, GAP = 1.0, 30, 0.1
_BEFORE, _BETWEEN, _LOOK = 3.0, 1.5, 0.1
#: One connection for each request: nginx ends kept ones at each reload, which clients have to expect of any server.
_ALONE = ("--header", "Connection: close")
_COLOURS = {"serves": "#d3ead9", "leaves": "#fbe3c0", "drains": "#f3c4b0", "starts": "#d9dde2"}
_WORDS = {
    "serves": "serves",
    "leaves": "out of nginx, not ready, serves on",
    "drains": "lets running requests end",
    "starts": "starts",
}


@frozen
class Look:
    """How many requests one server had with the provider at a moment; None where it did not say."""

    server: int
    at: float
    in_flight: int | None


@frozen
class Stay:
    """A time in which one server was in one state, in seconds from the beginning of the record."""

    server: int
    state: str
    begin: float
    end: float


@define
class Record:
    """What was seen.

    Attributes:
        requests, failed: streams that were asked for, and those that did not end well.
        seconds: how long it was recorded.
        looks, stays: as above.
    """

    requests: int = 0
    failed: int = 0
    seconds: float = 0.0
    looks: list[Look] = Factory(list)
    stays: list[Stay] = Factory(list)


def record(bench: Bench) -> Record:
    """Restart three servers one by one under load. Raises LoadFailed where a single stream does not end well."""
    program = find_nginx()
    if program is None:
        raise RuntimeError("no nginx: install the package nginx-light")
    found, over = Record(), Event()
    with ThreadPoolExecutor(SERVERS + 1) as pool, Rig(bench, "roll-out") as rig:
        upstream = rig.start_upstream("--chunks", str(CHUNKS), "--gap", f"{GAP}s")
        settings = {"SHUTDOWN_DELAY": f"{DELAY:g}s", "SHUTDOWN_GRACE": "60s", "TRUSTED_PROXIES": "127.0.0.1"}
        served = rig.serve(Kind.POSTGRES, upstream, instances=SERVERS, settings=settings)
        ports = [int(proxy.url.rpartition(":")[2]) for proxy in served.proxies]
        nginx = rig.stack.enter_context(running_nginx(program, rig.directory, *ports))
        load = ("--url", nginx.url + CHAT, "--token", served.token, "--stream", "--insecure", *_ALONE)
        whole = _BEFORE * 2 + SERVERS * (DELAY + CHUNKS * GAP + _BETWEEN + 2)
        generator = pool.submit(generate_load, [*load, "--connections", str(CLIENTS), "--seconds", f"{whole:g}"])
        began = time.monotonic()
        rig.stack.callback(over.set)
        for number, proxy in enumerate(served.proxies):
            pool.submit(_look_on, number, proxy, began, over, found.looks)
        since = dict.fromkeys(range(SERVERS), 0.0)
        time.sleep(_BEFORE)
        for number, (proxy, port) in enumerate(zip(served.proxies, ports, strict=True)):
            moments = [since[number], time.monotonic() - began]
            nginx.take_out(port)
            nginx.reload()
            proxy.stop(timeout=60)
            moments += [moments[1] + DELAY, time.monotonic() - began]
            proxy.restart()
            moments.append(time.monotonic() - began)
            nginx.put_in(port)
            nginx.reload()
            states = zip(_WORDS, moments[:-1], moments[1:], strict=True)
            found.stays += [Stay(number, state, round(begin, 2), round(end, 2)) for state, begin, end in states]
            since[number] = moments[-1]
            time.sleep(_BETWEEN)
        report = generator.result()
        over.set()
        found.seconds = round(since[SERVERS - 1] + _BETWEEN + 1, 2)
        found.stays += [Stay(number, "serves", round(begin, 2), found.seconds) for number, begin in since.items()]
        found.looks = [look for look in found.looks if look.at <= found.seconds]
        found.requests, found.failed = report["requests"], sum(report["errors"].values())
        if problems := served.check_books():
            raise RuntimeError("; ".join(problems))
    return found


def _look_on(number: int, proxy: Proxy, began: float, over: Event, looks: list[Look]) -> None:
    while not over.wait(_LOOK):
        at = round(time.monotonic() - began, 2)
        try:
            in_flight = int(proxy.metrics().get(UPSTREAM_REQUESTS.name, 0))
        except OSError:
            looks.append(Look(number, at, None))
        else:
            looks.append(Look(number, at, in_flight))


def draw(found: Record) -> bytes:
    """Return the picture."""
    title = f"Three servers restarted one by one: {found.requests} streams, {found.failed or 'none'} failed"
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(WIDTH, 5.6), facecolor="white")
        FigureCanvasAgg(figure)
        entitle(figure, title, "streams that each server has with the provider")
        figure.subplots_adjust(left=0.045, right=0.985, top=0.785, bottom=0.095, hspace=0.38)
        names = [Patch(color=_COLOURS[state], label=words) for state, words in _WORDS.items()]
        look = {"frameon": False, "handlelength": 1.0, "columnspacing": 1.2, "borderaxespad": 0}
        figure.legend(handles=names, loc="center left", bbox_to_anchor=(0.012, 1 - 0.82 / 5.6), ncols=4, **look)
        panels: Sequence[Axes] = figure.subplots(SERVERS, sharex=True, sharey=True)
        for number, axes in enumerate(panels):
            _draw_server(axes, number, found)
        panels[-1].set_xlabel("seconds")
    return written(figure, title)


def _draw_server(axes: Axes, number: int, found: Record) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, found.seconds)
    axes.set_ylim(0, CLIENTS * 0.75)
    axes.set_title(f"server {number + 1}", loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=4)
    axes.set_yticks([0, CLIENTS // 3, CLIENTS * 2 // 3])
    for stay in found.stays:
        if stay.server == number:
            axes.axvspan(stay.begin, stay.end, color=_COLOURS[stay.state], linewidth=0)
    looks = [look for look in found.looks if look.server == number]
    places = [look.at for look in looks]
    values = [float("nan") if look.in_flight is None else look.in_flight for look in looks]
    axes.plot(places, values, color=PALETTE[0], linewidth=1.8, drawstyle="steps-post")
    axes.tick_params(labelcolor=SOFT)
