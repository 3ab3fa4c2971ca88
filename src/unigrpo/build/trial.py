"""Every reward is tried on one picture of noise before anything long, so that its faults are told at once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from unigrpo.build.checks import opened_here
from unigrpo.build.data import Suite
from unigrpo.build.sampling import Rewards
from unigrpo.recipe import Recipe
from unigrpo.rewards.composite import CompositeReward
from unigrpo.rewards.protocol import RewardFault, RewardInput, metadata_of
from unigrpo.training.sources import RolloutSource, Source
from unigrpo.trajectory import Prompt

LARGEST = 4096  # pixels of a side that a picture is made of without asking the model


def try_rewards(recipe: Recipe, rewards: Rewards, source: Source, suite: Suite, size: tuple[int, int]) -> None:
    """Try the training rewards on a prompt that is trained on, the others on one that is evaluated; or RewardFault.

    A reward that is trained through must also give a gradient. The rewards are not those of the run, which keep their
    state, and the global random generators stay where they are.
    """
    if rewards.train is not None and isinstance(source, RolloutSource):
        prompt = source.prompts.batch(0, 1)[0]
        try_reward(rewards.train, prompt, size, think=recipe.rollout.think)
        if rewards.with_gradient:
            try_gradient(rewards.train, prompt, size)
    for prompt in suite.prompts(1):
        try_reward(rewards.validation, prompt, size, think=recipe.eval.think)


def try_reward(reward: CompositeReward, prompt: Prompt, size: tuple[int, int], *, think: bool) -> None:
    """Call a reward with one picture of noise; RewardFault where it fails."""
    thinking = f"<think> {prompt.text} </think>" if think else None
    with _told(), same_randomness():
        reward.tried(RewardInput(noise(size), [prompt.text], metadata_of([prompt]), [thinking]))


def try_gradient(reward: CompositeReward, prompt: Prompt, size: tuple[int, int]) -> None:
    """Ask for the gradient of every reward of a sum."""
    for part in reward.rewards:
        picture = noise(size).requires_grad_()
        with _told(), same_randomness():
            scores = CompositeReward((part,)).differentiable(picture, [prompt.text], metadata_of([prompt]))
            if not scores.requires_grad:
                raise RewardFault(f"reward {part.name!r} gives no gradient for its pictures: does it detach them?")


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except RewardFault as fault:
        raise RewardFault(f"tried on one picture of noise before anything else: {fault}") from fault


def noise(size: tuple[int, int]) -> Tensor:
    """A picture float32 [1, 3, H, W] as a PNG holds it; not flat, because a reward may divide by what varies in it."""
    pixels = torch.randint(256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return pixels.float() / 255.0


@contextmanager
def same_randomness() -> Iterator[None]:
    """Put the global random generators back to where they were, whoever drew from them."""
    devices: Sequence[int] = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    plain, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(numpy)


def drawn_size(recipe: Recipe) -> tuple[int, int] | None:
    """The size (height, width) that a recipe draws, without loading its model; None where only loading tells."""
    if (side := recipe.rollout.image_size) is not None:
        return (side, side) if side <= LARGEST else None  # loading refuses what does not fit the model
    try:
        read = opened_here(recipe.model.path)
    except (ValueError, OSError):  # loading says it better
        return None
    return None if read is None else read.image_size
