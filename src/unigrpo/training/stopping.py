"""A run that is asked to stop: how long it may still take, and when what is under way is given up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

RESERVE = 0.2
"""Share of the time that is kept for saving, or more where saving took longer before."""


@dataclass
class Stop:
    """Asked from outside to end the run; ``by`` is the signal that asked, ``asked`` when (``time.monotonic``)."""

    requested: bool = False
    by: int | None = None
    asked: float | None = None

    def ask(self, by: int) -> None:
        """Ask for it now."""
        self.requested, self.by, self.asked = True, by, time.monotonic()


@dataclass
class Haste:
    """Whether a run that was asked to stop gives up its iteration, by the longest one so far and the time that is left.

    ``within_s``: seconds from the signal to the end of the process; ``clock`` is replaced in tests.
    """

    stop: Stop
    within_s: float
    clock: Callable[[], float] = time.monotonic
    longest: float = 0.0
    saving: float = 0.0
    began: float | None = field(default=None, init=False)
    over: bool = field(default=False, init=False)

    def begin(self) -> None:
        """An iteration begins."""
        self.began = self.clock()

    def end(self) -> None:
        """It is finished."""
        if self.began is not None:
            self.longest, self.began = max(self.longest, self.clock() - self.began), None

    def saved(self, seconds: float) -> None:
        """So long a checkpoint took."""
        self.saving = max(self.saving, seconds)

    def late(self, *, changed: bool) -> bool:
        """Whether to give up: the time is over; or it will be, and no weight is ``changed`` yet."""
        if self.over or self.stop.asked is None:
            return False
        end = self.stop.asked + self.within_s - min(self.within_s, max(RESERVE * self.within_s, 1.5 * self.saving))
        if self.clock() >= end:
            return True
        return not changed and self.began is not None and self.began + self.longest > end
