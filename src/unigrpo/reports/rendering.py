"""From a chart to an SVG element or a PNG sheet, with matplotlib but without its global state.

Colours are Okabe and Ito's, which stay apart for colour-blind readers.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2328"  # replaced by currentColor in SVG, so that a page in dark mode can turn it
BLUE, VERMILION, GREEN, ORANGE, PINK, SKY, GREY = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8a8f98",
)  # fmt: skip
CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILION, GREY)

Draw = Callable[["Axes"], None]
LEGEND_LETTERS = 56  # of a legend's row; a wider legend would leave no room for the axes


@dataclass(frozen=True)
class Chart:
    """One chart: its title says what it shows, ``caption`` what this run did, ``healthy`` what a good run does.

    Only the caption may stand beside the picture; ``healthy`` belongs into a list that says what it is.
    """

    name: str
    section: str
    title: str
    healthy: str
    caption: str
    draw: Draw
    iterations: int = 0  # right end of the iteration axis, the same in all charts of a run; 0: where the data end


def svg(chart: Chart, width: float = 4.0, height: float = 2.7) -> str:
    """Render one chart, without its title, as an ``<svg>`` element that takes its ink from the page (currentColor)."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with _style(hashlib.sha256(chart.name.encode()).hexdigest()):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)  # whose letters are measured
        _finish(figure.subplots(), chart)
        _laid_out(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[a-z0-9]+_\d+"', "<g", text)  # numbered ids would repeat from chart to chart
    text = re.sub(BLUE, f"var(--blue, {BLUE})", text, flags=re.IGNORECASE)  # too dim on a dark page
    return re.sub(INK, "currentColor", text, flags=re.IGNORECASE)


def png(selected: Sequence[Chart], columns: int = 3, dpi: int = 110) -> bytes:
    """Render charts with their titles as one sheet of small multiples on white. ValueError without charts."""
    if not selected:
        raise ValueError("no charts to draw: the run has no metrics yet. Let it finish an iteration.")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(columns, len(selected))
    rows = -(-len(selected) // columns)
    with _style("sheet"):
        figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout=ConstrainedLayoutEngine(h_pad=0.12))
        all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, chart in zip(all_axes, selected, strict=False):
            _finish(axes, chart)
            axes.set_title(chart.title, loc="left", fontweight="bold", pad=20)
            axes.text(0, 1.02, chart.caption, transform=axes.transAxes, fontsize=8, va="bottom")
        for axes in all_axes[len(selected) :]:
            axes.set_visible(False)
        return _png_bytes(figure, dpi)


def _laid_out(figure: Figure) -> None:
    """Lay a figure out once and for all: savefig would draw it twice, the first time for its layout alone."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")


def _png_bytes(figure: Figure, dpi: int) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _finish(axes: Axes, chart: Chart) -> None:
    """Draw a chart and what all charts share: iteration axis, light grid, a legend (below, off the data)."""
    from matplotlib.ticker import MaxNLocator

    chart.draw(axes)
    axes.set_xlabel("iteration")
    if chart.iterations > 1:
        axes.set_xlim(-0.02 * chart.iterations, chart.iterations * 1.02)  # a mark at 0 is whole
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_formatter(_tick_formatter())
    axes.grid(axis="y", alpha=0.18, color=INK, linewidth=0.7)
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        columns = max(1, LEGEND_LETTERS // (max(map(len, labels)) + 5))  # 5: the line's sample and the gap
        columns = min(len(handles), 3, columns)
        axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=columns)


def _tick_formatter() -> Any:
    """Labels of an axis that are told apart (:func:`tick_label`)."""
    from matplotlib.ticker import Formatter

    class Apart(Formatter):
        def format_ticks(self, values: Sequence[float]) -> list[str]:
            return [tick_label(value, values) for value in values]

        def __call__(self, value: float, pos: int | None = None) -> str:
            return tick_label(value, [value])

    return Apart()


def tick_label(value: float, ticks: Sequence[float]) -> str:
    """A tick in three digits, or in as many as tell all ticks of its axis apart."""
    for digits in range(3, 7):
        if len({f"{tick:.{digits}g}" for tick in ticks}) == len(ticks):
            return f"{value:.{digits}g}"
    return f"{value:.3g}"


def _style(salt: str) -> Any:
    """Settings for one rendering, local to it: no global matplotlib state is touched."""
    import matplotlib

    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": salt,
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 9.0,
            "axes.titlesize": 10.0,
            "legend.fontsize": 8.0,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.linewidth": 0.7,
            "legend.frameon": False,
            "legend.handlelength": 1.4,
            "figure.facecolor": "white",
        }
    )
