"""Where an iteration's trajectories come from: rollouts that were scored, or demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from unigrpo import doing
from unigrpo.objectives.advantage import Advantage, advantage_statistics
from unigrpo.policy import Policy
from unigrpo.rewards.protocol import RewardInput, RewardOutput, metadata_of
from unigrpo.rollout.engine import RandomKeys, Sampling
from unigrpo.rollout.episode import Episode
from unigrpo.rollout.sample import Drawn, sample
from unigrpo.training.clock import Clock
from unigrpo.trajectory import Prompt, Trajectory


@dataclass(frozen=True)
class RolloutBatch:
    """One iteration's trajectories, what to log of them, and the pictures (uint8 [B, 3, H, W]) where there are any."""

    trajectories: list[Trajectory]
    metrics: dict[str, Any] = field(default_factory=dict)
    pictures: Tensor | None = None


class Source(Protocol):
    """Gives the trajectories of an iteration, the same for the same iteration."""

    def collect(self, policy: Policy, iteration: int, clock: Clock) -> RolloutBatch:
        """Make (or read) one iteration's trajectories."""
        ...


class PromptSource(Protocol):
    """A stream of prompts with random access."""

    def batch(self, iteration: int, n: int) -> list[Prompt]:
        """The n prompts of an iteration."""
        ...


def score(reward: Callable[[RewardInput], RewardOutput], parts: Sequence[Drawn], pictures: Tensor) -> list[Trajectory]:
    """Give every trajectory its reward and the named parts of the verdict; pictures: those of all parts together."""
    trajectories = [trajectory for part in parts for trajectory in part.trajectories]
    given = RewardInput(
        images=pictures.float() / 255.0,
        prompts=[t.prompt.text for t in trajectories],
        metadata=metadata_of([t.prompt for t in trajectories]),
        thinking=[words for part in parts for words in part.thinking],
    )
    output = reward(given)
    return [
        replace(t, reward=float(value), verdict={name: part[i] for name, part in output.parts.items()})
        for i, (t, value) in enumerate(zip(trajectories, output.values, strict=True))
    ]


@dataclass(frozen=True)
class RolloutSource:
    """Think, draw, score, compare: rollouts of the policy with group advantages, ``batch`` samples at a time."""

    prompts: PromptSource
    episode: Episode
    sampling: Sampling
    reward: Callable[[RewardInput], RewardOutput]
    prompts_per_iteration: int
    group_size: int
    seed: int
    advantage: Advantage
    batch: int | None = None

    def collect(self, policy: Policy, iteration: int, clock: Clock) -> RolloutBatch:
        """Sample, decode, score and assign advantages."""
        prompts = self.prompts.batch(iteration, self.prompts_per_iteration)
        made = sample(
            policy,
            self.episode,
            prompts,
            self.sampling,
            RandomKeys(self.seed, iteration),
            samples=self.group_size,
            batch=self.batch,
            timed=lambda phase: clock.phase("rollout" if phase == "rollout" else "reward"),
        )
        parts = list(made)
        doing.say("scoring")
        with clock.phase("reward"):
            drawn = torch.cat([part.pictures for part in parts])
            scored = score(self.reward, parts, drawn)
        ready = self.advantage.assign(scored)
        return RolloutBatch(ready, describe(ready), drawn)


def describe(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Reward and advantage figures of an iteration, and how long the thinking was."""
    rewards = [t.reward or 0.0 for t in trajectories]
    advantages = [t.advantage or 0.0 for t in trajectories]
    figures = advantage_statistics(rewards, advantages, [t.prompt.position for t in trajectories])
    metrics: dict[str, Any] = {
        "reward_mean": figures["reward_mean"],
        "reward_std": figures["reward_std"],
        "reward_group_std": figures["reward_group_std"],
        "zero_variance_share": figures["zero_std_ratio"],
        "advantage_std": figures["advantage_std"],
    }
    categories = [t.prompt.metadata.get("category") for t in trajectories]
    if all(isinstance(c, str) for c in categories):
        metrics["reward_by_category"] = mean_by(categories, rewards)
    if parts := trajectories[0].verdict:
        metrics["reward_parts"] = {n: sum(t.verdict[n] for t in trajectories) / len(trajectories) for n in parts}
    texts = [text for t in trajectories for text in t.sampled_texts]
    if texts:
        metrics["think_length"] = sum(text.num_actions for text in texts) / len(texts)
        metrics["think_cut_share"] = sum(not text.ended for text in texts) / len(texts)
    return metrics


def mean_by(labels: Sequence[Any], values: Sequence[float]) -> dict[str, float]:
    """Mean of the values of each label, labels sorted."""
    groups: dict[str, list[float]] = {}
    for label, value in zip(labels, values, strict=True):
        groups.setdefault(str(label), []).append(value)
    return {label: sum(group) / len(group) for label, group in sorted(groups.items())}


@dataclass(frozen=True)
class DemonstrationSource:
    """Supervised data: ``make(policy, iteration)`` gives trajectories with targets."""

    make: Callable[[Policy, int], list[Trajectory]]

    def collect(self, policy: Policy, iteration: int, clock: Clock) -> RolloutBatch:
        """Make one batch of demonstrations."""
        with clock.phase("data"), torch.no_grad():
            return RolloutBatch(self.make(policy, iteration))
