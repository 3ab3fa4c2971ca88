"""What is being done right now, in a few words: said from inside, heard by a terminal or by nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str], None]

_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)
_AROUND: ContextVar[str] = ContextVar("around", default="")


def say(text: str) -> None:
    """Say what begins now ("drawing, step 3 of 8"); costs nothing where nobody listens."""
    if (listener := _LISTENER.get()) is not None:
        around = _AROUND.get()
        listener(f"{around}: {text}" if around else text)


@contextmanager
def within(text: str) -> Iterator[None]:
    """Inside, everything that is said begins with ``text`` ("evaluating, 192 of 2,016 pictures")."""
    token = _AROUND.set(text)
    try:
        yield
    finally:
        _AROUND.reset(token)


@contextmanager
def heard(listener: Listener) -> Iterator[None]:
    """Inside, ``listener`` is told."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
