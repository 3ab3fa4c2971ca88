"""What a reward may answer, and nothing else: one number for each picture, as a sequence, an array or a tensor."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from unigrpo.plurals import counted

ALLOWED = (
    "a list, a NumPy array or a tensor of one number per picture, a dict of such lists by name, or "
    "RewardOutput(values, parts)"
)


SOME_PICTURE = "for a picture"
"""Stands in a fault where, of a single picture, its place and prompt are told."""
NO_NUMBER = "it must be a finite number"


class RewardFault(ValueError):
    """A reward failed, or gave NaN or infinity; the message names the reward, the picture and what it gave.

    of_pictures: it could not judge these pictures (it raised, it hung); else it is no reward (a wrong number of them).
    errors: what it said of single pictures, by their place among those that it was given.
    """

    def __init__(
        self, message: str, *, of_pictures: bool = False, errors: Mapping[int, str] = MappingProxyType({})
    ) -> None:
        super().__init__(message)
        self.of_pictures, self.errors = of_pictures, errors


def alike(message: str) -> str:
    """A failure's message without what differs from picture to picture: quoted texts and numbers."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d[\d.]*", "...", message)


def commonest(messages: Iterable[str], most: int) -> list[tuple[str, int]]:
    """The commonest kinds of failure (:func:`alike`): the first message of each, and how often it was."""
    kinds: dict[str, list[str]] = {}
    for message in messages:
        kinds.setdefault(alike(message), []).append(message)
    return [(same[0], len(same)) for same in sorted(kinds.values(), key=len, reverse=True)[:most]]


def read_numbers(what: str, answer: Any, count: int) -> tuple[list[float], dict[int, str]]:
    """One float per picture, and for each that is no finite number (NaN here) what was given instead.

    RewardFault says what else ``what`` (a reward, or a part of one) gave than one entry per picture. Numbers are those
    of Python (also Decimal and Fraction), of NumPy, and tensors of one number. Arrays and tensors are [B] or [B, 1] of
    a real type.
    """
    values = _sequence(what, answer)
    if len(values) != count:
        raise RewardFault(f"{what} gave {counted(len(values), 'value')} for {counted(count, 'picture')}")
    numbers = [_number(value) for value in values]
    return numbers, {i: _fault(values[i]) for i, number in enumerate(numbers) if not math.isfinite(number)}


def _sequence(what: str, answer: Any) -> Sequence[Any]:
    if isinstance(answer, Tensor | np.ndarray):
        return _flat(what, answer)
    if isinstance(answer, Sequence) and not isinstance(answer, str | bytes | bytearray | memoryview):
        return answer
    raise RewardFault(f"{what} gave {_described(answer)}: it must give {ALLOWED}")


def _described(answer: Any) -> str:
    """What an answer is that is none."""
    match answer:
        case None:
            return "nothing (None; is a return missing?)"
        case str() | bytes():
            return f"the text {answer[:40]!r}"
        case bool() | numbers.Number():
            return f"one number for all pictures ({answer})"
        case Mapping():
            return f"a mapping with the keys {', '.join(map(repr, list(answer)[:5]))}"
        case set() | frozenset():
            return "a set, which has no order"
        case _:
            return f"an object of the type {type(answer).__name__}"


def _flat(what: str, array: Tensor | np.ndarray) -> list[Any]:
    """The numbers of an array or tensor [B] or [B, 1]."""
    kind, shape = "a tensor" if isinstance(array, Tensor) else "an array", list(array.shape)
    if fault := _type_fault(array):
        raise RewardFault(f"{what} gave {kind} {fault}")
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
        raise RewardFault(f"{what} gave {kind} of shape {shape}: it must give one number per picture, [B] or [B, 1]")
    if isinstance(array, Tensor):
        return array.detach().to_dense().double().reshape(-1).tolist()
    return array.reshape(-1).tolist()


def _type_fault(array: Tensor | np.ndarray) -> str | None:
    """Why an array or tensor holds no real numbers."""
    if isinstance(array, np.ndarray):
        real = array.dtype.kind in "fiu"
    elif array.is_meta:
        return "on the meta device, which holds no numbers: compute it on a real one"
    else:
        real = not (array.is_complex() or array.is_quantized or str(array.dtype) == "torch.bool")
    return None if real else f"of {array.dtype}: it must hold real numbers, such as float32"


def _number(value: Any) -> float:
    """One answer as a float; NaN for what is no finite number."""
    number = math.nan
    try:
        if isinstance(value, Tensor | np.ndarray):
            number = float(value.item()) if _type_fault(value) is None else math.nan
        elif isinstance(value, numbers.Real | Decimal) and not isinstance(value, bool):
            number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # not one number; too large; a signalling NaN
        pass
    return number if math.isfinite(number) else math.nan


def _fault(value: Any) -> str:
    """What is wrong with an answer that is no finite number."""
    hint = "; for a verdict write float(...)" if isinstance(value, bool | np.bool_) else ""
    return f"gave {_shown(value)} {SOME_PICTURE}: {NO_NUMBER}{hint}"


def no_number(failure: str) -> bool:
    """Whether a picture failed because a reward gave something else than a finite number for it."""
    return f"{SOME_PICTURE}: {NO_NUMBER}" in failure


def _shown(value: Any) -> str:
    """A value in at most 60 letters."""
    try:
        text = str(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "an integer of thousands of digits"
    return text if len(text) <= 60 else f"{text[:60]}..."


def one_each(scores: Any) -> Tensor:
    """The scores [B] or [B, 1] of a differentiable reward as [B]; TypeError for what is no tensor."""
    if not isinstance(scores, Tensor):
        raise TypeError(f"score gave an object of the type {type(scores).__name__}: it must give a tensor [B]")
    return scores[:, 0] if scores.ndim == 2 and scores.shape[1] == 1 else scores
