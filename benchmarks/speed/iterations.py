"""Section ``iteration``: an iteration of shapes/unigrpo by phase."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

from speed.counting import Figures, flops_of, matmul_peak, medians, seconds
from unigrpo.training.clock import Clock

NAMED = ("rollout", "reward", "annotate", "update")
SMALL = ["--data.prompts-per-iteration", "2", "--data.group-size", "2"]


class CpuClock(Clock):
    """A clock that also adds up CPU seconds."""

    last: CpuClock

    def __init__(self) -> None:
        super().__init__()
        self.cpu: Figures = {}
        CpuClock.last = self

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block."""
        began = time.process_time()
        with super().phase(name):
            yield
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - began


def iteration(api: ModuleType, quick: bool) -> Figures:
    """CPU seconds by phase, wall seconds, and counted FLOPs of an iteration; the first one warms up."""
    overrides = ["--eval.every", "100000", *(SMALL if quick else [])]
    with tempfile.TemporaryDirectory() as folder, mock.patch("unigrpo.training.trainer.Clock", CpuClock):
        trainer = api.trainer_of(api.load_recipe("shapes/unigrpo", overrides), Path(folder))
        rows = []
        for number in range(3 if quick else 5):
            cpu, wall = seconds(lambda number=number: trainer.iterate(number))
            phases = {f"{name}_cpu_s": CpuClock.last.cpu[name] for name in NAMED}
            rows.append({"cpu_s": cpu, "wall_s": wall, **phases, "other_cpu_s": cpu - sum(phases.values())})
        found = medians(rows[1:])
        found["gflop"] = flops_of(lambda: trainer.iterate(len(rows))) / 1e9
    found["gflops"] = found["gflop"] / found["cpu_s"]
    found["matmul_peak_gflops"] = peak = matmul_peak(1536, 64, 192)
    found["of_peak"] = found["gflops"] / peak
    found["other_than_rollout_and_replay"] = (found["other_cpu_s"] + found["reward_cpu_s"]) / found["cpu_s"]
    return found
