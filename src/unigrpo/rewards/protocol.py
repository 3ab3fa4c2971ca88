"""What a reward is: pictures and what was asked of them in, one number per picture out; a failure is never a zero."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unigrpo.frames import explain
from unigrpo.rewards.answers import RewardFault as RewardFault
from unigrpo.rewards.answers import one_each, read_numbers
from unigrpo.rewards.awaiting import wait_for
from unigrpo.trajectory import Prompt


@dataclass(frozen=True)
class RewardOutput:
    """values: one per picture; parts: named per-picture numbers for people; errors: message by picture index."""

    values: Sequence[float]
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    errors: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardInput:
    """images float32 [B, 3, H, W] in [0, 1], already quantised as a PNG would be; the prompts' texts and metadata
    (:func:`metadata_of`); thinking: what the model wrote before drawing (None: it does not think)."""

    images: Tensor
    prompts: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]
    thinking: Sequence[str | None]


RewardFunction = Callable[
    [Tensor, Sequence[str], Sequence[Mapping[str, Any]], Sequence[str | None]], "RewardOutput | Sequence[float]"
]
"""(images, prompts, metadata, thinking) -> RewardOutput, or plainly a list, an array or a tensor of numbers."""


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
            return RewardOutput(one_each(self.score(images, prompts, metadata)).tolist())


def metadata_of(prompts: Sequence[Prompt]) -> list[Mapping[str, Any]]:
    """What rewards are told of prompts: their metadata; where pictures were given, these under ``images`` too.

    ``images`` is a list of float32 [3, H, W] in [0, 1], each of its own size, in the order of the prompt.
    """
    shown = {id(p): [picture.float() / 255.0 for picture in p.images] for p in prompts if p.images}
    return [{**p.metadata, "images": shown[id(p)]} if p.images else p.metadata for p in prompts]


def call(name: str, function: RewardFunction, given: RewardInput) -> RewardOutput:
    """Call a reward and read its answer: one finite number per picture, or RewardFault names the first fault.

    The reward may be a coroutine. It gets pictures and metadata that nobody else holds, to do with as it likes.
    """
    own = own_copy(given)
    with faults_of(name):
        answer = function(own.images, own.prompts, own.metadata, own.thinking)
        if inspect.isawaitable(answer):
            answer = wait_for(answer)
    output = answer if isinstance(answer, RewardOutput) else RewardOutput(answer)
    _check_form(name, output)
    _check_errors(name, output, given)
    values = read_numbers(f"reward {name!r}", output.values, given.prompts)
    parts = {p: read_numbers(f"part {p!r} of reward {name!r}", v, given.prompts) for p, v in output.parts.items()}
    return RewardOutput(values, parts)


def call_with_gradients(
    name: str,
    function: DifferentiableReward,
    images: Tensor,
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
) -> Tensor:
    """The scores [B] of a reward with gradients into the pictures; it gets copies, as in :func:`call`."""
    with faults_of(name):
        # the gradient goes through the clone
        scores = one_each(function.score(images.clone(), list(prompts), [copy.deepcopy(m) for m in metadata]))
    if scores.shape != (len(prompts),):
        raise RewardFault(f"reward {name!r} gave a tensor of shape {list(scores.shape)} for {len(prompts)} pictures")
    return scores


def own_copy(given: RewardInput) -> RewardInput:
    """Pictures and metadata that share nothing with the given ones, nor those of one picture with another's."""
    metadata = [copy.deepcopy(m) for m in given.metadata]
    return RewardInput(given.images.clone(), list(given.prompts), metadata, list(given.thinking))


@contextmanager
def faults_of(name: str) -> Iterator[None]:
    """Whatever a reward raises (sys.exit too) becomes a RewardFault with the lines of the reward's own code."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise RewardFault(f"reward {name!r} raised {explain(error)}") from error


def _check_form(name: str, output: RewardOutput) -> None:
    """RewardFault where parts or errors of an output are no mappings of the right kind."""
    if not isinstance(output.parts, Mapping) or not all(isinstance(part, str) for part in output.parts):
        raise RewardFault(f"reward {name!r} gave parts that are no mapping of a name to numbers: {output.parts!r:.60}")
    if not isinstance(output.errors, Mapping) or not all(isinstance(index, int) for index in output.errors):
        raise RewardFault(f"reward {name!r} gave errors that are no mapping of a picture's index to a message")


def _check_errors(name: str, output: RewardOutput, given: RewardInput) -> None:
    count = len(given.prompts)
    if not output.errors:
        return
    index, message = next(iter(output.errors.items()))
    where = f"picture {index} ({given.prompts[index]!r})" if 0 <= index < count else f"picture {index}"
    raise RewardFault(f"reward {name!r} failed on {len(output.errors)} of {count} pictures; {where}: {message}")
