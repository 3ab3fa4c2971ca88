"""What is being done right now, in a few words: said from inside, heard by a terminal or by nobody.

Where something is said is also where work may be broken off, if whoever runs it wants that (:func:`checked`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Listener = Callable[[str], None]

Check = Callable[[], None]
POLL = 0.1
"""Seconds between two looks at whether to go on waiting."""

_T = TypeVar("_T")
_CHECK: ContextVar[Check | None] = ContextVar("check", default=None)
_BREAKABLE: ContextVar[bool] = ContextVar("breakable", default=False)
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)
_AROUND: ContextVar[str] = ContextVar("around", default="")
_LATEST: ContextVar[str] = ContextVar("latest", default="")


class GivenUp(BaseException):
    """What is being done takes too long for whoever asked to stop. Not an Exception: it is nobody's fault to handle."""


def look() -> None:
    """Break off (:class:`GivenUp`) where it is wanted, and where nobody else waits for this to be finished."""
    if (check := _CHECK.get()) is not None and _BREAKABLE.get():
        check()


@contextmanager
def checked(check: Check) -> Iterator[None]:
    """Inside, ``check`` is asked again and again, and raises :class:`GivenUp` to break off."""
    token = _CHECK.set(check)
    try:
        yield
    finally:
        _CHECK.reset(token)


@contextmanager
def breakable(allowed: bool) -> Iterator[None]:
    """Inside, work may be broken off, or must not be because others keep step with it."""
    token = _BREAKABLE.set(allowed)
    try:
        yield
    finally:
        _BREAKABLE.reset(token)


def result_of(future: Future[_T], seconds: float | None = None) -> _T:
    """What a future gives, within ``seconds`` (else TimeoutError); waiting may be broken off, too."""
    end = None if seconds is None else time.monotonic() + seconds
    while not future.done():
        left = POLL if end is None else min(POLL, end - time.monotonic())
        if left <= 0:
            break
        look()
        wait([future], left)
    return future.result(0)


def say(text: str) -> None:
    """Say what begins now ("drawing, step 3 of 8"); costs nothing where nobody listens."""
    look()
    _LATEST.set(text)
    if (listener := _LISTENER.get()) is not None:
        around = _AROUND.get()
        listener(f"{around}: {text}" if around else text)


def latest() -> str:
    """What was said last, by this thread, since :func:`forget`."""
    return _LATEST.get()


def forget() -> None:
    """Something else begins: what was said last was of what went before."""
    _LATEST.set("")


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
