"""Asking a service again: how long to wait between tries, and when to leave it alone for a while."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST, LONGEST = 0.5, 20.0
"""Seconds before the second try, and between any two."""


def backoff(attempt: int, *, first: float = FIRST, longest: float = LONGEST) -> float:
    """Seconds to wait after try ``attempt`` (0, 1, ...): uniform in [1/2, 1] of min(longest, first * 2^attempt).

    The draw keeps clients that failed together from coming back together; it changes no number of a run.
    """
    return min(longest, first * 2.0 ** min(attempt, 30)) * (0.5 + 0.5 * random.random())


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that an answer asks to wait (``Retry-After``: a number, or a date); 0 where it does not."""
    said = headers.get("retry-after", "").strip()
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):  # nothing that is a date; without a time zone; year 99999
            return 0.0
    return seconds if 0.0 < seconds < float("inf") else 0.0


class Breaker:
    """A circuit breaker: after ``limit`` failures in a row only one request at a time tries whether a service is back.

    Between these tries ``pause`` seconds pass, twice as many after each up to ``longest``; all others wait. So an
    outage costs a service a few requests, and those that wait no tries. One for an event loop.
    """

    def __init__(self, limit: int = 10, pause: float = 1.0, longest: float = 30.0, name: str = "") -> None:
        """name: of the service, for notes on stderr: that it is waited for, and that it is back."""
        self.limit, self.first, self.longest, self.name = limit, pause, longest, name
        self.failures, self.pause, self.until, self.held, self.trying = 0, pause, 0.0, 0.0, False

    @property
    def is_open(self) -> bool:
        """Whether the service counts as being out."""
        return self.failures >= self.limit

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until a request may be made; it is made inside; :meth:`worked` or :meth:`failed` says how it went."""
        now = asyncio.get_running_loop().time
        while now() < self.held or (self.is_open and (self.trying or now() < self.until)):
            await asyncio.sleep(max(0.02, min(1.0, max(self.held, self.until) - now())))
        trial = self.trying = self.is_open
        try:
            yield
        finally:
            if trial:  # cancelled ones, too
                self.trying = False

    def hold(self, seconds: float) -> None:
        """Let nobody ask for so long: the service has said that it wants this time (``Retry-After``)."""
        self.held = max(self.held, asyncio.get_running_loop().time() + seconds)

    def worked(self) -> None:
        """The service answered."""
        if self.is_open:
            self._note("answers again")
        self.failures, self.pause = 0, self.first

    def failed(self) -> None:
        """The service was not there, or broken."""
        self.failures += 1
        if self.failures == self.limit:
            self._note("does not answer: it is asked again until it does, or until deadline_s")
        if self.trying or self.failures == self.limit:
            self.until = asyncio.get_running_loop().time() + self.pause
            self.pause = min(self.longest, 2.0 * self.pause)

    def _note(self, text: str) -> None:
        if self.name:
            print(f"note: {self.name} {text}", file=sys.stderr, flush=True)
