"""What a reward is: pictures and what was asked of them in, one number per picture out; a failure is never a zero."""

from __future__ import annotations

import copy
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unigrpo import memory
from unigrpo.frames import explain
from unigrpo.plurals import counted
from unigrpo.ranges import did_you_mean
from unigrpo.rewards.answers import SOME_PICTURE, one_each, read_numbers
from unigrpo.rewards.answers import RewardFault as RewardFault
from unigrpo.rewards.awaiting import wait_for
from unigrpo.rewards.calling import within
from unigrpo.trajectory import Prompt


@dataclass(frozen=True)
class RewardOutput:
    """values: one per picture; parts: further named values; errors: why a picture could not be judged, by its index.

    A recipe chooses one of the parts with ``value: NAME``. The values of pictures in ``errors`` are not looked at.
    """

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


SOURCES = "images"
"""The key of metadata under which a reward finds the pictures that the prompt gave (edits)."""


def metadata_of(prompts: Sequence[Prompt]) -> list[Mapping[str, Any]]:
    """What rewards are told of prompts: their metadata; where pictures were given, these under ``images`` too.

    ``images`` is a list of float32 [3, H, W] in [0, 1], each of its own size, in the order of the prompt.
    """
    shown = {id(p): [picture.float() / 255.0 for picture in p.images] for p in prompts if p.images}
    return [{**p.metadata, SOURCES: shown[id(p)]} if p.images else p.metadata for p in prompts]


TIMEOUT = 600.0
"""Seconds that one call of a reward may take, unless a recipe says otherwise."""


def call(
    name: str,
    function: RewardFunction,
    given: RewardInput,
    *,
    value: str | None = None,
    timeout_s: float = TIMEOUT,
    strict: bool = True,
) -> RewardOutput:
    """Call a reward and read its answer: one finite number per picture, or RewardFault names the first fault.

    The reward may be a coroutine. It gets pictures and metadata that nobody else holds, to do with as it likes.
    ``value``: which of its named values counts (None: what it gives plainly). Unless ``strict``, pictures that it could
    not judge have NaN, and the reason in ``errors``; what raises, hangs or gives no entry for each is a fault all the
    same.
    """
    own = own_copy(given)

    def answered() -> Any:
        try:
            answer = function(own.images, own.prompts, own.metadata, own.thinking)
            return wait_for(answer) if inspect.isawaitable(answer) else answer
        except KeyboardInterrupt as error:  # its own: Ctrl-C comes to the main thread, and this is another
            raise RewardFault(f"reward {name!r} raised KeyboardInterrupt", of_pictures=True) from error

    with faults_of(name):
        answer = within(name, timeout_s, answered)
    output = read(name, answer, len(given.prompts), value)
    if output.errors and strict:
        raise RewardFault(_told(name, output.errors, given.prompts), errors=output.errors)
    return output


def read(name: str, answer: Any, count: int, value: str | None = None) -> RewardOutput:
    """Read what a reward gave for ``count`` pictures (see :func:`call`)."""
    output = answer if isinstance(answer, RewardOutput) else _named(name, answer, value)
    _check_form(name, output)
    values, errors = read_numbers(f"reward {name!r}", _chosen(name, output, value, count), count)
    parts = {}
    for part, given in output.parts.items():
        parts[part], wrong = read_numbers(f"part {part!r} of reward {name!r}", given, count)
        errors = {i: f"{message} (its part {part!r})" for i, message in wrong.items()} | errors
    errors |= {i: str(message) for i, message in output.errors.items()}  # what the reward says goes first
    if outside := [i for i in errors if not 0 <= i < count]:
        raise RewardFault(f"reward {name!r} gave an error for picture {outside[0]}, and there are {count}: {errors}")
    return RewardOutput([math.nan if i in errors else v for i, v in enumerate(values)], parts, errors)


def _told(name: str, errors: Mapping[int, str], prompts: Sequence[str]) -> str:
    """What an error says of pictures that a reward could not judge."""
    index, message = next(iter(errors.items()))
    where = f"picture {index} ({prompts[index]!r})"
    if SOME_PICTURE in message:
        return f"reward {name!r} {message.replace(SOME_PICTURE, f'for {where}')}"
    return f"reward {name!r} failed on {len(errors)} of {counted(len(prompts), 'picture')}; {where}: {message}"


def _named(name: str, answer: Any, value: str | None) -> RewardOutput:
    """Plain values, or several by name."""
    if not isinstance(answer, Mapping):
        return RewardOutput(answer)
    if not answer or not all(isinstance(part, str) for part in answer):
        raise RewardFault(f"reward {name!r} gave a mapping that is none of names to numbers: {answer!r:.60}")
    if value is None and len(answer) > 1:
        raise RewardFault(
            f"reward {name!r} gives several values ({', '.join(answer)}): say which one counts, with value: NAME"
        )
    return RewardOutput(next(iter(answer.values())), answer)


def _chosen(name: str, output: RewardOutput, value: str | None, count: int) -> Sequence[float]:
    if value is None or len(output.errors) == count:  # where none could be judged, there may be no parts
        return output.values
    if value not in output.parts:
        known, near = ", ".join(output.parts) or "none", did_you_mean(value, list(output.parts))
        raise RewardFault(f"reward {name!r} has no value {value!r}{near}; it has: {known}")
    return output.parts[value]


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
        many = counted(len(prompts), "picture")
        raise RewardFault(f"reward {name!r} gave a tensor of shape {list(scores.shape)} for {many}")
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
    except RewardFault:
        raise
    except (Exception, SystemExit) as error:
        if memory.is_full(error):  # not what is wrong with these pictures
            raise
        raise RewardFault(f"reward {name!r} raised {explain(error)}", of_pictures=True) from error


def _check_form(name: str, output: RewardOutput) -> None:
    """RewardFault where parts or errors of an output are no mappings of the right kind."""
    if not isinstance(output.parts, Mapping) or not all(isinstance(part, str) for part in output.parts):
        raise RewardFault(f"reward {name!r} gave parts that are no mapping of a name to numbers: {output.parts!r:.60}")
    if not isinstance(output.errors, Mapping) or not all(isinstance(index, int) for index in output.errors):
        raise RewardFault(f"reward {name!r} gave errors that are no mapping of a picture's index to a message")
