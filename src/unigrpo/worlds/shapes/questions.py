"""Questions about pictures of the shapes world, with their answers: what a model understands of what it sees.

Six kinds: what there is (all objects, as in a plan), what is at a cell, how many of a shape there are, which colour a
shape has, where an object is, and whether there is one. But for the first, answers are one word or two ("red circle").
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from unigrpo import seeds
from unigrpo.worlds.shapes.planner import corrupt_scene, listed, random_scene, sample_scene, slip
from unigrpo.worlds.shapes.prompts import PromptStream
from unigrpo.worlds.shapes.scenes import CELLS, COLOURS, PLURALS, SHAPES, Object, Scene

COUNTS = ("zero", "one", "two", "three", "four", "five", "six")
NOTHING, YES, NO = "nothing", "yes", "no"
QUESTION_WORDS = (
    "what",
    "is",
    "at",
    "how",
    "many",
    "colour",
    "the",
    "where",
    "there",
    "a",
    "an",
    NOTHING,
    YES,
    NO,
    *COUNTS,
)
LISTED = 0.35
"""Share of the questions that ask for all objects: their answers teach most words."""
MOST = 6
"""Objects of a random scene that is asked about."""


@dataclass(frozen=True)
class Question:
    """A question about a picture that shows the scene, and its answer; kind: all, at, count, colour, where, there."""

    kind: str
    scene: Scene
    words: str
    answer: str


def _all(scene: Scene, draws: random.Random) -> tuple[str, str]:
    return "what is there", listed(scene.row_major())


def _at(scene: Scene, draws: random.Random) -> tuple[str, str]:
    full = {item.cell: item for item in scene.objects}
    cell = draws.choice(CELLS) if draws.random() < 0.3 else draws.choice(sorted(full))
    item = full.get(cell)
    return f"what is at {cell}", NOTHING if item is None else f"{item.colour} {item.shape}"


def _count(scene: Scene, draws: random.Random) -> tuple[str, str]:
    shape = draws.choice(SHAPES) if draws.random() < 0.3 else draws.choice(scene.objects).shape
    return f"how many {PLURALS[shape]}", COUNTS[sum(item.shape == shape for item in scene.objects)]


def _once(scene: Scene) -> list[Object]:
    """The objects whose shape no other has."""
    shapes = [item.shape for item in scene.objects]
    return [item for item in scene.objects if shapes.count(item.shape) == 1]


def _colour(scene: Scene, draws: random.Random) -> tuple[str, str] | None:
    if not (single := _once(scene)):
        return None
    item = draws.choice(single)
    return f"what colour is the {item.shape}", item.colour


def _where(scene: Scene, draws: random.Random) -> tuple[str, str] | None:
    kinds = [(item.colour, item.shape) for item in scene.objects]
    single = [item for item in scene.objects if kinds.count((item.colour, item.shape)) == 1]
    if not single:
        return None
    item = draws.choice(single)
    return f"where is the {item.colour} {item.shape}", item.cell


def _there(scene: Scene, draws: random.Random) -> tuple[str, str]:
    """Half of them true; the others are of an object that is there but for its colour or its shape."""
    item = draws.choice(scene.objects)
    colour, shape = item.colour, item.shape
    if draws.random() < 0.5:
        if draws.random() < 0.5:
            colour = draws.choice([other for other in COLOURS if other != colour])
        else:
            shape = draws.choice([other for other in SHAPES if other != shape])
    found = any((item.colour, item.shape) == (colour, shape) for item in scene.objects)
    return f"is there {'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}", YES if found else NO


KINDS: dict[str, Callable[[Scene, random.Random], tuple[str, str] | None]] = {
    "at": _at,
    "count": _count,
    "colour": _colour,
    "where": _where,
    "there": _there,
}


def ask(scene: Scene, draws: random.Random) -> Question:
    """A question about the scene, of a random kind that it has one of."""
    if draws.random() < LISTED:
        return Question("all", scene, *_all(scene, draws))
    for kind in draws.sample(list(KINDS), len(KINDS)):
        if (made := KINDS[kind](scene, draws)) is not None:
            return Question(kind, scene, *made)
    raise ValueError("an empty scene has nothing to ask about")


def shown_scene(split: str, seed: int, position: int, draws: random.Random) -> Scene:
    """A scene to ask about: for a prompt of the split (half of them with a mistake), or of random objects."""
    if draws.random() < 0.5:
        return random_scene(draws, 1, MOST)
    prompt = PromptStream(split, seed).at(position)
    scene = sample_scene(prompt.metadata, draws)
    if draws.random() < 0.25:
        scene = corrupt_scene(scene, prompt.metadata, draws)
    return slip(scene, draws) if draws.random() < 0.25 else scene


def question(split: str, seed: int, position: int) -> Question:
    """The question at a position of a stream; the held-out one has other draws, and scenes of held-out prompts."""
    draws = random.Random(seeds.key(seed, 0, position, 0, f"shapes question {split}"))
    return ask(shown_scene(split, seed, position, draws), draws)
