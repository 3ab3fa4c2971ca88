"""Plans: what the model thinks before it draws, and scenes that do or do not satisfy a prompt.

A plan is a list of ``colour shape cell`` words between the thinking marks: "<think> red circle b2 blue square c3
</think>". All draws come from a ``random.Random`` that the caller keys (``seeds.key``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from unigrpo.worlds.shapes.parsing import END_THINK, THINK
from unigrpo.worlds.shapes.prompts import combination
from unigrpo.worlds.shapes.scenes import (
    CELL_INDEX,
    CELLS,
    COLOURS,
    PLURALS,
    RELATED_CELLS,
    SHAPES,
    Object,
    Scene,
    judge,
)

_COLOURS = tuple(COLOURS)
CONFUSED_SHAPE: dict[str, str] = {
    "circle": "ring",
    "square": "diamond",
    "triangle": "cross",
    "cross": "square",
    "diamond": "triangle",
    "ring": "circle",
}
CONFUSED_COLOUR: dict[str, str] = {
    "red": "orange",
    "green": "cyan",
    "blue": "purple",
    "yellow": "green",
    "purple": "blue",
    "cyan": "yellow",
    "orange": "red",
}
"""The word that a systematic mistake writes instead; both maps reach every word."""
SYSTEMATIC = 0.7
"""Share of wrong words that come from the confusion maps; the others are uniform."""


def listed(scene: Scene) -> str:
    """The objects of a scene in its order, "red circle b2 blue square c3": what a plan has between its marks."""
    return " ".join(f"{item.colour} {item.shape} {item.cell}" for item in scene.objects)


def format_plan(scene: Scene) -> str:
    """The scene as the model writes it, objects in the scene's order, with the thinking marks."""
    return " ".join([THINK, *listed(scene).split(), END_THINK])


def parse_plan(text: str) -> Scene | None:
    """The scene that a written plan describes; None where it is not a plan.

    Not a plan: missing marks, no object, anything but colour, shape, cell in this order, two objects in a cell.
    """
    words = text.split()
    inner = words[1:-1]
    if len(words) < 5 or words[0] != THINK or words[-1] != END_THINK or len(inner) % 3:
        return None
    triples = list(zip(inner[0::3], inner[1::3], inner[2::3], strict=True))
    known = all(colour in COLOURS and shape in PLURALS and cell in CELL_INDEX for colour, shape, cell in triples)
    if not known or len({cell for _, _, cell in triples}) < len(triples):
        return None
    return Scene(tuple(Object(shape, colour, cell) for colour, shape, cell in triples))


def plan_satisfies(scene: Scene, metadata: Mapping[str, Any]) -> bool:
    """Whether the planned scene meets the prompt, by the verifier's own rule (:func:`scenes.judge`)."""
    return judge(scene, metadata).correct


def _ordered(objects: list[Object], draws: random.Random, unsorted: float) -> Scene:
    if draws.random() < unsorted:
        draws.shuffle(objects)
        return Scene(tuple(objects))
    return Scene(tuple(objects)).row_major()


def sample_scene(metadata: Mapping[str, Any], generator: random.Random, unsorted: float = 0.0) -> Scene:
    """A random scene with what the prompt asks for and nothing else.

    Cells, and colours that the prompt leaves open, are uniform (two cells in a relation: uniform over the pairs that
    meet it). Objects are in random order with probability ``unsorted``, else row-major.
    """
    wanted = combination(metadata)
    kinds = [kind for kind in wanted.kinds for _ in range(wanted.count)]
    if wanted.relation is None:
        cells = generator.sample(CELLS, len(kinds))
    else:
        cells = list(generator.choice(RELATED_CELLS[wanted.relation]))
    objects = [
        Object(kind.shape, kind.colour or generator.choice(_COLOURS), cell)
        for kind, cell in zip(kinds, cells, strict=True)
    ]
    return _ordered(objects, generator, unsorted)


def random_scene(generator: random.Random, low: int = 1, high: int = 9, unsorted: float = 0.0) -> Scene:
    """A scene of low..high objects (uniform), all attributes and cells uniform."""
    cells = generator.sample(CELLS, generator.randint(low, high))
    objects = [Object(generator.choice(SHAPES), generator.choice(_COLOURS), cell) for cell in cells]
    return _ordered(objects, generator, unsorted)


def _wrong(word: str, words: tuple[str, ...], confused: Mapping[str, str], draws: random.Random) -> str:
    if draws.random() < SYSTEMATIC:
        return confused[word]
    return draws.choice([other for other in words if other != word])


def _put(scene: Scene, index: int, item: Object) -> Scene:
    return Scene((*scene.objects[:index], item, *scene.objects[index + 1 :]))


def _free_cell(scene: Scene, draws: random.Random) -> str:
    return draws.choice([cell for cell in CELLS if all(item.cell != cell for item in scene.objects)])


Edit = Callable[[Scene, int, random.Random], Scene]
"""One change of a scene at the object with this index."""


def _other_shape(scene: Scene, index: int, draws: random.Random) -> Scene:
    item = scene.objects[index]
    return _put(scene, index, replace(item, shape=_wrong(item.shape, SHAPES, CONFUSED_SHAPE, draws)))


def _other_colour(scene: Scene, index: int, draws: random.Random) -> Scene:
    item = scene.objects[index]
    return _put(scene, index, replace(item, colour=_wrong(item.colour, _COLOURS, CONFUSED_COLOUR, draws)))


def _other_cell(scene: Scene, index: int, draws: random.Random) -> Scene:
    return _put(scene, index, replace(scene.objects[index], cell=_free_cell(scene, draws)))


def _drop(scene: Scene, index: int, draws: random.Random) -> Scene:
    return Scene((*scene.objects[:index], *scene.objects[index + 1 :]))


def _one_more(scene: Scene, index: int, draws: random.Random) -> Scene:
    """Another object of the same shape in a free cell."""
    item = scene.objects[index]
    return Scene((*scene.objects, Object(item.shape, draws.choice(_COLOURS), _free_cell(scene, draws))))


def _same_shape(scene: Scene, index: int, draws: random.Random) -> Scene:
    """The object takes the shape of its neighbour in the list."""
    neighbour = scene.objects[(index + 1) % len(scene.objects)]
    return _put(scene, index, replace(scene.objects[index], shape=neighbour.shape))


def _swap_colours(scene: Scene, index: int, draws: random.Random) -> Scene:
    colours = [item.colour for item in scene.objects]
    other = (index + 1) % len(colours)
    colours[index], colours[other] = colours[other], colours[index]
    return Scene(tuple(replace(item, colour=c) for item, c in zip(scene.objects, colours, strict=True)))


def _swap_cells(scene: Scene, index: int, draws: random.Random) -> Scene:
    cells = [item.cell for item in scene.objects]
    other = (index + 1) % len(cells)
    cells[index], cells[other] = cells[other], cells[index]
    return Scene(tuple(replace(item, cell=c) for item, c in zip(scene.objects, cells, strict=True)))


MISTAKES: dict[str, tuple[tuple[Edit, int], ...]] = {
    "single_object": ((_other_shape, 1),),
    "two_object": ((_same_shape, 5), (_other_shape, 3), (_drop, 2)),
    "counting": ((_one_more, 4), (_drop, 4), (_other_shape, 2)),
    "colors": ((_other_colour, 7), (_other_shape, 3)),
    "position": ((_swap_cells, 5), (_other_cell, 2), (_other_shape, 1), (_other_colour, 1), (_drop, 1)),
    "color_attr": ((_swap_colours, 6), (_other_colour, 2), (_other_shape, 1), (_drop, 1)),
}
"""What goes wrong in a bad plan, by category, with weights: the likely slip of the category comes first."""
_SLIPS: tuple[tuple[Edit, int], ...] = (
    (_other_cell, 3),
    (_other_colour, 3),
    (_other_shape, 2),
    (_drop, 1),
    (_one_more, 1),
)
_ATTEMPTS = 100


def _edited(
    scene: Scene, edits: tuple[tuple[Edit, int], ...], wanted: Callable[[Scene], bool], draws: random.Random
) -> Scene | None:
    """The scene after one random edit that leaves at least one object and is ``wanted``; row-major stays row-major."""
    functions, weights = zip(*edits, strict=True)
    row_major = scene == scene.row_major()
    for _ in range(_ATTEMPTS):
        edit = draws.choices(functions, weights)[0]
        result = edit(scene, draws.randrange(len(scene.objects)), draws)
        if result.objects and wanted(result):
            return result.row_major() if row_major else result
    return None


def corrupt_scene(scene: Scene, metadata: Mapping[str, Any], generator: random.Random) -> Scene:
    """The scene with exactly one plausible mistake (:data:`MISTAKES`), such that it does not satisfy the prompt.

    ValueError for a scene that one mistake cannot spoil (say, two circles where one is asked for).
    """
    edits = MISTAKES[metadata["category"]]
    result = _edited(scene, edits, lambda candidate: not judge(candidate, metadata).correct, generator)
    if result is None:
        raise ValueError(
            f"no single mistake spoils {format_plan(scene)!r} for this prompt: start from sample_scene(metadata, ...), "
            "which draws no objects that the prompt does not ask for"
        )
    return result


def slip(scene: Scene, generator: random.Random) -> Scene:
    """The scene with one object moved, changed, lost or added: what a picture looks like that misses its plan."""
    result = _edited(scene, _SLIPS, lambda candidate: not candidate.same_picture(scene), generator)
    if result is None:
        raise ValueError("an empty scene has nothing to change")
    return result
