"""Rewards that are coroutines: awaited on one event loop of our own, in a thread of its own.

The caller may itself run inside a loop (a notebook does), where nothing else can be waited for; and what a reward keeps
from call to call (a client's open connections) belongs to the loop that it was made on, so there is only one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from concurrent.futures import Future
from functools import cache
from typing import Any

import torch

_waiting: set[Future[Any]] = set()


def wait_for(answer: Awaitable[Any]) -> Any:
    """What an awaitable gives; its exceptions are raised here."""
    future = asyncio.run_coroutine_threadsafe(_without_gradients(answer), _loop())
    _waiting.add(future)
    try:
        return future.result()
    except BaseException:  # Ctrl-C while waiting, too
        future.cancel()
        raise
    finally:
        _waiting.discard(future)


def stop_waiting() -> None:
    """Cancel what is awaited, for whoever gave up on it in another thread."""
    for future in list(_waiting):
        future.cancel()


async def _without_gradients(answer: Awaitable[Any]) -> Any:
    with torch.no_grad():  # another thread starts with gradients on, whatever the caller has
        return await answer


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
    return loop
