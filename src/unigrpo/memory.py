"""Out of memory, in words: in which phase of the work it was, and what to turn down (whoever knows that says it)."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from unigrpo import doing
from unigrpo.ranges import ConfigError

Advice = Callable[[str], str]
"""From a phase to what to turn down in it, in which order."""

_FULL = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|HIP out of memory|MPS backend out of memory|ALLOC_FAILED"
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory|Error out of memory at line|cudaErrorMemoryAllocation"
)
"""How torch, its libraries and bitsandbytes say it where the exception is a plain RuntimeError."""
_ADVICE: ContextVar[Advice | None] = ContextVar("advice", default=None)
_PHASE: ContextVar[str] = ContextVar("phase", default="")


class OutOfMemory(ConfigError):
    """There was no room for what was to be computed; the message says where, and what to turn down."""


def is_full(error: BaseException) -> bool:
    """Whether an exception says that memory is full: torch's own, Python's, or a RuntimeError of a library."""
    if isinstance(error, OutOfMemory):
        return False
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _FULL.search(str(error)) is not None


def told(error: Exception) -> Exception:
    """The error as a person reads it: :class:`OutOfMemory` with phase and advice, or any other as it is."""
    if not is_full(error):
        return error
    phase, now, advice = _PHASE.get(), doing.latest(), _ADVICE.get()
    where = f" while {phase}" if phase else ""
    where += f" ({now})" if now else ""
    first = " ".join(str(error).split())[:160].rstrip(". ")
    what = f": {first}" if first else ""
    most = f"; {peak}" if (peak := peak_here()) else ""
    then = advice(phase) if advice is not None else "draw fewer pictures at a time (--batch), or take a smaller model"
    made = OutOfMemory(f"out of memory{where}{what}{most}. {then}")
    made.__cause__ = error
    return made


def peak_here() -> str:
    """The most that was held at once so far, in words: on this process's GPU, else of the process; "" if not known."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        held, there = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties().total_memory
        return f"at most {held / 1e9:.1f} of the GPU's {there / 1e9:.1f} GB were held"
    if sys.platform == "win32":
        return ""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return f"this process has held {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB"


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Inside, a full memory is told as of this phase ("updating"); of nested ones, the inner."""
    token = _PHASE.set(name)
    doing.forget()
    try:
        yield
    except Exception as error:
        if (clear := told(error)) is not error:
            raise clear from error
        raise
    finally:
        _PHASE.reset(token)


@contextmanager
def advised(advice: Advice) -> Iterator[None]:
    """Inside, ``advice`` says what to turn down."""
    token = _ADVICE.set(advice)
    try:
        yield
    finally:
        _ADVICE.reset(token)
