"""The trajectories that a number which is not finite came from: named where it is found, kept by whoever listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from unigrpo.trajectory import Trajectory

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["reward", "advantage", "rollout", "loss", "gradient", "ratio"]


@dataclass(frozen=True)
class Suspects:
    """One event: what was not finite, why in a sentence, and the trajectories, the likeliest first.

    pictures: theirs, uint8 [B, 3, H, W]; None: not at hand (they can be decoded again).
    """

    kind: Kind
    why: str
    trajectories: Sequence[Trajectory]
    pictures: Tensor | None = None


_LISTENER: ContextVar[Callable[[Suspects], None] | None] = ContextVar("suspects", default=None)


def note(kind: Kind, why: str, trajectories: Sequence[Trajectory], pictures: Tensor | None = None) -> None:
    """Name the trajectories of one event (:class:`Suspects`); costs nothing where nobody listens."""
    if trajectories and (listener := _LISTENER.get()) is not None:
        listener(Suspects(kind, why, trajectories, pictures))


@contextmanager
def kept(listener: Callable[[Suspects], None]) -> Iterator[None]:
    """Inside, ``listener`` is told of every event."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
