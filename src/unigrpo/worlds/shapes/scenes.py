"""Scenes of coloured shapes on a 4 x 4 grid, and the one rule that says whether a scene meets a prompt.

A scene holds at most one object per cell. Cells are words, "a1" (top left) to "d4" (bottom right): the letter is the
row from the top, the digit the column from the left. Planner and verifier judge with the same :func:`judge`: a plan is
judged as the scene it describes, a picture as the scene that was read from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.92, 0.10, 0.14),
    "green": (0.10, 0.78, 0.20),
    "blue": (0.15, 0.30, 1.00),
    "yellow": (1.00, 0.95, 0.20),
    "purple": (0.72, 0.22, 0.85),
    "cyan": (0.15, 0.90, 0.95),
    "orange": (1.00, 0.54, 0.02),
}
ROWS, COLUMNS = "abcd", "1234"
CELLS = tuple(row + column for row in ROWS for column in COLUMNS)
CELL_INDEX = {cell: index for index, cell in enumerate(CELLS)}
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True, slots=True)
class Object:
    """One coloured shape in one cell; ValueError for a word that the world does not have."""

    shape: str
    colour: str
    cell: str

    def __post_init__(self) -> None:
        if self.shape not in PLURALS or self.colour not in COLOURS or self.cell not in CELL_INDEX:
            raise ValueError(
                f"no such object: {self.colour!r} {self.shape!r} at {self.cell!r}; shapes are {', '.join(SHAPES)}, "
                f"colours {', '.join(COLOURS)}, cells a1 to d4"
            )


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects in different cells. Their order is the order of the plan's words; it does not change the picture.

    ValueError if two objects share a cell.
    """

    objects: tuple[Object, ...]

    def __post_init__(self) -> None:
        if len({item.cell for item in self.objects}) < len(self.objects):
            raise ValueError("a cell holds at most one object: give every object of the scene a cell of its own")

    def row_major(self) -> Scene:
        """The same scene with its objects from a1 to d4."""
        return Scene(tuple(sorted(self.objects, key=lambda item: item.cell)))

    def same_picture(self, other: Scene) -> bool:
        """Whether both scenes hold the same objects in the same cells, in whatever order."""
        return len(self.objects) == len(other.objects) and set(self.objects) == set(other.objects)


def _offset(first: str, second: str) -> tuple[int, int]:
    """(rows, columns) from the first cell to the second."""
    return ord(second[0]) - ord(first[0]), ord(second[1]) - ord(first[1])


_HOLDS: dict[str, Callable[[int, int], bool]] = {
    "left of": lambda rows, columns: columns >= 1 and columns >= abs(rows),
    "right of": lambda rows, columns: -columns >= 1 and -columns >= abs(rows),
    "above": lambda rows, columns: rows >= 1 and rows >= abs(columns),
    "below": lambda rows, columns: -rows >= 1 and -rows >= abs(columns),
}
RELATED_CELLS: dict[str, tuple[tuple[str, str], ...]] = {
    kind: tuple((a, b) for a in CELLS for b in CELLS if _HOLDS[kind](*_offset(a, b))) for kind in RELATIONS
}
_RELATED = {kind: frozenset(pairs) for kind, pairs in RELATED_CELLS.items()}


def related(kind: str, first: str, second: str) -> bool:
    """Whether the cell ``first`` is ``kind`` ("left of", ...) the cell ``second``.

    The offset along the relation's axis is at least 1 and not smaller than the offset across it. So, as in GenEval, an
    exact diagonal meets two relations: a1 is left of b2 and also above it.
    """
    return (first, second) in _RELATED[kind]


class Kind(NamedTuple):
    """A kind of object that a prompt asks for; colour None: any."""

    shape: str
    colour: str | None

    @property
    def words(self) -> str:
        """Colour (if any) and shape, without an article."""
        return self.shape if self.colour is None else f"{self.colour} {self.shape}"

    def matches(self, item: Object) -> bool:
        """Whether the object is of this kind."""
        return item.shape == self.shape and (self.colour is None or item.colour == self.colour)


@dataclass(frozen=True)
class Requirement:
    """One yes/no exam point: ``count`` objects of kind ``first`` (``exact``: no more), or a relation to ``second``."""

    question: str
    first: Kind
    count: int = 1
    exact: bool = False
    relation: str | None = None
    second: Kind | None = None

    def met(self, scene: Scene) -> bool:
        """Whether the scene meets the requirement."""
        found = [item for item in scene.objects if self.first.matches(item)]
        if self.relation is None or self.second is None:
            return len(found) == self.count if self.exact else len(found) >= self.count
        others = [item for item in scene.objects if self.second.matches(item)]
        return any(related(self.relation, a.cell, b.cell) for a in found for b in others)


class Judgement(NamedTuple):
    """``correct``: all points are met; ``points``: the exam, (question, met) per requirement."""

    correct: bool
    points: tuple[tuple[str, bool], ...]


Wanted = tuple[tuple[tuple[str, str | None, int], ...], tuple[str, int, int] | None, bool]


def requirements(metadata: Mapping[str, Any]) -> tuple[Requirement, ...]:
    """The exam points of a prompt: per object it exists, its colour, its exact count; then the relation.

    ``metadata`` is what ``prompts`` writes: {"category", "objects": [{"shape", "colour" or None, "count"}],
    "relation": None or {"kind", "first", "second"} (indices into objects), "exact"}. A relation is asked of the kinds
    with their colours. ValueError if a key is missing.
    """
    try:
        objects = tuple((item["shape"], item["colour"], item["count"]) for item in metadata["objects"])
        link = metadata["relation"]
        relation = None if link is None else (link["kind"], link["first"], link["second"])
        return _requirements((objects, relation, bool(metadata["exact"])))
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"this is not the metadata of a shapes prompt ({error!r} in {dict(metadata)!r}): the shapes verifier needs "
            "prompts of the shapes world, or metadata from unigrpo.worlds.shapes.parse_prompt(text)"
        ) from error


@lru_cache(maxsize=8192)
def _requirements(wanted: Wanted) -> tuple[Requirement, ...]:
    objects, relation, exact = wanted
    points: list[Requirement] = []
    for shape, colour, count in objects:
        kind = Kind(shape, colour)
        points.append(Requirement(f"is there a {shape}", Kind(shape, None)))
        if colour is not None:
            points.append(Requirement(f"is there a {shape} in {colour}", kind))
        if exact or count > 1:
            some = "exactly" if exact else "at least"
            words = PLURALS[shape] if colour is None else f"{colour} {PLURALS[shape]}"
            points.append(Requirement(f"are there {some} {NUMBERS.get(count, count)} {words}", kind, count, exact))
    if relation is not None:
        name, first, second = relation
        a, b = Kind(*objects[first][:2]), Kind(*objects[second][:2])
        points.append(Requirement(f"is a {a.words} {name} a {b.words}", a, relation=name, second=b))
    return tuple(points)


def judge(scene: Scene, metadata: Mapping[str, Any]) -> Judgement:
    """Judge a scene as GenEval judges a picture.

    Every wanted object must be there; extra objects do no harm, but in counting, where the number of that shape is
    exact. correct = all points of the exam.
    """
    points = tuple((item.question, item.met(scene)) for item in requirements(metadata))
    return Judgement(all(met for _, met in points), points)
