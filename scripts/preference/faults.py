"""Faults of content: scenes that miss a prompt in a known way, and how much a scene is worth.

They are the pictures that people would like less in :mod:`preference.pairs`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from unigrpo.trajectory import Prompt
from unigrpo.worlds.shapes.scenes import CELLS, COLOURS, SHAPES, Object, Scene, judge

Edit = Callable[[Scene, random.Random], Scene | None]
"""A scene with a fault, or None where this fault cannot be made."""


def _pick(scene: Scene, draws: random.Random) -> int:
    return draws.randrange(len(scene.objects))


def _put(scene: Scene, index: int, item: Object) -> Scene:
    return Scene((*scene.objects[:index], item, *scene.objects[index + 1 :]))


def _other(word: str, words: Sequence[str], draws: random.Random) -> str:
    return draws.choice([other for other in words if other != word])


def free_cell(scene: Scene, draws: random.Random) -> str:
    """A cell where the scene has nothing."""
    taken = {item.cell for item in scene.objects}
    return draws.choice([cell for cell in CELLS if cell not in taken])


def _missing(scene: Scene, draws: random.Random) -> Scene | None:
    if not scene.objects:
        return None
    index = _pick(scene, draws)
    return Scene((*scene.objects[:index], *scene.objects[index + 1 :]))


def _colour(scene: Scene, draws: random.Random) -> Scene | None:
    """Another colour for one object, or the colours of the first two swapped."""
    if not scene.objects:
        return None
    if len(scene.objects) == 2 and draws.random() < 0.5:
        first, second = scene.objects
        return Scene((replace(first, colour=second.colour), replace(second, colour=first.colour)))
    index = _pick(scene, draws)
    item = scene.objects[index]
    return _put(scene, index, replace(item, colour=_other(item.colour, tuple(COLOURS), draws)))


def _shape(scene: Scene, draws: random.Random) -> Scene | None:
    if not scene.objects:
        return None
    index = _pick(scene, draws)
    item = scene.objects[index]
    return _put(scene, index, replace(item, shape=_other(item.shape, SHAPES, draws)))


def _count(scene: Scene, draws: random.Random) -> Scene | None:
    """One of the shape too many or too few."""
    if not scene.objects:
        return None
    if draws.random() < 0.5:
        return _missing(scene, draws)
    item = scene.objects[_pick(scene, draws)]
    added = replace(item, colour=draws.choice(tuple(COLOURS)), cell=free_cell(scene, draws))
    return Scene((*scene.objects, added))


def _relation(scene: Scene, draws: random.Random) -> Scene | None:
    """The first two objects in each other's cells, or one object in another cell."""
    if len(scene.objects) < 2:
        return None
    if draws.random() < 0.5:
        first, second, *others = scene.objects
        return Scene((replace(first, cell=second.cell), replace(second, cell=first.cell), *others))
    index = _pick(scene, draws)
    return _put(scene, index, replace(scene.objects[index], cell=free_cell(scene, draws)))


def _extra(scene: Scene, draws: random.Random) -> Scene | None:
    cell = free_cell(scene, draws)
    return Scene((*scene.objects, Object(draws.choice(SHAPES), draws.choice(tuple(COLOURS)), cell)))


EDITS: dict[str, Edit] = {
    "missing": _missing,
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "relation": _relation,
    "extra": _extra,
}
CONTENT: dict[str, tuple[str, ...]] = {
    "single_object": ("missing", "shape", "extra"),
    "two_object": ("missing", "shape", "extra"),
    "counting": ("count", "count", "shape", "extra"),
    "colors": ("missing", "colour", "shape", "extra"),
    "position": (*["relation"] * 4, "missing", "shape", "colour", "extra"),
    "color_attr": ("colour", "colour", "missing", "shape", "extra"),
}
"""Faults of content that a prompt of the category can have; named more than once: more often."""
_ATTEMPTS = 30


def merit(scene: Scene, prompt: Prompt) -> float:
    """How much a scene is worth: the share of the prompt's requirements met, halved for every object too many."""
    points = judge(scene, prompt.metadata).points
    extra = max(0, len(scene.objects) - sum(item["count"] for item in prompt.metadata["objects"]))
    return 0.5**extra * sum(met for _, met in points) / len(points)


def spoil(scene: Scene, fault: str, prompt: Prompt, draws: random.Random) -> Scene | None:
    """The scene with one fault of this kind that makes it worth less."""
    for _ in range(_ATTEMPTS):
        result = EDITS[fault](scene, draws)
        if result is not None and merit(result, prompt) < merit(scene, prompt):
            return result
    return None
