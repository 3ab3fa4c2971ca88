"""What a command says. Notes on the way are printed; what it is for is a ``result``, which --quiet and --json keep.

Printing never stops the work: a letter that the terminal cannot show is written as an escape, and a stream that is
closed, full or gone is not written to any more.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TextIO


def launched() -> bool:
    """Whether torchrun (or what sets its variables) started this process as one of several."""
    size = os.environ.get("WORLD_SIZE", "1").strip()
    return "RANK" in os.environ and size.isdigit() and int(size) > 1


def rank() -> int:
    """Which process of a job of several this is, by torchrun's variables; 0 for the only one."""
    number = os.environ.get("RANK", "").strip()
    return int(number) if launched() and number.isdigit() else 0


class Told(ValueError):
    """An error that another process of the job tells: this one ends without a word."""


class SafeStream(io.TextIOBase):
    """A stream to print to that raises nothing; ``None`` within (a closed stdout) drops what is written.

    ``failed`` is the first error; nothing is written after it.
    """

    def __init__(self, inner: TextIO | None) -> None:
        self.inner = inner
        self.failed: OSError | ValueError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream within; UTF-8 where it does not say."""
        return (self.inner.encoding if isinstance(self.inner, io.TextIOBase) else None) or "utf-8"

    def write(self, text: str, /) -> int:
        """Write a text, with escapes for letters that the encoding lacks."""
        if self.inner is None or self.failed is not None:
            return len(text)
        try:
            try:
                self.inner.write(text)
            except UnicodeEncodeError:
                self.inner.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.failed = error
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        if self.inner is None or self.failed is not None:
            return
        try:
            self.inner.flush()
        except (OSError, ValueError) as error:
            self.failed = error
        except AttributeError:  # somebody's own object, which can only write
            return

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        try:
            return self.inner is not None and self.inner.isatty()
        except (AttributeError, ValueError):
            return False

    def fileno(self) -> int:
        """The descriptor of the stream within; OSError where there is none."""
        if isinstance(self.inner, io.IOBase):
            return self.inner.fileno()
        raise io.UnsupportedOperation("fileno")

    def writable(self) -> bool:
        """Always: what cannot be written is dropped."""
        return True

    def lost(self) -> str | None:
        """Why what was printed has not arrived, else None; a reader who has seen enough (`head`) misses nothing."""
        self.flush()
        if not isinstance(self.failed, OSError):
            return None
        with contextlib.suppress(OSError, ValueError):  # else Python tries once more when it ends, and complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        return None if isinstance(self.failed, BrokenPipeError) else self.failed.strerror


@contextlib.contextmanager
def safe_streams() -> Iterator[SafeStream]:
    """Make printing safe inside, on both streams; yields stdout."""
    out, err = SafeStream(sys.stdout), SafeStream(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out


@dataclass
class _Told:
    """Where results go, and the figures of the JSON object."""

    json: bool
    out: TextIO
    figures: dict[str, Any] = field(default_factory=dict)


_TOLD: ContextVar[_Told | None] = ContextVar("told", default=None)


@contextlib.contextmanager
def speaking(*, quiet: bool, json: bool) -> Iterator[None]:
    """Inside, ``print`` is for notes: on stdout, with ``json`` on stderr, with ``quiet`` nowhere.

    With ``json`` the figures of all results are printed at the end as one JSON object, unless an error came before.
    """
    told = _Told(json, sys.stdout)
    notes = SafeStream(None) if quiet else sys.stderr if json else sys.stdout
    token = _TOLD.set(told)
    try:
        with contextlib.redirect_stdout(notes):
            yield
    finally:
        _TOLD.reset(token)
    if json:
        from unigrpo.files import json_line

        print(json_line(told.figures), end="", file=told.out, flush=True)


def result(text: str, /, **figures: Any) -> None:
    """Say what a command is for: words that --quiet keeps, and the same as figures for --json (plain data)."""
    told = _TOLD.get()
    if told is None:  # called from Python
        print(text, flush=True)
        return
    told.figures |= figures
    if not told.json:
        print(text, file=told.out, flush=True)


def told(error: OSError) -> str:
    """A file error in words: which file, what is wrong with it, what to do."""
    if error.errno is None:  # not the system's: what raised it has said it all
        return str(error)
    advice = {
        errno.ENOSPC: "make room there, or name another place",
        errno.EDQUOT: "make room there, or name another place",
        errno.ENAMETOOLONG: "give a shorter name",
        errno.EFBIG: "write to a place where files may be larger",
    }.get(error.errno, "look at that path, and at who may read and write it")
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{where}{error.strerror} (errno {error.errno}): {advice}"
