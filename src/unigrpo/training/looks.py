"""Looks at the policy while it trains: with the averaged weights where there are some, and what left its band."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigrpo import memory
from unigrpo.evaluation.evaluator import Evaluation, summarise
from unigrpo.policy import Policy
from unigrpo.reports import runlog
from unigrpo.training.alarms import Alarm, Alarms
from unigrpo.training.components import RunComponents
from unigrpo.training.full_memory import EVALUATION
from unigrpo.training.optimizer import MovingAverage
from unigrpo.training.sources import RolloutBatch


@dataclass(frozen=True)
class Looks:
    """The evaluations of a run in its folder; ``average``: the averaged weights, where the run keeps them."""

    parts: RunComponents
    run_dir: Path
    alarms: Alarms
    average: MovingAverage | None

    def measured(self, measure: Callable[[Policy], Evaluation]) -> Evaluation:
        """Evaluate the averaged weights where the run keeps an average."""
        with memory.phase(EVALUATION):
            if self.average is None:
                return measure(self.parts.policy)
            self.average.swap()
            try:
                return measure(self.parts.policy)
            finally:
                self.average.swap()

    def validate(
        self, collected: RolloutBatch, canaries: Mapping[str, float], iteration: int
    ) -> tuple[dict[str, Any], list[Alarm]]:
        """The figures and canaries of the cadence evaluation, and its alarms; ``canaries``: of the training samples."""
        result = self.measured(self.parts.evaluator.validate)
        if not self.parts.world.first:  # who has no records, and keeps no history
            return summarise(result.records), []
        now = {"iteration": iteration, **collected.metrics, "canaries": canaries}
        lines = [*runlog.read_metrics(self.run_dir), now]
        own, alarms = self.alarms.validation(result, iteration, lines)
        return {**summarise(result.records), "canaries": own}, alarms
