"""The names of ``now`` for revisions that have ``resolve`` and ``config`` where ``build`` and ``recipe`` are today."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from speed.case import Case, Rolled
from unigrpo import config, resolve, seeds
from unigrpo.models.bagel.policy import Bagel
from unigrpo.rollout.engine import Draws, rollout
from unigrpo.rollout.episode import single_round
from unigrpo.training.trainer import Stop, Trainer
from unigrpo.training.update import Batch, annotate_reference, backward
from unigrpo.trajectory import Prompt, Trajectory

load_recipe = config.load_recipe
__all__ = [
    "Bagel",
    "learned",
    "load_recipe",
    "made_ready",
    "policy_of",
    "prompts_of",
    "rolled",
    "sampling_of",
    "trainer_of",
]


def policy_of(recipe: Any, model: str) -> Bagel:
    """The recipe's policy with another model's weights."""
    return resolve.policy(replace(recipe.model, path=model))


def prompts_of(recipe: Any, count: int | None = None) -> list[Prompt]:
    """The first ``count`` prompts of a recipe (None: those of an iteration)."""
    return resolve.prompts(recipe.data.prompts, recipe.seed).batch(0, count or recipe.data.prompts_per_iteration)


def sampling_of(recipe: Any) -> Any:
    """How a recipe draws while it trains."""
    return resolve.training_sampling(recipe)


def rolled(policy: Bagel, prompts: Sequence[Prompt], sampling: Any, how: Rolled) -> list[Trajectory]:
    """Think, then draw."""
    return rollout(
        policy,
        single_round(think=True),
        prompts,
        sampling,
        group_size=how.group,
        draws=Draws(how.seed, 0),
        on_phase=how.on_phase,
        first_sample=how.first_sample,
    )


def made_ready(recipe: Any, policy: Bagel, sampled: Sequence[Trajectory]) -> Case:
    """Trajectories with random advantages (a weak model's rewards may all be equal) and the reference's answers."""
    method = resolve.method(recipe, policy.decode_image)
    generator = seeds.generator(recipe.seed, 0, 0, 0, "replay benchmark")
    advantages = torch.randn(len(sampled), generator=generator).tolist()
    ready = [replace(t, advantage=a) for t, a in zip(sampled, advantages, strict=True)]
    batch = Batch(ready, [method.draws(t, generator) for t in ready])
    temperature = recipe.rollout.temperature
    frozen = annotate_reference(policy, batch, micro_batch=len(batch), temperature=temperature)
    return Case(policy, method, frozen, [row[0] for row in frozen.draws], temperature)


def learned(case: Case, answers: Sequence[Any]) -> None:
    """Losses and both backward passes of one update."""
    losses = case.method.losses(case.batch.trajectories, answers, case.batch.draws)
    backward(case.policy, case.method, losses, len(case.batch))


def trainer_of(recipe: Any, folder: Path) -> Trainer:
    """Everything that a run of a recipe is made of."""
    return Trainer(recipe, resolve.parts(recipe), folder, Stop())
