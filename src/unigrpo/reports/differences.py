"""Paired differences, as a run's summary has them: their interval where there is one, and the reason where not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLLAPSED = 0.5
"""Share of a score that is left after training, below which a run has collapsed and is called so."""


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
