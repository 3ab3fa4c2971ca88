"""The paper's figures from our results: Table 1 as a picture, and Figures 3 to 5.

Every ``draw_...`` returns the bytes of a PNG 9 inches wide: 900 pixels on a README page, drawn at twice that.
matplotlib is imported when a figure is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from unigrpo.reports import curves
from unigrpo.reports.captions import Series, smooth
from unigrpo.reports.rendering import BLUE, GREEN, GREY, INK, ORANGE, VERMILION
from unigrpo.tools.paper import rows as paper
from unigrpo.tools.paper.page import page, parts
from unigrpo.tools.paper.pictures import read_strips
from unigrpo.tools.paper.rows import Cells, Interval, Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

BANDS = "bands: lowest to highest seed"


class _Line(NamedTuple):
    """How a row looks in a figure of curves."""

    row: str
    label: str
    colour: str
    marker: str


FIG4 = (
    _Line("cfg-off", "trained without guidance", BLUE, "o"),
    _Line("cfg-on", "trained with guidance", VERMILION, "s"),
)
FIG5 = (
    _Line("none", "no regulariser", VERMILION, "s"),
    _Line("latent_kl", "latent KL", ORANGE, "^"),
    _Line("velocity_mse", "velocity MSE (UniGRPO)", BLUE, "o"),
)


def draw_figure(results: Json, folder: Path | str, updates_per_iteration: int | None = None) -> bytes:
    """Draw the figure of a target's results; a PNG.

    Pictures of cells are paths relative to ``folder``. ValueError for a target without figures.
    """
    folder = Path(folder)
    makers: Mapping[str, Callable[[], bytes]] = {
        "table1": lambda: draw_table1(results),
        "fig3": lambda: draw_fig3(results, updates_per_iteration),
        "fig4": lambda: draw_fig4(results),
        "fig5": lambda: draw_fig5(results, read_strips(results, folder)),
    }
    target = results["target"]
    if target not in makers:
        raise ValueError(f"no figure is made of {target!r}; figures are made of {', '.join(makers)}")
    return makers[target]()


# ------------------------------------------------------------------------------------------------ Table 1 as a picture


def draw_table1(results: Json) -> bytes:
    """Draw Table 1 as dots with 95 % intervals; the paper's figures are hollow, on the upper axis.

    The two axes of a panel have different scales: what can be compared is the order of the rows. An interval much wider
    than the rows lie apart is cut at the panel's edge.
    """
    cells = paper.cells_by_row(results, "table1")

    def draw(figure: SubFigure) -> None:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, measure in zip(panels, ("score", "exam_score"), strict=True):
            _our_dots(axes, cells, measure)
            _paper_dots(axes, measure)
        panels[0].set_yticks(range(len(paper.ROWS)), [row.label for row in paper.ROWS])
        panels[0].set_ylim(len(paper.ROWS) - 0.4, -0.6)
        panels[0].get_yticklabels()[-1].set_fontweight("bold")
        _key(figure)

    return page(results, "Table 1: every method, on unseen combinations", "bars: 95 % intervals", 5.8, draw)


def _our_dots(axes: Axes, cells: Cells, measure: str) -> None:
    """Our means with intervals; a word where a row has none, or where all of its seeds collapsed."""
    axes.set_xlabel(f"{paper.MEASURES[measure]} here (filled)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.18, color=INK, linewidth=0.7)
    for place in (1.5, 3.5, 9.5, 10.5, 12.5):  # families of rows: start, supervised, pictures, text, stages, joint
        axes.axhline(place, color=INK, linewidth=0.5, alpha=0.25)
    drawn: list[Interval] = []
    for place, row in enumerate(paper.ROWS):
        own = cells[row.key]
        found, fallen = paper.interval(own, measure), paper.collapsed(own)
        if found is None or fallen == len(paper.ran(own)):
            word = "collapse" if fallen else next((cell["status"] for cell in own), "not run")
            word += f" ({found.mean:.2f})" if found else ""
            axes.text(0.02, place, word, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5, color=INK)
            continue
        colour = VERMILION if row.key == "unigrpo" else BLUE if row.thinking else INK
        half = 0.0 if math.isnan(found.high) else found.high - found.mean
        look = {"fmt": "X" if fallen else "o", "color": colour, "markersize": 7, "elinewidth": 1.8, "zorder": 3}
        axes.errorbar(found.mean, place - 0.1, xerr=half, **look)
        drawn.append(Interval(found.mean, found.mean - half, found.mean + half))
    if drawn:
        axes.set_xlim(*_limits(drawn))
        axes.locator_params(axis="x", nbins=6)


def _limits(drawn: Sequence[Interval]) -> tuple[float, float]:
    """Room for all means, and for intervals up to as far beyond them as the means span."""
    first, last = min(item.mean for item in drawn), max(item.mean for item in drawn)
    span = max(last - first, 0.02)
    low = max(min(item.low for item in drawn), first - span)
    high = min(max(item.high for item in drawn), last + span)
    return low - 0.06 * span, high + 0.06 * span


def _paper_dots(axes: Axes, measure: str) -> None:
    name, key = {"score": ("GenEval", "geneval"), "exam_score": ("TA", "text_alignment")}[measure]
    upper = axes.twiny()
    upper.spines["top"].set_visible(True)
    upper.spines["top"].set_color(GREY)
    upper.tick_params(axis="x", colors=GREY)
    upper.set_xlabel(f"{name} in the paper (hollow)", color=GREY)
    figures: list[tuple[float, int]] = []
    for place, row in enumerate(paper.ROWS):
        value: float | None = {"geneval": row.geneval, "text_alignment": row.text_alignment}[key]
        if value is None:
            said = {"ha": "left", "va": "center", "fontsize": 8.5, "color": GREY}
            upper.text(0.02, place + 0.1, "collapse in the paper", transform=axes.get_yaxis_transform(), **said)
        else:
            figures.append((value, place))
    values, places = zip(*figures, strict=True)
    below = [place + 0.24 for place in places]  # not on our dots
    upper.plot(values, below, "D", markersize=4.2, markerfacecolor="none", color=GREY, markeredgewidth=1.1)
    span = max(values) - min(values)
    upper.set_xlim(min(values) - 0.25 * span, max(values) + 0.06 * span)  # on the left stands what was not run
    upper.locator_params(axis="x", nbins=5)


def _key(figure: SubFigure) -> None:
    from matplotlib.lines import Line2D

    looks = [
        ("no thinking", INK, "o"),
        ("with thinking", BLUE, "o"),
        ("UniGRPO", VERMILION, "o"),
        ("collapsed", INK, "X"),
    ]
    handles = [Line2D([], [], color=colour, marker=marker, linewidth=0, label=label) for label, colour, marker in looks]
    handles.append(Line2D([], [], color=GREY, marker="D", markerfacecolor="none", linewidth=0, label="the paper"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


# --------------------------------------------------------------------------------------------------- figures of curves


def draw_fig3(results: Json, updates_per_iteration: int | None = None) -> bytes:
    """Draw the training and validation reward of UniGRPO, and its gold score: seeds thin, their mean thick.

    updates_per_iteration: optimizer steps per iteration; given, the axis counts gradient updates as the paper's does.
    results: of fig3, or of table1 (its row unigrpo).
    """
    cells = paper.cells_by_row(results, "fig3", "table1")["unigrpo"]
    steps = updates_per_iteration or 1

    def draw(figure: SubFigure) -> None:
        reward, score = figure.subplots(1, 2)
        _seeds(reward, cells, "reward", _Line("unigrpo", "training", BLUE, ""), steps)
        _seeds(reward, cells, "validation.reward", _Line("unigrpo", "validation", VERMILION, "o"), steps)
        _seeds(score, cells, "validation.score", _Line("unigrpo", "score", GREEN, "s"), steps)
        _seeds(score, cells, "validation.exam_score", _Line("unigrpo", "exam score", ORANGE, "^"), steps)
        _finish(reward, "Reward", "reward", updates_per_iteration)
        _finish(score, "Gold: the verifier, on unseen combinations", "score", updates_per_iteration)
        for axes in (reward, score):
            axes.legend(*axes.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2)

    return page(results, "Figure 3: UniGRPO over training", "thin: seeds, thick: their mean", 3.6, draw)


def draw_fig4(results: Json) -> bytes:
    """Draw training with and without guidance: training reward, and the score evaluated with guidance."""
    cells = paper.cells_by_row(results, "fig4")

    def draw(figure: SubFigure) -> None:
        reward, score = figure.subplots(1, 2)
        for line in FIG4:
            _band(reward, cells[line.row], "reward", line)
            _band(score, cells[line.row], "validation.score", line)
        _finish(reward, "Training reward", "reward")
        _finish(score, "Validation score, drawn with guidance", "score")
        figure.legend(*score.get_legend_handles_labels(), loc="outside lower center", ncols=2)

    return page(results, "Figure 4: does training need guidance?", BANDS, 3.6, draw)


def draw_fig5(results: Json, strips: Mapping[str, Sequence[np.ndarray]] | None = None) -> bytes:
    """Draw the three regularisers: proxy reward, gold score, two canaries, and pictures of each where given.

    strips: row -> pictures uint8 [H, W, 3], as :func:`read_strips` finds them.
    """
    cells = paper.cells_by_row(results, "fig5")
    panels = (
        ("reward", "Proxy: the reward trained on", "reward"),
        ("validation.score", "Gold: the verifier, on unseen combinations", "score"),
        ("edge_energy", "Canary: edges (rises with noise and grids)", "mean pixel difference"),
        ("colour_diversity", "Canary: variety of colours", "entropy (bits)"),
    )
    shown = [line for line in FIG5 if strips and strips.get(line.row)]

    def draw(figure: SubFigure) -> None:
        charts, *rest = parts(figure, 6.0, 1.15 * len(shown)) if shown else [figure]
        for axes, (path, title, unit) in zip(charts.subplots(2, 2).ravel(), panels, strict=True):
            for line in FIG5:
                _band(axes, cells[line.row], path, line)
            _finish(axes, title, unit)
        charts.legend(*charts.axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=len(FIG5))
        if strips and rest:
            _strips(rest[0], [(line, strips[line.row]) for line in shown])

    return page(results, "Figure 5: what holds the drawing in place?", BANDS, 6.0 + 1.15 * len(shown), draw)


def _seeds(axes: Axes, cells: Sequence[Json], path: str, line: _Line, steps: int) -> None:
    """Every seed thin, and the mean thick where all seeds have a figure."""
    found = [(x * steps, y) for x, y in courses(cells, path)]
    for x, y in found:
        axes.plot(x, y, color=line.colour, linewidth=0.8, alpha=0.45)
    _mean(axes, found, line)


def _band(axes: Axes, cells: Sequence[Json], path: str, line: _Line) -> None:
    """The mean over seeds, and a band from the lowest to the highest of them, both smoothed where there are many."""
    found = courses(cells, path)
    x, values = common(found)
    if len(x):
        values = np.stack([_smooth(y) for y in values])
        axes.fill_between(x, values.min(0), values.max(0), color=line.colour, alpha=0.16, linewidth=0)
    _mean(axes, found, line)


def _mean(axes: Axes, found: Sequence[Series], line: _Line) -> None:
    x, values = common(found)
    if len(x):
        y, few = _smooth(values.mean(0)), len(x) <= 30
        axes.plot(
            x, y, color=line.colour, linewidth=2.2, marker=line.marker if few else "", markersize=5, label=line.label
        )


def courses(cells: Sequence[Json], path: str) -> list[Series]:
    """A measure over the iterations (from 1), one course per seed that has it."""
    found = [curves.series(cell["curve"], path) for cell in paper.ran(cells)]
    return [(x - 1, y) for x, y in found if len(x)]  # curves.series counts from 0; here lines count from 1


def common(found: Sequence[Series]) -> tuple[np.ndarray, np.ndarray]:
    """Iterations that all seeds have [n], and their values [seeds, n]: a mean over fewer seeds would jump."""
    if not found:
        return np.array([]), np.empty((0, 0))
    common = sorted(set.intersection(*(set(x.tolist()) for x, _ in found)))
    return np.array(common), np.stack([y[np.isin(x, common)] for x, y in found])


def _smooth(y: np.ndarray) -> np.ndarray:
    return smooth(y) if len(y) > 30 else y


def _finish(axes: Axes, title: str, unit: str, updates_per_iteration: int | None = None) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_ylabel(unit)
    axes.set_xlabel("gradient updates" if updates_per_iteration else "iteration")
    axes.grid(axis="y", alpha=0.18, color=INK, linewidth=0.7)
    if not axes.lines:
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", color=GREY)


def _strips(figure: SubFigure, rows: Sequence[tuple[_Line, Sequence[np.ndarray]]]) -> None:
    """One row of pictures per regulariser, pixel by pixel."""
    all_axes = figure.subplots(len(rows), max(len(pictures) for _, pictures in rows), squeeze=False)
    for row, (line, pictures) in zip(all_axes, rows, strict=True):
        name = line.label.split(" (")[0].replace(" ", "\n")
        row[0].set_ylabel(name, color=line.colour, fontweight="bold", rotation=0, ha="right", va="center")
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=axes in row[: len(pictures)], color=GREY)
        for axes, picture in zip(row, pictures, strict=False):
            axes.imshow(picture, interpolation="nearest")
