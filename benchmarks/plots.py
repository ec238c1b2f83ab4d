"""Plots as SVG: the same bytes for the same values, in colours that colour-blind people can distinguish."""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.findings import Plot, Series

#: Inches of 96 pixels: the picture is 700 pixels wide.
WIDTH, _HEIGHT = 7.3, 4.2
INK, SOFT, GRID = "#1f2328", "#59636e", "#e4e7eb"
#: The palette of Okabe and Ito, which colour-blind people can tell apart; its yellow is too light for lines.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_REFERENCE = "#8c959f"
#: The same thing has the same colour in all plots.
_KNOWN = {"SQLite": "#0072B2", "PostgreSQL": "#D55E00", "MySQL": "#009E73", "MariaDB": "#CC79A7"} | {
    "p50": "#9ecae1",
    "p95": "#3182bd",
    "p99": "#08306b",
}
#: Prefixes of the names of references.
_REFERENCES = ("bare", "direct", "nginx")
#: Up to this many values on the x axis are all labelled.
_FEW_PLACES = 8
#: Up to this many groups of bars get extra room around them.
_FEW_GROUPS = 3
_BY_POINTS: Any = {"textcoords": "offset points"}
_LEVEL = "#82071e"
_LINE_OF_LEVEL: Any = {"color": _LEVEL, "linewidth": 1, "linestyle": (0, (4, 3)), "zorder": 3}
_WORDS_OF_LEVEL: Any = {**_BY_POINTS, "color": _LEVEL, "fontsize": 8.5}
#: Behind a value that a line may cross.
_PATCH: Any = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
#: Inches above the axes for title and unit, and their margin as a share of the width.
_HEADER, EDGE = 0.62, 0.012

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "llm-proxy",
    # Letters as outlines: the picture looks the same wherever it is shown.
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": SOFT,
}


def draw(plot: Plot) -> bytes:
    """Return the picture, as SVG."""
    with mpl.rc_context(STYLE):
        flat = plot.kind == "bars" and len(plot.series) == 1
        height = max(1.8, _HEADER + 0.4 + 0.36 * len(plot.series[0].points)) if flat else _HEIGHT
        figure = Figure(figsize=(WIDTH, height), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        if flat:
            _draw_flat_bars(axes, plot)
        elif plot.kind == "bars":
            _draw_grouped_bars(axes, plot)
        else:
            _draw_lines(axes, plot)
        file = io.BytesIO()
        _entitle(figure, plot)
        # Neither date nor version, so that the same values make the same file.
        about = {"Date": None, "Creator": None, "Title": plot.title}
        figure.savefig(file, format="svg", dpi=130, metadata=about)
        return file.getvalue()


def _entitle(figure: Figure, plot: Plot) -> None:
    """Write the title, and the unit below it, which is easier to read than vertical text."""
    height = figure.get_figheight()
    figure.text(EDGE, 1 - 0.2 / height, plot.title, fontsize=12.5, fontweight="bold", va="center")
    figure.text(EDGE, 1 - 0.46 / height, plot.y, color=SOFT, va="center")
    if len(plot.series) > 1:
        figure.legend(loc="outside lower left", ncols=2, frameon=False, handlelength=1, borderaxespad=0)
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0.004, 0, 0.992, 1 - _HEADER / height), w_pad=0.06, h_pad=0.06)


def _colours(series: Sequence[Series]) -> list[str]:
    taken = {colour for name, colour in _KNOWN.items() if name in {one.name for one in series}}
    free = itertools.cycle([colour for colour in PALETTE if colour not in taken] or PALETTE)
    return [_colour(one.name, free) for one in series]


def _colour(name: str, free: Iterator[str]) -> str:
    if name in _KNOWN:
        return _KNOWN[name]
    return _REFERENCE if name.lower().startswith(_REFERENCES) else next(free)


def _write(plot: Plot, values: Sequence[float]) -> list[str]:
    """Return values as text, with as many decimals as give the plot's largest one three digits."""
    largest = max((abs(y) for series in plot.series for _, y in series.points if math.isfinite(y)), default=0)
    digits = 2 if largest < 10 else 1 if largest < 100 else 0
    return [f"{value:,.{digits}f}" for value in (float(f"{value:.3g}") for value in values)]


def _shorten(values: Sequence[float]) -> list[str]:
    """Return the labels of an axis: thousands in full unless a value is much larger."""
    large = max(map(abs, values), default=0) >= 1e4
    return [f"{value / 1e3:g}k" if large and 1e3 <= abs(value) < 1e6 else _short(value) for value in values]


def _short(value: float, _position: int = 0) -> str:
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:,g}"


def _draw_flat_bars(axes: Axes, plot: Plot) -> None:
    (series,) = plot.series
    names = [str(name) for name, _ in series.points]
    values = [value if math.isfinite(value) else 0.0 for _, value in series.points]
    colours = [_REFERENCE if name.lower().startswith(_REFERENCES) else PALETTE[0] for name in names]
    places = range(len(names))
    axes.barh(places, values, color=colours, height=0.62)
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines["bottom"].set_visible(False)
    if plot.log_y:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(NullLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    for place, value, text in zip(places, values, _write(plot, values), strict=True):
        axes.annotate(text, (value, place), (5, 0), **_BY_POINTS, va="center", fontweight="bold", bbox=_PATCH, zorder=4)
    axes.margins(x=0.1)
    for (level, words), side in zip(plot.levels, _sides(len(plot.levels)), strict=True):
        axes.axvline(level, **_LINE_OF_LEVEL)
        axes.annotate(
            words, (level, 0.0), (0, -4), xycoords=("data", "axes fraction"), **_WORDS_OF_LEVEL, ha=side, va="top"
        )


def _sides(number: int) -> list[str]:
    """Return the alignment of each level's label, ascending, so that labels do not overlap."""
    return ["center"] if number == 1 else ["right"] * (number - 1) + ["left"] * (number > 1)


def _draw_grouped_bars(axes: Axes, plot: Plot) -> None:
    names = list(dict.fromkeys(str(name) for series in plot.series for name, _ in series.points))
    width = 0.8 / len(plot.series)
    for number, (series, colour) in enumerate(zip(plot.series, _colours(plot.series), strict=True)):
        found = {str(name): value for name, value in series.points if math.isfinite(value)}
        # A group is centred also if some series have no value in it.
        bars = [(name, [one.name for one in plot.series if _has(one, name)]) for name in names if name in found]
        places = [
            names.index(name) + (present.index(series.name) - (len(present) - 1) / 2) * width for name, present in bars
        ]
        values = [found[name] for name, _ in bars]
        axes.bar(places, values, width * 0.92, color=colour, label=series.name, zorder=2 + number * 0.01)
        for place, value, text in zip(places, values, _write(plot, values), strict=True):
            axes.annotate(text, (place, value), (0, 3), **_BY_POINTS, ha="center", fontsize=8.5)
    axes.set_xticks(range(len(names)), names)
    # A single group must not fill the whole width.
    room = max(0.5, (_FEW_GROUPS - len(names) + 1) / 2)
    axes.set_xlim(-room, len(names) - 1 + room)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(plot.x)
    _scale_y(axes, plot)
    _show_levels(axes, plot)


def _has(series: Series, name: str) -> bool:
    return any(str(place) == name for place, _ in series.points)


def _draw_lines(axes: Axes, plot: Plot) -> None:
    categories = list(dict.fromkeys(x for series in plot.series for x, _ in series.points if isinstance(x, str)))
    for series, colour in zip(plot.series, _colours(plot.series), strict=True):
        points = [(categories.index(x) if isinstance(x, str) else x, y) for x, y in series.points]
        points = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not plot.log_y)]
        if not points:
            continue
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=2, marker="o", markersize=4.5, label=series.name)
    if plot.log_x and not categories:
        axes.set_xscale("log")
    places = sorted({x for series in plot.series for x, _ in series.points if not isinstance(x, str)})
    if categories:
        axes.set_xticks(range(len(categories)), categories)
    elif len(places) <= _FEW_PLACES:
        axes.set_xticks(places, _shorten(places))
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(plot.x)
    _scale_y(axes, plot)
    _show_levels(axes, plot)


def _scale_y(axes: Axes, plot: Plot) -> None:
    if plot.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        values = [y for series in plot.series for _, y in series.points if math.isfinite(y)]
        axes.set_ylim(min([0.0, *values]), 1.08 * max([0.0, *values]) or 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _show_levels(axes: Axes, plot: Plot) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(low, max([high, *(level * 1.06 for level, _ in plot.levels)]))
    for level, words in plot.levels:
        axes.axhline(level, **_LINE_OF_LEVEL)
        text = textwrap.fill(words, 16)
        axes.annotate(text, (1.0, level), (4, 0), ("axes fraction", "data"), **_WORDS_OF_LEVEL, va="center")
