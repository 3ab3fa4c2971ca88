"""What the measurements call in this package (``before`` has the same names for revisions of before ``build``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from speed.case import Case, Rolled
from unigrpo import build, seeds
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.objectives.methods import UniGRPO
from unigrpo.recipe import PromptData, Recipe, load_recipe
from unigrpo.rollout.engine import RandomKeys, rollout
from unigrpo.rollout.episode import single_round
from unigrpo.training.gradients import backward
from unigrpo.training.trainer import Stop, Trainer
from unigrpo.training.update import Batch, annotate_reference
from unigrpo.trajectory import Prompt, Trajectory

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


def policy_of(recipe: Recipe, model: str) -> Bagel:
    """The recipe's policy with another model's weights."""
    policy = build.policy(replace(recipe.model, path=model))
    assert isinstance(policy, Bagel)
    return policy


def prompts_of(recipe: Recipe, count: int | None = None) -> list[Prompt]:
    """The first ``count`` prompts of a recipe (None: those of an iteration)."""
    assert isinstance(recipe.data, PromptData)
    return build.prompts(recipe.data.prompts, recipe.seed).batch(0, count or recipe.data.prompts_per_iteration)


def sampling_of(recipe: Recipe) -> Any:
    """How a recipe draws while it trains."""
    return build.training_sampling(recipe)


def rolled(policy: Bagel, prompts: Sequence[Prompt], sampling: Any, how: Rolled) -> list[Trajectory]:
    """Think, then draw."""
    return rollout(
        policy,
        single_round(think=True),
        prompts,
        sampling,
        group_size=how.group,
        keys=RandomKeys(how.seed, 0),
        on_phase=how.on_phase,
        first_sample=how.first_sample,
    )


def made_ready(recipe: Recipe, policy: Bagel, sampled: Sequence[Trajectory]) -> Case:
    """Trajectories with random advantages (a weak model's rewards may all be equal) and the reference's answers."""
    method = recipe.method
    assert isinstance(method, UniGRPO)
    generator = seeds.generator(recipe.seed, 0, 0, 0, "replay benchmark")
    advantages = torch.randn(len(sampled), generator=generator).tolist()
    ready = [t.with_advantages(a, a) for t, a in zip(sampled, advantages, strict=True)]
    batch = Batch(ready, [method.queries(t, generator, shift=recipe.rollout.shift) for t in ready])
    temperature = recipe.rollout.temperature
    frozen = annotate_reference(policy, batch, micro_batch=len(batch), temperature=temperature)
    return Case(policy, method, frozen, [row[0] for row in frozen.queries], temperature)


def learned(case: Case, answers: Sequence[Any]) -> None:
    """Losses and both backward passes of one update."""
    losses = case.method.losses(case.batch.trajectories, answers, case.batch.queries)
    backward(case.policy, case.method, losses, len(case.batch))


def trainer_of(recipe: Recipe, folder: Path) -> Trainer:
    """Everything that a run of a recipe is made of."""
    return Trainer(recipe, build.parts(recipe), folder, Stop())
