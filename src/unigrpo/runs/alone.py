"""A process that is one run's alone: verbs that several ranks would only do several times, and how it is ended early.

Imports nothing heavy: signals are seen to before torch is read.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from unigrpo.output import launched
from unigrpo.ranges import ConfigError


def refuse_ranks(what: str) -> None:
    """ConfigError under torchrun with more than one process: each would be a whole copy of ``what``."""
    if launched():
        size = os.environ["WORLD_SIZE"]
        raise ConfigError(
            f"WORLD_SIZE is {size} (torchrun): {what} works in one process, and {size} copies would do the same work; "
            "start it without torchrun (or unset RANK and WORLD_SIZE); unigrpo train and eval share their work"
        )


class Ended(KeyboardInterrupt):
    """A scheduler's SIGTERM or a closed terminal's SIGHUP while nothing is trained: all is put away as for Ctrl-C."""


def orderly() -> list[int]:
    """The signals whose sender asks for an orderly end."""
    return [signal.SIGTERM] if sys.platform == "win32" else [signal.SIGTERM, signal.SIGHUP]


@contextlib.contextmanager
def ending_well() -> Iterator[None]:
    """Inside, such signals raise :class:`Ended`, while a model loads for example; training has handlers of its own.

    Those that somebody has asked to ignore (nohup) stay ignored. Only the main thread can have handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        raise Ended(
            f"stopped by {signal.Signals(number).name} while nothing was being trained: nothing is half-written, and "
            "the same command begins again (of a run that had begun, add --resume)"
        )

    wanted = [number for number in orderly() if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in wanted}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)  # None: not installed by Python
