"""How requests share transactions: one server, with 1, 8 and 64 clients that each send one request after another."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import msgspec
from attrs import frozen
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.bench import Bench
from benchmarks.databases import NAMES, Kind
from benchmarks.pictures.look import LOOK, entitle, written
from benchmarks.plots import GRID, INK, PALETTE, SOFT, WIDTH
from benchmarks.rig import Rig, generate_load

CLIENTS = (1, 8, 64)
#: Seconds of load, of which the last part is looked at, and seconds of time that are drawn.
LOAD, SHOWN = 4.0, 0.06
_BLUE, _ORANGE = PALETTE[0], PALETTE[1]
#: Transactions that are wide enough for their number.
_ROOM = 0.0025


@frozen
class Transaction:
    """One shared transaction; times in seconds."""

    begin: float
    end: float
    settled: int
    waited_since: Sequence[float]


@frozen
class Window:
    """What happened with so many clients: the transactions that are drawn, and what all of them together say.

    Attributes:
        clients: how many sent requests at the same time.
        rate: requests per second.
        transactions_per_request: of the whole load.
        batch: the median number of admissions of a transaction that had any.
        transactions: those of `SHOWN` seconds; time begins with the first.
    """

    clients: int
    rate: float
    transactions_per_request: float
    batch: float
    transactions: Sequence[Transaction]


def record(bench: Bench) -> list[Window]:
    """Put the load on a server that writes down its transactions. Raises LoadFailed."""
    windows = []
    with Rig(bench, "batches") as rig:
        upstream = rig.start_upstream("--latency", "lognormal:3ms,0.5")
        for clients in CLIENTS:
            journal = rig.directory / f"transactions-{clients}.jsonl"
            under = (sys.executable, "-m", "benchmarks.pictures.journal", str(journal))
            served = rig.serve(Kind.POSTGRES, upstream, name=f"{NAMES[Kind.POSTGRES]}-{clients}", under=under)
            ((*target,),) = served.loads("--connections", str(clients), "--seconds", str(LOAD))
            report = generate_load(target)
            if problems := served.check_books():
                raise RuntimeError("; ".join(problems))
            windows.append(_window(clients, float(report["rate"]), journal))
    return windows


def _window(clients: int, rate: float, journal: Path) -> Window:
    lines = journal.read_bytes().splitlines()
    known = [msgspec.convert(msgspec.json.decode(line), dict[str, object]) for line in lines]
    everything = [msgspec.convert(line, Transaction) for line in known]
    batches = [len(one.waited_since) for one in everything if one.waited_since]
    start = everything[int(len(everything) * 0.7)].begin
    shown = [one for one in everything if start <= one.begin < start + SHOWN]
    moved = [
        Transaction(
            round(one.begin - start, 6),
            round(one.end - start, 6),
            one.settled,
            [round(since - start, 6) for since in one.waited_since],
        )
        for one in shown
    ]
    return Window(clients, rate, len(everything) / sum(batches), statistics.median(batches), moved)


def draw(windows: Sequence[Window]) -> bytes:
    """Return the picture."""
    title = "The busier the server, the more requests share a transaction"
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(WIDTH, 6.4), facecolor="white")
        FigureCanvasAgg(figure)
        entitle(figure, title, "one bar for each transaction, as wide as it took and as tall as what it wrote")
        figure.subplots_adjust(left=0.012, right=0.988, top=0.815, bottom=0.085, hspace=0.42)
        look = {"frameon": False, "handlelength": 1.0, "columnspacing": 1.4, "borderaxespad": 0}
        names: list[Artist] = [
            Patch(color=_BLUE, label="requests admitted"),
            Patch(color=_ORANGE, label="requests settled"),
            Line2D([], [], color=INK, linewidth=0.8, label="a request waits to be admitted"),
        ]
        place = (0.012, 1 - 0.75 / 6.4)
        figure.legend(handles=names, loc="center left", bbox_to_anchor=place, ncols=3, **look)
        panels = figure.subplots(len(windows), sharex=True)
        for axes, window in zip(panels, windows, strict=True):
            _draw_window(axes, window)
        panels[-1].set_xlabel("milliseconds")
    return written(figure, title)


def _draw_window(axes: Axes, window: Window) -> None:
    tallest = max(len(one.waited_since) + one.settled for one in window.transactions)
    axes.set_xlim(-0.3, SHOWN * 1e3)
    axes.set_ylim(0, tallest * 1.22)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_yticks([])
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    share = 1 / window.transactions_per_request
    each = f"{share:.2g} request{'s' if share > 1.05 else ''} a transaction"
    clients = f"{window.clients} client{'s' if window.clients > 1 else ''}"
    axes.set_title(clients, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_title(f"{float(f'{window.rate:.2g}'):,.0f} requests/s, {each}", loc="right", fontsize=10, color=SOFT)
    for one in window.transactions:
        begin, width, admitted = one.begin * 1e3, (one.end - one.begin) * 1e3, len(one.waited_since)
        for place, since in enumerate(sorted(one.waited_since)):
            axes.plot((since * 1e3, begin), (place + 0.5,) * 2, color=INK, linewidth=0.6, alpha=0.6, zorder=3)
        axes.bar(begin, admitted, width, align="edge", color=_BLUE, zorder=2)
        axes.bar(begin, one.settled, width, bottom=admitted, align="edge", color=_ORANGE, zorder=2)
        for number, bottom in ((admitted, 0), (one.settled, admitted)):
            if number >= tallest * 0.12 and one.end - one.begin >= _ROOM and one.end <= SHOWN:
                middle = (begin + width / 2, bottom + number / 2)
                axes.annotate(str(number), middle, ha="center", va="center", color="white", fontsize=9, zorder=3)
