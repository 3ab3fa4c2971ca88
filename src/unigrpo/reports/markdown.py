"""Markdown, as the paper's tables need it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NONE = "–"
"""What stands where there is no figure."""


def table(head: Sequence[str], lines: Iterable[Sequence[str]], alignment: str) -> str:
    """A Markdown table; alignment: l or r per column."""
    rule = ["---:" if side == "r" else "---" for side in alignment]
    rows = [head, rule, *([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def code(text: str) -> str:
    """Text as code, whatever backticks it holds."""
    fence = "``" if "`" in text else "`"
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def bullets(items: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"* {item}" for item in items)


def joined(parts: Iterable[str]) -> str:
    """Paragraphs with an empty line between them; empty ones are left out."""
    return "\n\n".join(part for part in parts if part) + "\n"
