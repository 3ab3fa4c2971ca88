"""Beside Table 1: UniGRPO against every other row seed by seed, and what each half of every method gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unigrpo.reports.differences import interval_of
from unigrpo.reports.markdown import NONE, joined, table
from unigrpo.tools.paper import rows as paper
from unigrpo.tools.paper.rows import Json, mean_interval

MAIN = "unigrpo"


def against_markdown(results: Json) -> str:
    """Write the difference of UniGRPO to every other row, paired by seed; "" where there are fewer than two seeds.

    Runs of one seed see the same prompts, and are evaluated with the same draws, so their differences vary much less
    than the figures themselves: Student's 95 % interval of the mean difference.
    """
    cells = paper.cells_by_row(results, "table1")
    lines = []
    for row in paper.ROWS:
        pairs = [_differences(cells[MAIN], cells[row.key], measure) for measure in ("exam_score", "score")]
        if row.key != MAIN and len(pairs[0]) > 1:
            shown = [mean_interval(values) for values in pairs]
            wins = [f"{sum(v > 0 for v in values)} of {len(values)}" for values in pairs]
            signed = [x.signed for x in shown]
            thinks = "yes" if row.thinking else "no"
            lines.append([row.method, thinks, signed[0], wins[0], signed[1], wins[1]])
    if not lines:
        return ""
    head = ["UniGRPO less", "thinking", "exam score", "seeds above", "score", "seeds above"]
    note = (
        "The same seed means the same training prompts and the same draws in the evaluation, so that differences of "
        "two runs vary less than the runs do. Mean difference and Student's 95 % interval over seeds:"
    )
    return joined(["## UniGRPO against every row, seed by seed", note, table(head, lines, "llrrrr")]).rstrip("\n")


def _differences(left: Sequence[Json], right: Sequence[Json], measure: str) -> list[float]:
    """left - right of the seeds that both have."""
    sides = [{cell["seed"]: cell[measure] for cell in side if cell[measure] is not None} for side in (left, right)]
    return [value - sides[1][seed] for seed, value in sides[0].items() if seed in sides[1]]


def gains_markdown(results: Json) -> str:
    """Write what every run gained over its start, on the same prompts and draws, if any cell says so.

    The two halves apart: ``plan right`` is the thinking's, ``follow`` the drawing's. Mean over seeds; in brackets the
    lowest and the highest end of the seeds' 95 % intervals (bootstrap over prompts).
    """
    lines = []
    cells = paper.cells_by_row(results, "table1")
    for row in paper.ROWS:
        gains = [cell["paired"] for cell in cells[row.key] if cell.get("paired")]
        if gains:
            shown = [_gain([gain[key] for gain in gains if key in gain]) for key in ("plan_right", "follow", "score")]
            lines.append([row.method, "yes" if row.thinking else "no", *shown, str(len(gains))])
    if not lines:
        return ""
    head = ["method", "thinking", "plan right", "follow", "score", "seeds"]
    note = (
        "After training less before, the same prompts and draws; in brackets the lowest and the highest end of the "
        "seeds' 95 % intervals over prompts (none where a seed has none: nothing changed, or nothing varied). *plan "
        "right* is what the thinking can change, *follow* (the picture shows the plan) what the drawing can."
    )
    return joined(["## What each half gained", note, table(head, lines, "llrrrr")]).rstrip("\n")


def _gain(paired: Sequence[Mapping[str, Any]]) -> str:
    if not paired:
        return NONE
    mean = sum(entry["difference"] for entry in paired) / len(paired)
    found = [ends for entry in paired if (ends := interval_of(entry)) is not None]
    if len(found) < len(paired):
        return f"{mean:+.3f} ({paper.NO_INTERVAL})"
    return f"{mean:+.3f} ({min(low for low, _ in found):+.3f} to {max(high for _, high in found):+.3f})"
