"""Critiques: what is wrong with a picture, in words, and the nearest scene that the prompt would be content with.

A critique is "fine", or items with "and" between them, each of one object of the picture (or of one that it lacks):
"missing blue square b3", "extra red ring a1", "red circle c1 should be green", "... should be a square", "... should be
a green square", "... should be at b3". All items are meant of the picture as it is, and are done together.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from unigrpo.worlds.shapes.edits import Edit, edit_of, is_edit, judge_edit
from unigrpo.worlds.shapes.parsing import END_THINK, THINK
from unigrpo.worlds.shapes.planner import listed, parse_plan
from unigrpo.worlds.shapes.prompts import combination
from unigrpo.worlds.shapes.scenes import CELL_INDEX, CELLS, COLOURS, PLURALS, RELATED_CELLS, Kind, Object, Scene, judge

FINE, SO, AND = "fine", "so", "and"
MISSING, EXTRA, SHOULD = "missing", "extra", ("should", "be")
CRITIQUE_WORDS = (FINE, MISSING, EXTRA, *SHOULD, "a", "at", AND, SO)
RECOLOURED, RESHAPED, BOTH, MOVED, ADDED, TAKEN = 1.0, 1.0, 1.5, 1.0, 1.0, 1.0
"""What a change costs where the nearest scene is looked for: an object with another colour and shape is changed rather
than taken away and drawn anew."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One item of a critique: ``old`` is in the picture, ``new`` should be (None: nothing; never both None)."""

    old: Object | None
    new: Object | None

    @property
    def words(self) -> str:
        """The item as it is written."""
        if self.old is None:
            return f"{MISSING} {_named(self.new)}"
        if self.new is None:
            return f"{EXTRA} {_named(self.old)}"
        return f"{_named(self.old)} {' '.join(SHOULD)} {_changed(self.old, self.new)}"


def _named(item: Object | None) -> str:
    return "" if item is None else f"{item.colour} {item.shape} {item.cell}"


def _changed(old: Object, new: Object) -> str:
    if old.cell != new.cell:
        return f"at {new.cell}"
    if old.shape == new.shape:
        return new.colour
    return f"a {new.shape}" if old.colour == new.colour else f"a {new.colour} {new.shape}"


@dataclass(frozen=True, slots=True)
class Rethinking:
    """What a thinking that has a critique says: its remarks (none: fine), and the new plan (fine: None)."""

    remarks: tuple[Remark, ...]
    plan: Scene | None


# What is right


def content(scene: Scene, metadata: Mapping[str, Any]) -> bool:
    """Whether a scene has all that the prompt asks for, and nothing else; of an edit, what stays included."""
    if is_edit(metadata):
        return judge_edit(scene, metadata).correct
    wanted = sum(item["count"] for item in metadata["objects"])
    return len(scene.objects) == wanted and judge(scene, metadata).correct


def applied(scene: Scene, remarks: Sequence[Remark]) -> Scene | None:
    """The scene with all remarks done, row-major; None where one is untrue of it, or two do not go together."""
    left = list(scene.objects)
    for remark in remarks:
        if remark.old is None:
            continue
        if remark.old not in left:
            return None
        left.remove(remark.old)
    objects = [*left, *(remark.new for remark in remarks if remark.new is not None)]
    if len({item.cell for item in objects}) < len(objects):
        return None
    return Scene(tuple(objects)).row_major()


def critique_right(remarks: Sequence[Remark], scene: Scene, metadata: Mapping[str, Any]) -> bool:
    """Whether all that is said is true of the picture's scene, and the picture so changed is what the prompt asks for.

    So "fine" is right of a picture with all that was asked for and nothing else.
    """
    changed = applied(scene, remarks)
    return changed is not None and content(changed, metadata)


# The nearest scene


def _cost(old: Object | None, kind: Kind, cell: str | None) -> float:
    """What it costs that the object (None: a new one) becomes of the kind, at the cell (None: where it is)."""
    if old is None:
        return ADDED
    exact = kind.matches(old)
    if cell is not None and cell != old.cell:
        return MOVED if exact else float("inf")
    if exact:
        return 0.0
    if old.shape == kind.shape:
        return RECOLOURED
    return RESHAPED if kind.colour in (None, old.colour) else BOTH


def _become(old: Object | None, kind: Kind, cell: str, draws: random.Random) -> Object:
    colour = kind.colour or (draws.choice(tuple(COLOURS)) if old is None else old.colour)
    return Object(kind.shape, colour, cell)


def _related_cells(
    old: tuple[Object | None, Object | None], kinds: Sequence[Kind], relation: str, free: set[str]
) -> Iterator[tuple[float, tuple[str, str]]]:
    """(cost, cells) of every way to bring two objects into a relation."""
    for cells in RELATED_CELLS[relation]:
        costs = []
        for item, kind, cell in zip(old, kinds, cells, strict=True):
            stays = item is not None and item.cell == cell
            costs.append(_cost(item, kind, cell) if stays or cell in free else float("inf"))
        if (cost := sum(costs)) < float("inf"):
            yield cost, cells


def _related(scene: Scene, kinds: Sequence[Kind], relation: str, draws: random.Random) -> tuple[Remark, ...]:
    """The cheapest remarks that leave two objects in a relation, and nothing else."""
    free = set(CELLS) - {item.cell for item in scene.objects}
    best: list[tuple[float, tuple[Object | None, Object | None], tuple[str, str]]] = []
    choices = (*scene.objects, None)
    for old in product(choices, choices):
        if old[0] is not None and old[0] is old[1]:
            continue
        taken = TAKEN * (len(scene.objects) - sum(item is not None for item in old))
        for cost, cells in _related_cells(old, kinds, relation, free):
            if not best or cost + taken <= best[0][0]:
                best = [b for b in best if b[0] <= cost + taken] + [(cost + taken, old, cells)]
    _, old, cells = draws.choice(best)
    new = [_become(item, kind, cell, draws) for item, kind, cell in zip(old, kinds, cells, strict=True)]
    return _remarks(scene, list(zip(old, new, strict=True)))


def _unrelated(scene: Scene, kinds: Sequence[Kind], draws: random.Random) -> tuple[Remark, ...]:
    """Remarks that leave objects of the kinds, and nothing else: the cheapest change first, until all kinds are met."""
    pairs = [(_cost(item, kind, None), draws.random(), i, k) for i, item in enumerate(scene.objects)
             for k, kind in enumerate(kinds)]  # fmt: skip
    free = [cell for cell in CELLS if all(item.cell != cell for item in scene.objects)]
    draws.shuffle(free)
    old: dict[int, Object] = {}
    for _, _, i, k in sorted(pairs):
        if k not in old and all(item is not scene.objects[i] for item in old.values()):
            old[k] = scene.objects[i]
    made = []
    for k, kind in enumerate(kinds):
        item = old.get(k)
        made.append((item, _become(item, kind, free.pop() if item is None else item.cell, draws)))
    return _remarks(scene, made)


def _edited(scene: Scene, edit: Edit, draws: random.Random) -> tuple[Remark, ...]:
    """Remarks that leave the edit done and all else as it was: of its results, one of those that need the fewest."""
    ways = [_towards(scene, result) for result in edit.results()]
    fewest = min(len(remarks) for remarks in ways)
    return draws.choice([remarks for remarks in ways if len(remarks) == fewest])


def _towards(scene: Scene, target: Scene) -> tuple[Remark, ...]:
    """Remarks that make a scene another one: objects of the same kind are moved, then those of a cell are changed."""
    made: list[tuple[Object | None, Object]] = [(item, item) for item in target.objects if item in scene.objects]
    old = [item for item in scene.objects if item not in target.objects]
    new = [item for item in target.objects if item not in scene.objects]
    for alike in (_same_kind, _same_cell):
        for item in list(new):
            if (found := next((o for o in old if alike(o, item)), None)) is not None:
                made.append((found, item))
                old.remove(found)
                new.remove(item)
    return _remarks(scene, [*made, *((None, item) for item in new)])


def _same_kind(a: Object, b: Object) -> bool:
    return (a.shape, a.colour) == (b.shape, b.colour)


def _same_cell(a: Object, b: Object) -> bool:
    return a.cell == b.cell


def _remarks(scene: Scene, made: Sequence[tuple[Object | None, Object]]) -> tuple[Remark, ...]:
    """Remarks for the objects that change and for those that nobody wants, in the order of their cells."""
    kept = [old for old, _ in made if old is not None]
    found = [Remark(old, new) for old, new in made if old != new]
    found += [Remark(item, None) for item in scene.objects if item not in kept]
    return tuple(sorted(found, key=lambda remark: (remark.old or remark.new or made[0][1]).cell))


def critique(scene: Scene, metadata: Mapping[str, Any], draws: random.Random) -> tuple[Remark, ...]:
    """What is to be said of a picture that shows the scene: few changes after which the prompt is met.

    The fewest for a relation; else one is chosen after the other, which can be one more where objects are alike. Cells
    and colours that are left open, and changes that cost the same, are drawn. None where the picture is fine.
    """
    if content(scene, metadata):
        return ()
    if is_edit(metadata):
        return _edited(scene, edit_of(metadata), draws)
    wanted = combination(metadata)
    kinds = [kind for kind in wanted.kinds for _ in range(wanted.count)]
    if wanted.relation is not None:
        return _related(scene, kinds, wanted.relation, draws)
    return _unrelated(scene, kinds, draws)


# Words


def format_critique(remarks: Sequence[Remark]) -> str:
    """The critique as it is written."""
    return f" {AND} ".join(remark.words for remark in remarks) if remarks else FINE


def format_rethinking(remarks: Sequence[Remark], plan: Scene) -> str:
    """The second thinking: "<think> CRITIQUE so PLAN </think>", or "<think> fine </think>"."""
    if not remarks:
        return f"{THINK} {FINE} {END_THINK}"
    return f"{THINK} {format_critique(remarks)} {SO} {listed(plan)} {END_THINK}"


def parse_rethinking(text: str) -> Rethinking | None:
    """The critique and the new plan that a thinking says; None where it has no critique, or is not well formed."""
    words = text.split()
    if len(words) < 3 or words[0] != THINK or words[-1] != END_THINK:
        return None
    inner = words[1:-1]
    if inner == [FINE]:
        return Rethinking((), None)
    if inner.count(SO) != 1:
        return None
    cut = inner.index(SO)
    remarks, plan = _parse_remarks(inner[:cut]), parse_plan(" ".join([THINK, *inner[cut + 1 :], END_THINK]))
    return None if remarks is None or plan is None else Rethinking(remarks, plan)


def _parse_remarks(words: Sequence[str]) -> tuple[Remark, ...] | None:
    """All remarks; None where one is none."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == AND:
            parts.append([])
        else:
            parts[-1].append(word)
    found = [_parse_remark(part) for part in parts]
    return tuple(remark for remark in found if remark is not None) if all(found) else None


def _object(words: Sequence[str]) -> Object | None:
    if len(words) != 3:
        return None
    colour, shape, cell = words
    known = colour in COLOURS and shape in PLURALS and cell in CELL_INDEX
    return Object(shape, colour, cell) if known else None


def _parse_remark(words: Sequence[str]) -> Remark | None:
    if words and words[0] in (MISSING, EXTRA):
        item = _object(words[1:])
        if item is None:
            return None
        return Remark(None, item) if words[0] == MISSING else Remark(item, None)
    old = _object(words[:3])
    if old is None or tuple(words[3:5]) != SHOULD:
        return None
    new = _new_words(old, words[5:])
    return None if new is None or new == old else Remark(old, new)


def _new_words(old: Object, words: Sequence[str]) -> Object | None:
    """What "green", "a square", "a green square" or "at b3" makes of an object."""
    match words:
        case [colour] if colour in COLOURS:
            return replace(old, colour=colour)
        case ["a", shape] if shape in PLURALS:
            return replace(old, shape=shape)
        case ["a", colour, shape] if colour in COLOURS and shape in PLURALS:
            return replace(old, colour=colour, shape=shape)
        case ["at", cell] if cell in CELL_INDEX:
            return replace(old, cell=cell)
    return None
