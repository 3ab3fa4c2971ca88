"""A weighted sum of rewards, with every part kept for the logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unigrpo.rewards.protocol import (
    DifferentiableReward,
    RewardFunction,
    RewardInput,
    RewardOutput,
    call,
    call_with_gradients,
)


@dataclass(frozen=True)
class WeightedReward:
    """One reward function under its name, and its weight in the sum."""

    name: str
    function: RewardFunction
    weight: float = 1.0


@dataclass(frozen=True)
class CompositeReward:
    """R = sum of weight_i R_i; with several, each part's name is prefixed by its reward's."""

    rewards: tuple[WeightedReward, ...]

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ValueError("a composite reward needs at least one reward")

    def __call__(self, given: RewardInput) -> RewardOutput:
        """Score pictures; raises RewardFault where any reward fails."""
        outputs = [(reward, call(reward.name, reward.function, given)) for reward in self.rewards]
        total = [0.0] * len(given.prompts)
        parts: dict[str, Sequence[float]] = {}
        for reward, output in outputs:
            total = [before + reward.weight * value for before, value in zip(total, output.values, strict=True)]
            prefix = f"{reward.name}/" if len(outputs) > 1 else ""
            if prefix:
                parts[reward.name] = output.values
            parts |= {prefix + name: values for name, values in output.parts.items()}
        return RewardOutput(total, parts)

    def differentiable(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """The same sum [B] with gradients into the pictures; ValueError names a reward that has none."""
        total = images.new_zeros(len(prompts))
        for reward in self.rewards:
            if not isinstance(reward.function, DifferentiableReward):
                raise ValueError(f"reward {reward.name!r} gives no gradient for its pictures")
            scores = call_with_gradients(reward.name, reward.function, images, prompts, metadata)
            total = total + reward.weight * scores
        return total

    @property
    def black_boxes(self) -> list[str]:
        """Names of the rewards that give no gradient."""
        return [r.name for r in self.rewards if not isinstance(r.function, DifferentiableReward)]
