"""Proxy up and gold down: what training is paid for goes on rising, and what it stands for falls (numpy only).

The proxy is the reward that is trained on, the gold what the evaluation's judge says (:data:`GOLD`), and the validation
reward where that is another one. A gold measure g raises an alarm at a validation t if, with k = ``bands.ERRORS``,

* g has fallen from its best validation b (before training counts as one): mean d + k e < 0 for the differences d of the
  prompts that both know, and
* the proxy has risen since the first one: mean - k e > 0, and
* the proxy has not fallen since b: not mean + k e < 0.

The first and the last are the same prompts and draws each time, so that differences are taken prompt by prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unigrpo.evaluation.bands import ERRORS
from unigrpo.evaluation.statistics import FEWEST

GOLD = {
    "score": "correct",
    "exam_score": "exam",
    "plan_right": "plan_right",
    "follow": "follow",
    "parsable": "parsable",
}
"""What a judge says, by its name in summaries, and the key of a record."""
REWARD = "reward"
KEYS = (*GOLD.values(), REWARD)
START = -1
"""The iteration of the evaluation before training."""


class Change(NamedTuple):
    """The mean of a difference, and its standard error."""

    mean: float
    error: float

    @property
    def rose(self) -> bool:
        """Whether it rose by more than noise."""
        return self.mean - ERRORS * self.error > 0

    @property
    def fell(self) -> bool:
        """Whether it fell by more than noise."""
        return self.mean + ERRORS * self.error < 0


def row(iteration: int, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is kept of a validation: of every known measure, a number for each prompt (null where there is none)."""
    found: dict[str, Any] = {"iteration": iteration, "position": [record["position"] for record in records]}
    for key in KEYS:
        values = [record[key] for record in records]
        if any(value is not None for value in values):
            found[key] = [None if value is None else float(value) for value in values]
    return found


def change(then: Mapping[str, Any], now: Mapping[str, Any], key: str) -> Change | None:
    """now - then over the prompts that both know; None where these are fewer than ``FEWEST``.

    The error is s / sqrt(n) with one prompt more that did not change: all equal differences are no certainty.
    """
    sides = [dict(zip(side["position"], side.get(key, ()), strict=False)) for side in (then, now)]
    known = [p for p, value in sides[0].items() if value is not None and sides[1].get(p) is not None]
    if len(known) < FEWEST:
        return None
    differences = np.array([0.0, *(sides[1][p] - sides[0][p] for p in known)])
    return Change(float(differences[1:].mean()), float(differences.std(ddof=1)) / math.sqrt(len(differences)))


def course(then: Sequence[float], now: Sequence[float]) -> Change | None:
    """The change of a mean between two windows of iterations; None without two in each.

    The noise of an iteration is the standard deviation of the steps inside the windows over the square root of 2, which
    a steady trend leaves alone.
    """
    steps = np.concatenate([np.diff(then), np.diff(now)])
    if min(len(then), len(now)) < 2:
        return None
    noise = float(np.sqrt(np.mean(steps**2) / 2))
    return Change(float(np.mean(now) - np.mean(then)), noise * math.sqrt(1 / len(then) + 1 / len(now)))


def mean(kept: Mapping[str, Any], key: str) -> float | None:
    """The mean of a measure of a validation."""
    known = [value for value in kept.get(key, ()) if value is not None]
    return sum(known) / len(known) if known else None


def fallen(history: Sequence[Mapping[str, Any]], key: str) -> tuple[Mapping[str, Any], Change] | None:
    """The best validation of a measure, and the change since, where it has fallen from it by more than noise."""
    known = [kept for kept in history[:-1] if mean(kept, key) is not None]
    if not known:
        return None
    best = max(known, key=lambda kept: mean(kept, key) or 0.0)
    since = change(best, history[-1], key)
    return (best, since) if since is not None and since.fell else None


def window(rewards: Mapping[int, float], last: int, size: int) -> list[float]:
    """Training rewards of the iterations last - size + 1 to last; the first ``size`` ones where last is before that."""
    end = max(last, size - 1)
    return [rewards[i] for i in range(end - size + 1, end + 1) if i in rewards]
