"""Weights & Biases: online where there is a login, else offline in RUN/wandb (``wandb sync`` sends it later)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from unigrpo.training.sinks import Place, Shown
from unigrpo.training.sinks.kept import run_id

PROJECT = "unigrpo"
FINISH_SECONDS = 120.0
"""How long the end of a run waits for what is still to be sent; what is left is on disk for `wandb sync`."""


class WandB:
    """One run of W&B; its steps are the metric ``iteration``: W&B's own can only grow, one a call."""

    def __init__(self, place: Place, mode: str | None) -> None:
        self.wandb: Any = import_module("wandb")
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=place.run_dir.name,
            id=run_id(place.run_dir, "wandb", place.name),
            resume="allow",
            dir=str(place.run_dir),
            config=dict(place.recipe),
            mode=mode,
            settings=self.wandb.Settings(console="off", silent=True, finish_timeout=FINISH_SECONDS),
        )
        self.run.define_metric("iteration")
        self.run.define_metric("*", step_metric="iteration")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers."""
        self.run.log({**values, "iteration": step})

    def pictures(self, step: int, name: str, shown: Sequence[Shown]) -> None:
        """Log pictures with captions."""
        made = [self.wandb.Image(one.picture, caption=one.caption) for one in shown]
        self.run.log({"iteration": step, name: made})

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """Log a distribution."""
        self.run.log({"iteration": step, name: self.wandb.Histogram(list(values))})

    def close(self, failed: bool) -> None:
        """Finish the run."""
        self.run.finish(exit_code=int(failed))


def mode_of(say: Callable[[str], None]) -> str | None:
    """offline where nobody is logged in and nothing else was asked for (WANDB_MODE); None: as W&B is set."""
    if os.environ.get("WANDB_MODE"):
        return None
    if import_module("wandb").api.api_key:
        return None
    say("note: wandb has no login here, so it runs offline: `wandb sync RUN/wandb/offline-run-*` sends it later")
    return "offline"


def open_sink(place: Place, say: Callable[[str], None]) -> WandB:
    """Open it."""
    return WandB(place, mode_of(say))
