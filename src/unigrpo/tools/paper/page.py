"""What the paper's figures share: their width and letters, a title, and the line that says what was measured."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from unigrpo.plurals import counted
from unigrpo.reports.rendering import INK, VERMILION
from unigrpo.tools.paper.rows import QUICK_SCALE, Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

WIDTH, DPI, HEAD = 9.0, 200, 0.55  # inches, dots per inch, inches of the title and its line
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9.5, "axes.titlesize": 10.0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "axes.linewidth": 0.7, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "legend.frameon": False,
    "legend.fontsize": 9.0, "figure.facecolor": "white",
}  # fmt: skip


def page(results: Json, title: str, key: str, height: float, draw: Callable[[SubFigure], None]) -> bytes:
    """Draw a figure under its title and the line that says what was measured and how to read it (``key``); a PNG.

    height: inches of the whole. Scale quick is said beside the title, in another colour.
    """
    import matplotlib
    from matplotlib.figure import Figure

    count, quick = len(results["seeds"]), results["scale"] == "quick"
    seeds = counted(count, "seed")
    said = f"embedded world of shapes, scale {results['scale']}, reward {results['reward']}, {seeds}; {key}"
    with matplotlib.rc_context(STYLE):  # local to this figure: no global state is touched
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        top, body = parts(figure, HEAD, height - HEAD)
        top.text(0.012, 0.66, title, fontsize=13, fontweight="bold", va="center")
        top.text(0.012, 0.2, said, fontsize=9, va="center")
        if quick:
            warning = {"fontsize": 9, "fontweight": "bold", "color": VERMILION}
            top.text(0.99, 0.66, f"QUICK: {QUICK_SCALE}", ha="right", va="center", **warning)
        draw(body)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()


def parts(figure: Figure | SubFigure, *heights: float) -> list[SubFigure]:
    """Parts of a figure, one below the other."""
    made: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    return list(made)
