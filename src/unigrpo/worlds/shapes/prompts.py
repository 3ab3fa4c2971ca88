"""Prompts of the shapes world: six GenEval categories, train and held-out combinations, and a parser for people.

Every prompt is words only (lower case, single spaces, no punctuation), so a word-level tokenizer reads it. What a
prompt asks is a :class:`Combination`; train and held-out share none, whatever the wording: "a left of b" and "b right
of a" are one combination, "a and b" and "b and a" too.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations as pairs_of
from itertools import permutations
from typing import Any

from unigrpo import seeds
from unigrpo.trajectory import Prompt
from unigrpo.worlds.shapes.scenes import COLOURS, NUMBERS, PLURALS, SHAPES, Kind

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
SPLITS = ("train", "held-out")
HELD_OUT_SHARE = 0.22
HELD_OUT_SALT = 35424
"""Chosen once, so that the few held-out combinations of a small category name all shapes, colours and numbers."""
HELD_OUT_SINGLE = ("diamond", "ring")
MIRRORED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATION_PHRASES = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
FRAMES: dict[str, tuple[str, ...]] = {
    "single_object": ("{first}", "draw {first}", "there is {first}"),
    "two_object": (
        "{first} and {second}",
        "draw {first} and {second}",
        "both {first} and {second}",
        "{first} with {second}",
    ),
    "counting": (
        "{number} {plural}",
        "draw {number} {plural}",
        "exactly {number} {plural}",
        "there are {number} {plural}",
    ),
    "colors": ("{first}", "draw {first}", "there is {first}", "{first_in}"),
    "position": (
        "{first} {relation} {second}",
        "draw {first} {relation} {second}",
        "there is {first} {relation} {second}",
    ),
    "color_attr": (
        "{first} and {second}",
        "draw {first} and {second}",
        "{first} with {second}",
        "{first_in} and {second_in}",
    ),
}


@dataclass(frozen=True)
class Combination:
    """What a prompt asks for, whatever the wording: its kinds in order, the exact count, the relation between them."""

    category: str
    kinds: tuple[Kind, ...]
    count: int = 1
    relation: str | None = None

    def mirrored(self) -> Combination:
        """The same request with its two kinds named in the other order (itself where there is one kind)."""
        relation = None if self.relation is None else MIRRORED[self.relation]
        return replace(self, kinds=self.kinds[::-1], relation=relation)

    def canonical(self) -> Combination:
        """One of the two orders, the same for both."""
        if self.relation is not None:
            return self if self.relation in ("left of", "above") else self.mirrored()
        return replace(self, kinds=tuple(sorted(self.kinds, key=str)))

    def metadata(self) -> dict[str, Any]:
        """The JSON-able requirements that the verifier reads (see ``scenes.requirements``)."""
        objects = [{"shape": kind.shape, "colour": kind.colour, "count": self.count} for kind in self.kinds]
        relation = None if self.relation is None else {"kind": self.relation, "first": 0, "second": 1}
        exact = self.category == "counting"
        return {"category": self.category, "objects": objects, "relation": relation, "exact": exact}


def combination(metadata: Mapping[str, Any]) -> Combination:
    """The combination that a prompt's metadata describes, in the prompt's own order."""
    kinds = tuple(Kind(item["shape"], item["colour"]) for item in metadata["objects"])
    relation = metadata["relation"]
    return Combination(
        metadata["category"], kinds, metadata["objects"][0]["count"], None if relation is None else relation["kind"]
    )


def canonical(metadata: Mapping[str, Any]) -> Combination:
    """The combination in its canonical order: equal for prompts that ask for the same thing."""
    return combination(metadata).canonical()


def _strata(category: str) -> tuple[tuple[Combination, ...], ...]:
    """All canonical combinations of a category; position has two strata, without and with colours, sampled equally."""
    plain = {shape: Kind(shape, None) for shape in SHAPES}
    if category == "single_object":
        return (tuple(Combination(category, (kind,)) for kind in plain.values()),)
    if category == "two_object":
        return (tuple(Combination(category, (plain[a], plain[b])).canonical() for a, b in pairs_of(SHAPES, 2)),)
    if category == "counting":
        return (tuple(Combination(category, (kind,), count) for kind in plain.values() for count in NUMBERS),)
    if category == "colors":
        return (tuple(Combination(category, (Kind(shape, colour),)) for shape in SHAPES for colour in COLOURS),)
    coloured = [Kind(shape, colour) for shape in SHAPES for colour in COLOURS]
    if category == "color_attr":
        pairs = ((a, b) for a, b in pairs_of(coloured, 2) if a.shape != b.shape and a.colour != b.colour)
        return (tuple(Combination(category, pair).canonical() for pair in pairs),)
    return tuple(
        tuple(
            Combination(category, (a, b), relation=relation)
            for a, b in permutations(kinds, 2)
            if a.shape != b.shape
            for relation in ("left of", "above")
        )
        for kinds in (list(plain.values()), coloured)
    )


def _stable_hash(item: Combination) -> bytes:
    text = f"{HELD_OUT_SALT}: {wordings(item)[0]}"
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _held_out(stratum: tuple[Combination, ...]) -> set[Combination]:
    """The share of a stratum with the lowest blake2b hashes; of single_object the two fixed shapes."""
    if stratum[0].category == "single_object":
        return {item for item in stratum if item.kinds[0].shape in HELD_OUT_SINGLE}
    return set(sorted(stratum, key=_stable_hash)[: round(HELD_OUT_SHARE * len(stratum))])


@cache
def combinations(split: str, category: str) -> tuple[tuple[Combination, ...], ...]:
    """The canonical combinations of a category in a split, by stratum; ValueError for an unknown split or category."""
    if split not in SPLITS or category not in CATEGORIES:
        raise ValueError(
            f"the shapes world has no prompts {split!r} / {category!r}: splits are {', '.join(SPLITS)} "
            f"(in a recipe shapes:train or shapes:held-out), categories {', '.join(CATEGORIES)}"
        )
    strata = []
    for stratum in _strata(category):
        held_out = _held_out(stratum)
        strata.append(tuple(item for item in stratum if (item in held_out) == (split == "held-out")))
    return tuple(strata)


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def wordings(item: Combination) -> list[str]:
    """Every text that asks for the combination with its kinds in this order."""
    first, second = item.kinds[0], item.kinds[-1]
    slots = {
        "first": _article(first.words),
        "second": _article(second.words),
        "first_in": f"a {first.shape} in {first.colour}",
        "second_in": f"a {second.shape} in {second.colour}",
        "number": NUMBERS.get(item.count, ""),
        "plural": PLURALS[first.shape],
    }
    phrases = ("",) if item.relation is None else RELATION_PHRASES[item.relation]
    return [frame.format(**slots, relation=phrase) for frame in FRAMES[item.category] for phrase in phrases]


def _prompt(position: int, item: Combination, draws: random.Random) -> Prompt:
    """A prompt for the combination, in a random order and wording."""
    if len(item.kinds) == 2 and draws.random() < 0.5:
        item = item.mirrored()
    return Prompt(position, draws.choice(wordings(item)), item.metadata())


def prompts(split: str) -> list[Prompt]:
    """Every combination of a split once, in its first wording, category by category."""
    items = [item for category in CATEGORIES for stratum in combinations(split, category) for item in stratum]
    return [Prompt(position, wordings(item)[0], item.metadata()) for position, item in enumerate(items)]


@dataclass(frozen=True)
class PromptStream:
    """An endless stream of random prompts with random access; the prompt at a position depends on (seed, split) only.

    Of any six prompts from position 6k on, each category has one, in a random order.
    """

    split: str
    seed: int

    def __post_init__(self) -> None:
        combinations(self.split, CATEGORIES[0])

    def at(self, position: int) -> Prompt:
        """The prompt at one position of the stream."""
        block, place = divmod(position, len(CATEGORIES))
        order = random.Random(seeds.key(self.seed, 0, block, 0, "shapes category order"))
        category = order.sample(CATEGORIES, len(CATEGORIES))[place]
        draws = random.Random(seeds.key(self.seed, 0, position, 0, "shapes prompt"))
        return _prompt(position, draws.choice(draws.choice(combinations(self.split, category))), draws)

    def batch(self, iteration: int, n: int) -> list[Prompt]:
        """The prompts at positions iteration * n ... iteration * n + n - 1."""
        return [self.at(position) for position in range(iteration * n, iteration * n + n)]


def fixed(split: str, n: int, seed: int = 0) -> list[Prompt]:
    """A fixed list of n prompts for evaluation: categories in turn, and combinations repeat only once all were used.

    Positions are 0..n-1. A shorter list is the beginning of a longer one.
    """
    shuffled: dict[str, list[list[Combination]]] = {}
    for index, category in enumerate(CATEGORIES):
        draws = random.Random(seeds.key(seed, 0, index, 0, f"shapes fixed {split}"))
        shuffled[category] = [draws.sample(stratum, len(stratum)) for stratum in combinations(split, category)]
    chosen = []
    for position in range(n):
        strata = shuffled[CATEGORIES[position % len(CATEGORIES)]]
        turn, which = divmod(position // len(CATEGORIES), len(strata))
        item = strata[which][turn % len(strata[which])]
        draws = random.Random(seeds.key(seed, 0, position, 0, f"shapes fixed wording {split}"))
        chosen.append(_prompt(position, item, draws))
    return chosen
