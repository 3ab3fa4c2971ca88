"""One piece of work at a time beside training: a checkpoint that is being written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Background:
    """A thread that works while training goes on; its error is kept until somebody looks.

    ``seconds`` is how long the longest piece of work took.
    """

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.seconds = 0.0

    def begin(self, work: Callable[[], object]) -> None:
        """Start a piece of work; the one before must have been waited for."""
        assert not self.busy, "the checkpoint before this one is still being written"
        self.error = None
        # nothing of it is left over: every way out of a run waits (Saver.end)
        self.thread = threading.Thread(target=self._run, args=(work,), name="checkpoint", daemon=True)
        self.thread.start()

    def _run(self, work: Callable[[], object]) -> None:
        started = time.perf_counter()
        try:
            work()
        except Exception as error:
            self.error = error
        self.seconds = max(self.seconds, time.perf_counter() - started)

    @property
    def busy(self) -> bool:
        """Whether it is still working."""
        return self.thread is not None and self.thread.is_alive()

    def wait(self) -> None:
        """Until it has finished, well or not."""
        if self.thread is not None:
            self.thread.join()

    def check(self) -> None:
        """Raise what the finished work has failed with, once."""
        error, self.error = self.error, None
        if error is not None:
            raise error
