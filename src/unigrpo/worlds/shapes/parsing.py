"""Understanding prompts that people type: from words to the metadata that the verifier judges by."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any, NoReturn

from unigrpo.worlds.shapes.prompts import RELATION_PHRASES, Combination
from unigrpo.worlds.shapes.scenes import CELLS, COLOURS, NUMBERS, PLURALS, RELATIONS, SHAPES, Kind

SYSTEM_WORDS = ("think", "then", "draw")
THINK, END_THINK = "<think>", "</think>"
_OPENINGS = (("draw",), ("there", "is"), ("there", "are"), ("both",), ("exactly",))
_SINGULARS = {PLURALS[shape]: shape for shape in SHAPES} | {shape: shape for shape in SHAPES}
_COUNTS = {word: number for number, word in NUMBERS.items()}
_SPELLINGS = {str(number): word for number, word in NUMBERS.items()} | {"1": "a", "one": "a"}
_CONNECTORS: dict[tuple[str, ...], str | None] = {("and",): None, ("with",): None} | {
    tuple(phrase.split()): kind for kind in RELATIONS for phrase in RELATION_PHRASES[kind]
}
_EXAMPLES = '"a red circle", "three triangles", "a ring and a cross", "a red circle left of a blue square"'


def vocabulary() -> list[str]:
    """All words of the world in a fixed order: thinking marks, system words, plans, then what only prompts use."""
    words = [THINK, END_THINK, *SYSTEM_WORDS, *COLOURS, *SHAPES, *PLURALS.values(), *CELLS, *NUMBERS.values()]
    words += ["a", "an", "in", *(word for opening in _OPENINGS for word in opening)]
    words += [word for connector in _CONNECTORS for word in connector]
    return list(dict.fromkeys(words))


def normalise_prompt(text: str) -> str:
    """The text in the world's spelling: lower case, no punctuation, single spaces, "3" as "three", "one" as "a"."""
    words = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
    return " ".join(_SPELLINGS.get(word, word) for word in words)


def _refuse(text: str, why: str) -> NoReturn:
    raise ValueError(
        f"cannot understand the prompt {text!r}: {why}. The shapes world draws {', '.join(PLURALS.values())} in "
        f"{', '.join(COLOURS)}; ask for one object, two objects (and, {', '.join(RELATIONS)}) or two to four of a "
        f"shape, for example {_EXAMPLES}"
    )


class _Reader:
    """A cursor over the words of one prompt."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.words = normalise_prompt(text).split()
        self.place = 0

    def refuse(self, why: str) -> NoReturn:
        _refuse(self.text, why)

    @property
    def word(self) -> str:
        return self.words[self.place] if self.place < len(self.words) else ""

    def take(self, *wanted: str) -> bool:
        """Step over the words if they come next."""
        found = tuple(self.words[self.place : self.place + len(wanted)]) == wanted
        self.place += len(wanted) if found else 0
        return found

    def unexpected(self, wanted: str) -> NoReturn:
        if not self.word:
            self.refuse(f"it ends where {wanted} should follow")
        close = [word for word in get_close_matches(self.word, vocabulary(), 1) if word != self.word]
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        self.refuse(f"{self.word!r} stands where {wanted} should{hint}")

    def opening(self) -> None:
        """Step over "draw", "there is", "exactly", ..."""
        while any(self.take(*opening) for opening in _OPENINGS):
            pass

    def colour(self) -> str | None:
        word = self.word
        if word not in COLOURS:
            return None
        self.place += 1
        return word

    def kind(self) -> tuple[Kind, int]:
        """Read "[a | an | two | three | four] [colour] shape [in colour]"; the count is 1 with an article."""
        count = _COUNTS.get(self.word, 1)
        if count > 1:
            self.place += 1
        elif not self.take("an"):
            self.take("a")
        colour = self.colour()
        shape = _SINGULARS.get(self.word)
        if shape is None:
            self.unexpected("a shape" if colour or count > 1 else "an object")
        self.place += 1
        if colour is None and self.take("in"):
            colour = self.colour()
            if colour is None:
                self.unexpected("a colour")
        return Kind(shape, colour), count

    def connector(self) -> str | None:
        """Read "and", "with" (None) or a relation."""
        for phrase, relation in _CONNECTORS.items():
            if self.take(*phrase):
                return relation
        self.unexpected("'and', a relation or the end")


def parse_prompt(text: str) -> dict[str, Any]:
    """The metadata of a prompt: any wording of the world, any case and punctuation, singular or plural.

    Also understood: coloured counting ("two red circles"), one coloured and one plain object. ValueError says what
    could not be understood and what could be asked.
    """
    reader = _Reader(text)
    reader.opening()
    first, count = reader.kind()
    if not reader.word:
        category = "counting" if count > 1 else "colors" if first.colour else "single_object"
        return Combination(category, (first,), count).metadata()
    relation = reader.connector()
    second, second_count = reader.kind()
    if reader.word:
        reader.unexpected("the end")
    if max(count, second_count) > 1:
        reader.refuse("a number goes with one shape alone, not with two objects")
    if first.shape == second.shape and (first.colour == second.colour or None in (first.colour, second.colour)):
        reader.refuse("its two objects cannot be told apart: give them different shapes, or both a different colour")
    if relation is not None:
        return Combination("position", (first, second), relation=relation).metadata()
    category = "color_attr" if first.colour or second.colour else "two_object"
    return Combination(category, (first, second)).metadata()
