"""What one check of ``unigrpo doctor`` found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["ok", "note", "failed"]


@dataclass(frozen=True)
class Finding:
    """The answer of one check: a verdict, what was seen, what to do about it, and the same as plain data.

    note: works, but could be better; failed: something that a run needs does not work. Whoever fails says what to do.
    """

    check: str
    verdict: Verdict
    said: str
    todo: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict == "failed" and not self.todo:
            raise ValueError(f"the check {self.check} failed and does not say what to do")

    def as_figures(self) -> dict[str, Any]:
        """The finding for ``--json``."""
        return {
            "check": self.check,
            "verdict": self.verdict,
            "said": self.said,
            "todo": self.todo,
            "figures": dict(self.figures),
        }


def first_line(error: BaseException) -> str:
    """An exception in one short line."""
    words = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__


def gigabytes(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
