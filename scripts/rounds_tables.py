"""Figures of the study of rounds, and tables of them in Markdown (scripts/study_rounds.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unigrpo.tools.paper.rows import mean_interval

Found = dict[str, Any]
"""Of one model: what scripts/measure_rounds.py says of it."""
Runs = Mapping[str, Mapping[int, Found]]
Figure = Callable[[Found], float | None]


def of(*path: str) -> Figure:
    """A figure by its keys."""

    def figure(found: Found) -> float | None:
        value: Any = found
        for key in path:
            value = value[key]
        return value

    return figure


ACCURACY = of("understanding", "accuracy", "value")
FIRST, LAST = of("seen", "first", "score"), of("seen", "last", "score")


def gained(name: str) -> Figure:
    """How much better last pictures are than first ones, in one evaluation."""
    return lambda found: found[name]["last"]["score"] - found[name]["first"]["score"]


def cell(runs: Mapping[int, Found], figure: Figure) -> str:
    """Mean over seeds and Student's 95 % interval; the number alone where there is one model."""
    values = [value for found in runs.values() if (value := figure(found)) is not None]
    if not values:
        return ""
    return f"{values[0]:.3f}" if len(values) == 1 else str(mean_interval(values))


def gap(runs: Runs, variant: str, other: str, figure: Figure, against: Figure | None = None) -> str:
    """One variant less another, seed by seed."""
    seeds = sorted(set(runs[variant]) & set(runs[other]))
    pairs = [(figure(runs[variant][s]), (against or figure)(runs[other][s])) for s in seeds]
    return mean_interval([a - b for a, b in pairs if a is not None and b is not None]).signed


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, and an empty line."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)] + [""]


def figures_of(runs: Runs, columns: Mapping[str, Figure]) -> list[str]:
    """A table of figures, a row a variant."""
    rows = [
        [name, str(len(found)), *(cell(found, figure) for figure in columns.values())] for name, found in runs.items()
    ]
    return table(["variant", "seeds", *columns], rows)
