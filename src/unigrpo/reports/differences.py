"""Paired differences, as a run's summary has them: their interval, the verdict that it allows, and why there is none.

Every page, card and line that says more of a difference than its numbers asks :func:`verdict`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from unigrpo.ranges import FEWEST_PROMPTS

Verdict = Literal["rose", "fell", "open"]
COLLAPSED = 0.5
"""Share of a score that is left after training, below which that is said, with an interval or without; a run of the
paper's tables counts as collapsed there."""
MEANING: Mapping[Verdict | None, str] = {
    "rose": "The interval lies above 0: the rise is more than chance.",
    "fell": "The interval lies below 0: the model got worse, by more than chance.",
    "open": "The interval includes 0: this may be chance.",
    None: "",
}


def interval_of(entry: Any) -> tuple[float, float] | None:
    """The 95 % interval (low, high) of an entry of ``paired``; None where there is none.

    Summaries that were written before reasons were may hold an interval of width 0, which is none either.
    """
    if not isinstance(entry, Mapping):
        return None
    low, high = entry.get("low"), entry.get("high")
    return (low, high) if low is not None and high is not None and low < high else None


def why_none(entry: Any) -> str:
    """Why an entry of ``paired`` has no interval; "" where it has one, or where nobody knows."""
    if not isinstance(entry, Mapping) or interval_of(entry) is not None:
        return ""
    return entry.get("why") or ("the resampled prompts show no spread" if entry.get("low") is not None else "")


def verdict(entry: Any) -> Verdict | None:
    """What the interval of a difference allows to say: it rose, it fell, that is open; None without an interval."""
    if (found := interval_of(entry)) is None:
        return None
    low, high = found
    return "rose" if low > 0 else "fell" if high < 0 else "open"


def trusted(summary: Mapping[str, Any], prompts: int | None = None) -> dict[str, Any]:
    """The entries of ``paired``, without intervals that so few prompts cannot show (as older runs may have them).

    prompts: of the evaluation, where somebody counted them; there are never more of them than pictures.
    """
    before = summary.get("before") or {}
    count = before.get("n") if prompts is None else prompts
    entries = dict(summary.get("paired") or {})
    if count is None or count >= FEWEST_PROMPTS:
        return entries
    why = f"{count} prompt{'s are' if count != 1 else ' is'} too few to say, {FEWEST_PROMPTS} are needed"
    return {
        name: {**entry, "low": None, "high": None, "why": entry.get("why") or why} for name, entry in entries.items()
    }
