"""How long a run will still take: iterations at their pace, and what comes between them at the time that it takes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

RECENT = 20  # iterations over which the pace is averaged, so that the time left follows a change


@dataclass(frozen=True)
class Schedule:
    """What a run does beside its iterations; None where it does not, or nobody knows.

    validate_every, save_every: iterations from one validation, or checkpoint, to the next.
    validation_share: pictures of a validation over those of the evaluation before and after training, so that each
    tells how long the other will take before it has been seen.
    """

    validate_every: int | None = None
    save_every: int | None = None
    validation_share: float | None = None


class Pace:
    """Times of iterations, validations, checkpoints and evaluations, never one for the other; seconds."""

    def __init__(self, total: int, schedule: Schedule) -> None:
        self._total, self._schedule = total, schedule
        self._iterations: deque[float] = deque(maxlen=RECENT)
        self._last: dict[str, float] = {}

    def iteration(self, seconds: float, validation: float = 0.0) -> None:
        """An iteration took ``seconds``, of them ``validation`` for the validation in it."""
        self._iterations.append(max(0.0, seconds - validation))
        if validation:
            self._last["validation"] = validation

    def aside(self, kind: str, seconds: float) -> None:
        """An ``evaluation`` or a ``checkpoint`` between iterations took so long."""
        self._last[kind] = seconds

    @property
    def known(self) -> bool:
        """Whether an iteration has been timed."""
        return bool(self._iterations)

    @property
    def mean(self) -> float:
        """Mean time of the recent iterations."""
        return sum(self._iterations) / len(self._iterations)

    def left(self, done: int) -> float:
        """Seconds for all that is to come after ``done`` iterations, the evaluation after training too."""
        validations = _times(self._schedule.validate_every, done, self._total)
        saves = _times(self._schedule.save_every, done, self._total, at_end=True)
        seconds = validations * self._validation() + saves * self._last.get("checkpoint", 0.0) + self._evaluation()
        return seconds + (self._total - done) * self.mean if done < self._total else seconds

    def _validation(self) -> float:
        return self._last.get("validation", self._last.get("evaluation", 0.0) * (self._schedule.validation_share or 0))

    def _evaluation(self) -> float:
        share = self._schedule.validation_share
        seen = self._last.get("validation", 0.0) / share if share else 0.0
        return self._last.get("evaluation", seen)


def _times(every: int | None, done: int, total: int, *, at_end: bool = False) -> int:
    """How often something that comes every so many iterations (and after the last) is still to come."""
    if every is None or done >= total:
        return 0
    return total // every - done // every + (1 if at_end and total % every else 0)
