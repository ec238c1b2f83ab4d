"""How the pictures look: as the plots of the benchmarks do, with text that stays text."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.plots import EDGE, SOFT, STYLE

#: Text as text, in the reader's own font: it can be searched, read aloud and copied.
LOOK: dict[Any, Any] = {
    **STYLE,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
}


def entitle(figure: Figure, title: str, under: str) -> None:
    """Write a title and a line under it."""
    height = figure.get_figheight()
    figure.text(EDGE, 1 - 0.2 / height, title, fontsize=12.5, fontweight="bold", va="center")
    figure.text(EDGE, 1 - 0.46 / height, under, color=SOFT, va="center")


def written(figure: Figure, title: str) -> bytes:
    """Return the picture as SVG: the same bytes for the same figures, on white, which is readable in dark pages too."""
    with mpl.rc_context(LOOK):
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    return file.getvalue()
