"""Calling rewards: in a thread of their own, so that one that hangs is a fault with a name and no frozen run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from unigrpo import doing
from unigrpo.rewards.answers import RewardFault
from unigrpo.rewards.awaiting import stop_waiting

_T = TypeVar("_T")
_Job = tuple[Callable[[], Any], "Future[Any]"]


class Worker:
    """One thread that does what it is given, in order; it ends with the program, whatever it is doing."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, action: Callable[[], _T]) -> Future[_T]:
        """Do something after what was given before; with gradients on or off as they are here, on the same device."""
        future: Future[_T] = Future()
        self._jobs.put((_as_here(action), future))
        return future

    def close(self) -> None:
        """End the thread when all that it was given is done."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            action, future = job
            if future.set_running_or_notify_cancel():
                with _at_work():
                    _settle(action, future)
            del job, action, future  # what they hold is somebody else's, until the next job comes


def _settle(action: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(action())
    except BaseException as error:  # also sys.exit of a reward: it is raised where the result is asked for
        future.set_exception(error)


_busy: set[int] = set()


@contextmanager
def _at_work() -> Iterator[None]:
    here = threading.get_ident()
    _busy.add(here)
    try:
        yield
    finally:
        _busy.discard(here)


def busy() -> bool:
    """Whether some worker is doing something; a program that ends beside one in torch's code is aborted by C++."""
    return bool(_busy)


def _as_here(action: Callable[[], _T]) -> Callable[[], _T]:
    gradients = torch.is_grad_enabled()
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def as_there() -> _T:
        if device is not None:
            torch.cuda.set_device(device)
        with torch.set_grad_enabled(gradients):
            return action()

    return as_there


_SHARED: list[Worker] = []
_workers: ContextVar[list[Worker]] = ContextVar("workers", default=_SHARED)


@contextmanager
def apart(workers: list[Worker]) -> Iterator[None]:
    """Inside, rewards are called in a thread that is kept in ``workers`` (at first empty), and not in everybody's.

    A service that runs in the process of its client would else wait for the thread that waits for it.
    """
    token = _workers.set(workers)
    try:
        yield
    finally:
        _workers.reset(token)


def abandon() -> None:
    """Leave the reward that is being asked to itself: coroutines are cancelled, the next call has a new thread."""
    _workers.get().clear()
    stop_waiting()


def within(name: str, seconds: float, action: Callable[[], _T]) -> _T:
    """What an action gives; RewardFault where it takes longer than ``seconds`` (its thread is left to itself)."""
    workers = _workers.get()
    if not workers:
        workers.append(Worker("reward"))
    worker = workers[0]
    future = worker.submit(action)
    try:
        return doing.result_of(future, seconds)
    except TimeoutError as error:
        if future.done():  # it raised a TimeoutError itself
            raise
        if workers == [worker]:  # else somebody else gave up on it before
            abandon()
        raise RewardFault(
            f"reward {name!r} did not answer within {seconds:g} s: does it hang? timeout_s of its entry in the "
            "recipe sets how long it may take",
            of_pictures=True,
        ) from error
