"""Signs: letters in the columns of one line, and what a sign says.

A sign has six columns, "1" to "6" from the left, with at most one letter each. What it says are its letters in the
order of their columns, whatever stands between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unigrpo.worlds.words.font import LETTERS

COLUMNS = ("1", "2", "3", "4", "5", "6")


@dataclass(frozen=True, slots=True)
class Placed:
    """One letter in one column; ValueError for a letter or column that the world does not have."""

    letter: str
    column: str

    def __post_init__(self) -> None:
        if self.letter not in LETTERS or self.column not in COLUMNS:
            raise ValueError(
                f"no letter {self.letter!r} in column {self.column!r}: letters are {', '.join(LETTERS)}, "
                f"columns {COLUMNS[0]} to {COLUMNS[-1]}"
            )


@dataclass(frozen=True, slots=True)
class Sign:
    """Letters in different columns. Their order is that of the plan's words; it does not change the picture."""

    letters: tuple[Placed, ...]

    def __post_init__(self) -> None:
        if len({item.column for item in self.letters}) < len(self.letters):
            raise ValueError("a column holds at most one letter: give every letter of the sign a column of its own")

    @property
    def says(self) -> str:
        """The letters in the order of their columns."""
        return "".join(item.letter for item in self.from_left().letters)

    def from_left(self) -> Sign:
        """The same sign with its letters in the order of their columns."""
        return Sign(tuple(sorted(self.letters, key=lambda item: item.column)))

    def same_picture(self, other: Sign) -> bool:
        """Whether both signs have the same letters in the same columns."""
        return set(self.letters) == set(other.letters)


def written(letters: Sequence[str], start: int) -> Sign:
    """Letters side by side from a column on (0 is the first)."""
    return Sign(tuple(Placed(letter, COLUMNS[start + place]) for place, letter in enumerate(letters)))
