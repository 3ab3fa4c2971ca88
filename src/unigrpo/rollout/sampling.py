"""How samples are drawn, as plain settings, and the keys of their random draws (docs/math.md#the-window, #seeds)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from unigrpo import seeds
from unigrpo.rollout.guidance import NO_GUIDANCE, Guidance
from unigrpo.trajectory import Prompt

Rows = Sequence[tuple[Prompt, int]]
"""The samples of a rollout: a prompt, and the index of a sample in its group."""


@dataclass(frozen=True)
class Slide:
    """MixGRPO's window: it starts at the noisiest step and moves on by ``stride`` after every ``every`` iterations.

    start = lo + (floor(iteration / every) stride) mod (number of possible starts), so that it begins again at the end
    (docs/math.md#the-window; the paper draws its window at random).
    """

    every: int
    stride: int = 1

    def start(self, window: tuple[int, int], size: int, iteration: int) -> int:
        """The first SDE step of an iteration."""
        lo, hi = window
        return lo + iteration // self.every * self.stride % (hi - size - lo + 1)


@dataclass(frozen=True)
class Sampling:
    """How to sample: the timestep grid, the SDE window (None: ODE everywhere), and the thinking.

    ``num_points`` grid points are num_points - 1 forwards. ``window`` (lo, hi): the start is uniform in
    lo..hi-window_size, or moves by ``slide``. ``same_initial_noise`` gives all members of a group one initial noise
    (the paper: no). ``kept_steps`` (lo, hi): keep the state before one step of each picture, uniform in lo..hi-1
    (ReFL). ``images_per_thinking``: pictures that are drawn on each thinking (of rounds: the first).
    """

    num_points: int
    shift: float
    window: tuple[int, int] | None = None
    window_size: int = 0
    noise_level: float = 0.0
    sde: str = "flow"
    temperature: float = 1.0
    max_think_tokens: int = 32
    images_per_thinking: int = 1
    same_initial_noise: bool = False
    guidance: Guidance = NO_GUIDANCE
    slide: Slide | None = None
    kept_steps: tuple[int, int] | None = None


@dataclass(frozen=True)
class RandomKeys:
    """The keyed randomness of one rollout: (run seed, iteration), and the round ``turn`` of its samples."""

    seed: int
    iteration: int
    turn: int = 1

    def generator(self, position: int, sample: int, purpose: str) -> torch.Generator:
        """A fresh generator for one draw."""
        return seeds.generator(self.seed, self.iteration, position, sample, purpose, self.turn)

    def at(self, turn: int) -> RandomKeys:
        """The same in another round."""
        return replace(self, turn=turn)
