"""Plans: the model spells the word and gives every letter its column before it draws: "<think> C 2 A 3 B 4 </think>".

All draws come from a ``random.Random`` that the caller keys (``seeds.key``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from unigrpo.worlds.words.font import LETTERS
from unigrpo.worlds.words.prompts import FRAMES, wanted
from unigrpo.worlds.words.signs import COLUMNS, Placed, Sign, written

THINK, END_THINK = "<think>", "</think>"
SYSTEM_WORDS = ("think", "then", "draw")
CONFUSED = dict(zip("AEIOUBDTLRCH", "EIOUADTLRCHB", strict=True))
"""The letter that a systematic mistake writes instead: a vowel for a vowel, a consonant for a consonant."""
SYSTEMATIC = 0.7
"""Share of wrong letters that come from the confusion map; the others are uniform."""
_ATTEMPTS = 100


def vocabulary() -> list[str]:
    """All words of the world in a fixed order: thinking marks, system words, letters, columns, then the prompts'."""
    said = [word for frame in FRAMES for word in frame.format(word="").split()]
    return list(dict.fromkeys([THINK, END_THINK, *SYSTEM_WORDS, *LETTERS, *COLUMNS, *said]))


def format_plan(sign: Sign) -> str:
    """The sign as the model writes it, letters in the sign's order, with the thinking marks."""
    return " ".join([THINK, *(f"{item.letter} {item.column}" for item in sign.letters), END_THINK])


def parse_plan(text: str) -> Sign | None:
    """The sign that a written plan describes; None where it is not a plan.

    Not a plan: missing marks, no letter, anything but letter, column in this order, two letters in a column.
    """
    words = text.split()
    inner = words[1:-1]
    if len(words) < 4 or words[0] != THINK or words[-1] != END_THINK or len(inner) % 2:
        return None
    pairs = list(zip(inner[0::2], inner[1::2], strict=True))
    known = all(letter in LETTERS and column in COLUMNS for letter, column in pairs)
    if not known or len({column for _, column in pairs}) < len(pairs):
        return None
    return Sign(tuple(Placed(letter, column) for letter, column in pairs))


def plan_satisfies(sign: Sign, metadata: Mapping[str, Any]) -> bool:
    """Whether the planned sign says the word that the prompt asks for."""
    return sign.says == wanted(metadata)


def _ordered(sign: Sign, draws: random.Random, unsorted: float) -> Sign:
    if draws.random() < unsorted:
        return Sign(tuple(draws.sample(sign.letters, len(sign.letters))))
    return sign


def sample_sign(metadata: Mapping[str, Any], generator: random.Random, unsorted: float = 0.0) -> Sign:
    """The prompt's word side by side from a random column on; in random order with probability ``unsorted``."""
    word = wanted(metadata)
    return _ordered(written(word, generator.randint(0, len(COLUMNS) - len(word))), generator, unsorted)


def random_sign(generator: random.Random, unsorted: float = 0.0) -> Sign:
    """One to six random letters in random columns."""
    columns = sorted(generator.sample(COLUMNS, generator.randint(1, len(COLUMNS))))
    sign = Sign(tuple(Placed(generator.choice(LETTERS), column) for column in columns))
    return _ordered(sign, generator, unsorted)


Edit = Callable[[Sign, int, random.Random], Sign]
"""One change of a sign at the letter with this index."""
Edits = tuple[tuple[Edit, int], ...]
"""Changes and their weights."""


def _put(sign: Sign, index: int, *items: Placed) -> Sign:
    return Sign((*sign.letters[:index], *items, *sign.letters[index + 1 :]))


def _other_letter(sign: Sign, index: int, draws: random.Random) -> Sign:
    item = sign.letters[index]
    other = draws.choice([letter for letter in LETTERS if letter != item.letter])
    return _put(sign, index, replace(item, letter=CONFUSED[item.letter] if draws.random() < SYSTEMATIC else other))


def _swap(sign: Sign, index: int, draws: random.Random) -> Sign:
    """Two neighbours in the list change their letters."""
    neighbour = (index + 1) % len(sign.letters)
    first, second = sign.letters[index], sign.letters[neighbour]
    swapped = _put(sign, index, replace(first, letter=second.letter))
    return _put(swapped, neighbour, replace(second, letter=first.letter))


def _drop(sign: Sign, index: int, draws: random.Random) -> Sign:
    return _put(sign, index)


def _free(sign: Sign, draws: random.Random) -> str:
    return draws.choice([column for column in COLUMNS if all(item.column != column for item in sign.letters)])


def _move(sign: Sign, index: int, draws: random.Random) -> Sign:
    """The letter goes to a free column."""
    return _put(sign, index, replace(sign.letters[index], column=_free(sign, draws)))


def _one_more(sign: Sign, index: int, draws: random.Random) -> Sign:
    """The letter stands in a free column too."""
    item = sign.letters[index]
    return _put(sign, index, item, replace(item, column=_free(sign, draws)))


MISTAKES: Edits = ((_other_letter, 6), (_swap, 2), (_drop, 2), (_one_more, 1))
"""What goes wrong in a bad plan, with weights."""
SLIPS: Edits = ((_other_letter, 6), (_drop, 2), (_move, 1), (_one_more, 1))
"""What a picture does that misses its plan."""


def _edited(sign: Sign, edits: Edits, wrong: Callable[[Sign], bool], draws: random.Random) -> Sign:
    functions, weights = zip(*edits, strict=True)
    for _ in range(_ATTEMPTS):
        possible = [f for f in functions if len(sign.letters) < len(COLUMNS) or f not in (_move, _one_more)]
        edit = draws.choices(possible, [w for f, w in zip(functions, weights, strict=True) if f in possible])[0]
        result = edit(sign, draws.randrange(len(sign.letters)), draws)
        if result.letters and wrong(result):
            return result
    raise ValueError(f"no single mistake spoils {format_plan(sign)!r}: it says nothing, or already something else")


def corrupt_sign(sign: Sign, metadata: Mapping[str, Any], generator: random.Random) -> Sign:
    """The sign with exactly one plausible mistake (:data:`MISTAKES`), such that it says another word."""
    return _edited(sign, MISTAKES, lambda candidate: not plan_satisfies(candidate, metadata), generator)


def slip(sign: Sign, generator: random.Random) -> Sign:
    """The sign with one letter changed, moved, lost or doubled: what a picture shows that misses its plan."""
    return _edited(sign, SLIPS, lambda candidate: not candidate.same_picture(sign), generator)
