"""What a reward is: pictures and what was asked of them in, one number per picture out; a failure is never a zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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


def call(name: str, function: RewardFunction, given: RewardInput) -> RewardOutput:
    """Call a reward and check its answer: one finite number per picture, or RewardFault names the first fault."""
    count = len(given.prompts)
    try:
        answer = function(given.images, given.prompts, given.metadata, given.thinking)
    except Exception as error:
        raise RewardFault(f"reward {name!r} raised {type(error).__name__}: {error}") from error
    output = answer if isinstance(answer, RewardOutput) else RewardOutput(list(answer))
    if output.errors:
        index, message = next(iter(output.errors.items()))
        raise RewardFault(
            f"reward {name!r} failed on {len(output.errors)} of {count} pictures; picture {index} "
            f"({given.prompts[index]!r}): {message}"
        )
    if len(output.values) != count:
        raise RewardFault(f"reward {name!r} gave {len(output.values)} values for {count} pictures")
    for index, value in enumerate(output.values):
        if not math.isfinite(value):
            raise RewardFault(
                f"reward {name!r} gave {value} for picture {index} ({given.prompts[index]!r}): "
                "it must be a finite number"
            )
    return output
