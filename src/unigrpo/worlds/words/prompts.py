"""Prompts of the words world: a word of two to four letters in a template; train and held-out share no word.

A word is pronounceable, vowels and consonants in turn, in capitals; all other words of a prompt are lower case.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from unigrpo import seeds
from unigrpo.trajectory import Prompt
from unigrpo.worlds.words.font import CONSONANTS, LETTERS, VOWELS

CATEGORIES = {"two letters": 2, "three letters": 3, "four letters": 4}
SPLITS = ("train", "held-out")
HELD_OUT_SHARE = 0.22
FRAMES = (
    "{word}",
    "the word {word}",
    "write {word}",
    "write the word {word}",
    "a sign that says {word}",
    "draw a sign with the word {word}",
)


@cache
def words(split: str, category: str) -> tuple[str, ...]:
    """The words of a category in a split, in a fixed order; ValueError for an unknown split or category.

    Held out is the share of a category's words with the lowest blake2b hashes.
    """
    if split not in SPLITS or category not in CATEGORIES:
        raise ValueError(
            f"the words world has no prompts {split!r} / {category!r}: splits are {', '.join(SPLITS)} "
            f"(in a recipe words:train or words:held-out), categories {', '.join(CATEGORIES)}"
        )
    length = CATEGORIES[category]
    turns = [[(VOWELS, CONSONANTS)[(place + first) % 2] for place in range(length)] for first in (0, 1)]
    every = ["".join(letters) for turn in turns for letters in itertools.product(*turn)]
    hashed = sorted(every, key=lambda word: hashlib.blake2b(word.encode(), digest_size=8).digest())
    held_out = set(hashed[: round(HELD_OUT_SHARE * len(every))])
    return tuple(word for word in every if (word in held_out) == (split == "held-out"))


def _prompt(position: int, word: str, category: str, draws: random.Random) -> Prompt:
    return Prompt(position, draws.choice(FRAMES).format(word=word), {"category": category, "word": word})


@dataclass(frozen=True)
class PromptStream:
    """An endless stream of random prompts with random access; the prompt at a position depends on (seed, split) only.

    The categories come in turn.
    """

    split: str
    seed: int

    def __post_init__(self) -> None:
        words(self.split, next(iter(CATEGORIES)))

    def at(self, position: int) -> Prompt:
        """The prompt at one position of the stream."""
        category = list(CATEGORIES)[position % len(CATEGORIES)]
        draws = random.Random(seeds.key(self.seed, 0, position, 0, "words prompt"))
        return _prompt(position, draws.choice(words(self.split, category)), category, draws)

    def batch(self, iteration: int, n: int) -> list[Prompt]:
        """The prompts at positions iteration * n ... iteration * n + n - 1."""
        return [self.at(position) for position in range(iteration * n, iteration * n + n)]


def fixed(split: str, n: int, seed: int = 0) -> list[Prompt]:
    """A fixed list of n prompts for evaluation: categories in turn, and words repeat only once all were used.

    Positions are 0..n-1. A shorter list is the beginning of a longer one.
    """
    shuffled = []
    for index, category in enumerate(CATEGORIES):
        draws = random.Random(seeds.key(seed, 0, index, 0, f"words fixed {split}"))
        known = words(split, category)
        shuffled.append((category, draws.sample(known, len(known))))
    chosen = []
    for position in range(n):
        category, known = shuffled[position % len(shuffled)]
        draws = random.Random(seeds.key(seed, 0, position, 0, f"words fixed wording {split}"))
        chosen.append(_prompt(position, known[position // len(shuffled) % len(known)], category, draws))
    return chosen


# What people ask for


def normalise_prompt(text: str) -> str:
    """The text in the world's spelling: its last word in capitals, all others in lower case, no punctuation."""
    *before, word = re.sub(r"[^A-Za-z]+", " ", text).split() or [""]
    return " ".join([*(w.lower() for w in before), word.upper()])


def parse_prompt(text: str) -> dict[str, Any]:
    """The metadata of a prompt in any case and punctuation; ValueError says what could be asked.

    Any word of two to four of the world's letters is understood, pronounceable or not.
    """
    known = normalise_prompt(text)
    word = known.split(" ")[-1]
    if known not in [frame.format(word=word) for frame in FRAMES]:
        _refuse(text, f"the world has no such sentence: say {', '.join(repr(f.format(word='CAB')) for f in FRAMES)}")
    if len(word) not in CATEGORIES.values() or not set(word) <= set(LETTERS):
        _refuse(text, f"{word!r} is not a word of two to four of its letters, which are {', '.join(LETTERS)}")
    return {"category": next(name for name, length in CATEGORIES.items() if length == len(word)), "word": word}


def _refuse(text: str, why: str) -> None:
    raise ValueError(f"cannot understand the prompt {text!r}: {why}")


def wanted(metadata: Mapping[str, Any]) -> str:
    """The word that a prompt asks for; ValueError where its metadata names none."""
    word = metadata.get("word")
    if not isinstance(word, str) or not word:
        raise ValueError(f"metadata has no key 'word' with the word to write, only {sorted(metadata)}")
    return word
