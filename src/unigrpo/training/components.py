"""What a run is made of, whatever its recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from unigrpo.evaluation.evaluator import Evaluation
from unigrpo.objectives.image_terms import LatentReward
from unigrpo.objectives.method import Method
from unigrpo.policy import Policy, SavesLater, Scorer
from unigrpo.training.parallel import ONE_PROCESS, World
from unigrpo.training.saving import Snapshot, Whole, as_held
from unigrpo.training.sources import Source


class Evaluator(Protocol):
    """Evaluates the policy: few pictures while training, many before and after."""

    def validate(self, policy: Policy) -> Evaluation:
        """The cadence evaluation."""
        ...

    def compare(self, policy: Policy) -> Evaluation:
        """The large one, before and after training."""
        ...


@dataclass
class RunComponents:
    """Everything a run is made of; ``build`` turns a recipe's names into these."""

    policy: Policy
    reference: Scorer | None
    method: Method
    source: Source
    evaluator: Evaluator
    snapshot: Snapshot
    load_model: Callable[[Path], None]
    compute_dtype: torch.dtype = torch.float32
    latent_reward: LatentReward | None = None
    world: World = ONE_PROCESS
    reference_hash: str | None = None
    whole: Whole = as_held
    spread: SavesLater | None = None
