"""What charts of a run are put together from: numbers of its metric lines, and how they are drawn on axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unigrpo.reports.captions import Series, course, smooth
from unigrpo.reports.rendering import CYCLE, Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Sequence[Mapping[str, Any]]


def series(lines: Lines, path: str) -> Series:
    """Collect the numbers at a dotted path: iterations counted from 1 [n], values [n]; absent and null are skipped."""
    found = [(int(line["iteration"]) + 1, value_at(line, path)) for line in lines if "iteration" in line]
    pairs = [(x, float(y)) for x, y in found if isinstance(y, int | float) and np.isfinite(y)]
    return np.array([x for x, _ in pairs]), np.array([y for _, y in pairs])


def value_at(line: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted path of a line; None where nothing does."""
    value: Any = line
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def keys(lines: Lines, path: str) -> list[str]:
    """Names found in the mapping at a dotted path in any line, in order of appearance."""
    found: dict[str, None] = {}
    for line in lines:
        value = value_at(line, path)
        found.update(dict.fromkeys(value if isinstance(value, Mapping) else ()))
    return list(found)


def draw_line(axes: Axes, data: Series, label: str, colour: str) -> None:
    """Draw every value faintly and the smoothed course over it."""
    x, y = data
    if len(x) < 8:
        axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=4, label=label)
        return
    axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.35)
    axes.plot(x, smooth(y), color=colour, linewidth=1.9, label=label)


def draw_dots(axes: Axes, data: Series, label: str, colour: str, marker: str = "o") -> None:
    """Draw every value with a marker, on a faint line."""
    axes.plot(*data, color=colour, linewidth=1, alpha=0.45)
    axes.plot(*data, color=colour, linewidth=0, marker=marker, markersize=5.5, label=label)


def as_shares(axes: Axes) -> None:
    """Axes from 0 to 1."""
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])


def wide_range(axes: Axes, *all_series: Series) -> None:
    """Use a logarithmic scale where positive values span more than a factor of 30."""
    values = np.concatenate([y for _, y in all_series])
    if values.size and values.min() > 0 and values.max() / values.min() > 30:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())


def common_chart(
    lines: Lines,
    paths: Mapping[str, str],
    *,
    name: str,
    section: str,
    title: str,
    healthy: str,
    unit: str,
    dots: bool = False,
    share: bool = False,
) -> list[Chart]:
    """Make the common chart, one curve per (label: path) that has data; [] if none has."""
    found = {label: series(lines, path) for label, path in paths.items()}
    found = {label: data for label, data in found.items() if len(data[0])}
    if not found:
        return []

    def draw(axes: Axes) -> None:
        for index, (label, data) in enumerate(found.items()):
            colour = CYCLE[index % len(CYCLE)]
            if dots:
                draw_dots(axes, data, label, colour, "osD^v<>"[index % 7])
            else:
                draw_line(axes, data, label, colour)
        if share:
            as_shares(axes)
        else:
            wide_range(axes, *found.values())
        axes.set_ylabel(unit)

    return [Chart(name, section, title, healthy, course(found), draw)]
