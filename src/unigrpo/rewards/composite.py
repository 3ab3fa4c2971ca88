"""A weighted sum of rewards, with every value and part kept by name; a failed picture has no number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from unigrpo.plurals import counted
from unigrpo.rewards.answers import RewardFault, commonest
from unigrpo.rewards.protocol import (
    TIMEOUT,
    DifferentiableReward,
    RewardFunction,
    RewardInput,
    RewardOutput,
    call,
    call_with_gradients,
)


@dataclass(frozen=True)
class WeightedReward:
    """One reward function under its name, its weight in the sum, and which of its named values counts."""

    name: str
    function: RewardFunction
    weight: float = 1.0
    value: str | None = None
    timeout_s: float = TIMEOUT

    def call(self, given: RewardInput, *, strict: bool) -> RewardOutput:
        """What it says of pictures (``protocol.call``)."""
        return call(self.name, self.function, given, value=self.value, timeout_s=self.timeout_s, strict=strict)


@dataclass(frozen=True)
class Scored:
    """Of B pictures: the weighted sum (NaN: failed), what each reward said, their parts, and why some failed."""

    values: list[float]
    by_name: Mapping[str, Sequence[float]]
    parts: Mapping[str, Sequence[float]]
    failures: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CompositeReward:
    """R = sum of weight_i R_i; with several, each part's name is prefixed by its reward's.

    on_error: raise lets the first fault end the run; drop_sample keeps the other pictures (:func:`check_failures`).
    """

    rewards: tuple[WeightedReward, ...]
    on_error: Literal["raise", "drop_sample"] = "raise"
    max_failed_share: float = 0.2

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ValueError("a composite reward needs at least one reward")

    def __call__(self, given: RewardInput) -> Scored:
        """Score pictures; raises RewardFault where any reward fails, unless failed samples are to be dropped."""
        total = [0.0] * len(given.prompts)
        by_name: dict[str, Sequence[float]] = {}
        parts: dict[str, Sequence[float]] = {}
        failures: dict[int, str] = {}
        for reward in self.rewards:
            output = self._output(reward, given)
            failures = {i: f"reward {reward.name!r} {m}" for i, m in output.errors.items()} | failures
            total = [before + reward.weight * value for before, value in zip(total, output.values, strict=True)]
            by_name[reward.name] = output.values
            prefix = f"{reward.name}/" if len(self.rewards) > 1 else ""
            if prefix:
                parts[reward.name] = output.values
            parts |= {prefix + name: numbers for name, numbers in output.parts.items()}
        return Scored(total, by_name, parts, failures)

    def _output(self, reward: WeightedReward, given: RewardInput) -> RewardOutput:
        try:
            return reward.call(given, strict=self.on_error == "raise")
        except RewardFault as fault:
            if self.on_error == "raise" or not fault.of_pictures:
                raise
            count = len(given.prompts)
            message = str(fault).removeprefix(f"reward {reward.name!r} ")
            return RewardOutput([math.nan] * count, {}, dict.fromkeys(range(count), message))

    def tried(self, given: RewardInput) -> None:
        """Score pictures that nobody drew: RewardFault where a reward raises, hangs, or gives something else.

        What it cannot judge of them it need not, where failed samples are to be dropped.
        """
        for reward in self.rewards:
            reward.call(given, strict=self.on_error == "raise")

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

    def check_failures(self, failures: Sequence[str | None]) -> None:
        """RewardFault where more pictures failed than ``max_failed_share`` of them; ``failures``: why, or None each."""
        failed = [failure for failure in failures if failure is not None]
        if len(failed) > self.max_failed_share * len(failures):
            ((message, count),) = commonest(failed, 1)
            times = "once" if count == 1 else f"{count} times"
            raise RewardFault(
                f"{len(failed)} of {counted(len(failures), 'picture')} could not be scored "
                f"({len(failed) / len(failures):.0%}), "
                f"more than reward.max_failed_share = {self.max_failed_share:g}; most often ({times}): {message}"
            )
