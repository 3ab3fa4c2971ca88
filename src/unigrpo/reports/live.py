"""The report of a run that goes on: written again now and then, never so often that it slows the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from unigrpo.reports.html import write_report

SHARE = 0.03
"""Of the run's time, the most that its report may take while it goes on."""


@dataclass
class LiveReport:
    """Writes the report when it is due; a fault in it is told once and ends that, not the run."""

    run_dir: Path
    left: Callable[[], str]
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _due: float = field(default=0.0, init=False)
    _broken: bool = field(default=False, init=False)

    def milestone(self) -> None:
        """A validation or a checkpoint has been: write the report, if the last one is long enough ago."""
        began = self.clock()
        if self._broken or began < self._due:
            return
        try:
            write_report(self.run_dir, living=f"{self.left()}, on {datetime.now():%Y-%m-%d at %H:%M}")
        except (OSError, ValueError) as error:
            self._broken = True
            self.say(f"note: report.html could not be written while the run goes on ({error})")
        took = self.clock() - began
        self._due = self.clock() + took / SHARE
