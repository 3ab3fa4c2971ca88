"""An error of a user's own code in words: what it was, and where, without the frames of ours that led there."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

OURS = Path(__file__).parent
CALLERS = ("protocol.py", "loading.py", "making.py", "awaiting.py", "calling.py", "serving.py", "doing.py")
"""The files of this package that call what users write."""
LIBRARIES = tuple(str(Path(os.__file__).parent / name) for name in ("asyncio", "concurrent"))
SHOWN = 5  # frames at either end of a long traceback


def explain(error: BaseException) -> str:
    """What was raised, then file, line and text of every frame below our call; a ValueError of ours needs no frames."""
    if isinstance(error, SyntaxError):
        said = "".join(traceback.format_exception_only(error)).rstrip()
    else:
        said = f"{type(error).__name__}: {error}"
    frames = _below_our_call(traceback.extract_tb(error.__traceback__))
    if isinstance(error, ValueError) and all(_is_ours(frame) for frame in frames):
        return said
    lines = traceback.StackSummary.from_list(frames).format()
    if len(lines) > 2 * SHOWN:
        lines = [*lines[:SHOWN], f"  ... {len(lines) - 2 * SHOWN} more ...\n", *lines[-SHOWN:]]
    return "\n".join([said, "".join(lines).rstrip()]) if lines else said


def _below_our_call(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """The frames after the leading ones, which are ours and those of the machinery that we call by."""
    for number, frame in enumerate(frames):
        if not _is_machinery(frame):
            return frames[number:]
    return []


def _is_machinery(frame: traceback.FrameSummary) -> bool:
    caller = _is_ours(frame) and os.path.basename(frame.filename) in CALLERS
    return caller or frame.filename.startswith(LIBRARIES) or frame.filename.startswith("<frozen importlib")


def _is_ours(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(str(OURS) + os.sep)
