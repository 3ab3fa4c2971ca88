"""Numbers of things in words for people: 1 iteration, 2 iterations."""

from __future__ import annotations

SIBILANTS = ("ch", "sh", "s", "x", "z")
HARD = ("epoch",)
"""Nouns that end in a k, though it is written ch."""


def counted(number: int, noun: str, form: str = "") -> str:
    """``number`` of a regular noun, as "1 batch", "2 batches", "3 tries"; ``form``: of the number (",": 1,000)."""
    return f"{number:{form}} {plural(noun) if number != 1 else noun}"


def plural(noun: str) -> str:
    """Of a regular noun, which may have words before it ("grid point")."""
    if noun.endswith(SIBILANTS) and not noun.endswith(HARD):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"
