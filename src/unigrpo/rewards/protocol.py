"""What a reward is: pictures and what was asked of them in, one number per picture out; a failure is never a zero."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class RewardFault(ValueError):
    """A reward failed, or gave NaN or infinity; the message names the reward, the picture and what it gave."""


@dataclass(frozen=True)
class RewardOutput:
    """values: one per picture; parts: named per-picture numbers for people; errors: message by picture index."""

    values: Sequence[float]
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    errors: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardInput:
    """images float32 [B, 3, H, W] in [0, 1], already quantised as a PNG would be; the prompts' texts and metadata;
    thinking: what the model wrote before drawing (None: it does not think)."""

    images: Tensor
    prompts: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]
    thinking: Sequence[str | None]


RewardFunction = Callable[
    [Tensor, Sequence[str], Sequence[Mapping[str, Any]], Sequence[str | None]], "RewardOutput | Sequence[float]"
]
"""(images, prompts, metadata, thinking) -> RewardOutput, or plainly a list of numbers."""


class DifferentiableReward(ABC):
    """A reward whose gradient reaches the pixels, as ReFL needs it; called plainly it is a reward like any other."""

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """One number per picture, fp32 [B], of pictures float [B, 3, H, W] in [0, 1], with gradients into them."""

    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        thinking: Sequence[str | None],
    ) -> RewardOutput:
        """The same numbers without gradients."""
        with torch.no_grad():
            return RewardOutput(self.score(images, prompts, metadata).tolist())


def call(name: str, function: RewardFunction, given: RewardInput) -> RewardOutput:
    """Call a reward and check its answer: one finite number per picture, or RewardFault names the first fault."""
    try:
        answer = function(given.images, given.prompts, given.metadata, given.thinking)
        output = answer if isinstance(answer, RewardOutput) else RewardOutput(list(answer))
    except Exception as error:
        raise RewardFault(f"reward {name!r} raised {type(error).__name__}: {error}") from error
    _check_errors(name, output, given)
    _check_numbers(f"reward {name!r}", output.values, given)
    for part, values in output.parts.items():
        _check_numbers(f"part {part!r} of reward {name!r}", values, given)
    return output


def _check_errors(name: str, output: RewardOutput, given: RewardInput) -> None:
    count = len(given.prompts)
    if not output.errors:
        return
    index, message = next(iter(output.errors.items()))
    where = f"picture {index} ({given.prompts[index]!r})" if 0 <= index < count else f"picture {index}"
    raise RewardFault(f"reward {name!r} failed on {len(output.errors)} of {count} pictures; {where}: {message}")


def _check_numbers(what: str, values: Sequence[float], given: RewardInput) -> None:
    if len(values) != len(given.prompts):
        raise RewardFault(f"{what} gave {len(values)} values for {len(given.prompts)} pictures")
    for index, value in enumerate(values):
        if not _is_finite(value):
            raise RewardFault(
                f"{what} gave {value} for picture {index} ({given.prompts[index]!r}): it must be a finite number"
            )


def _is_finite(value: object) -> bool:
    """Whether it is a finite number of any kind (python's, numpy's, a tensor of one element)."""
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
