"""Edits of the shapes world: one change that is asked of a given scene, what may come of it, and when it is done.

An edit has two halves: what must change (an object is recoloured, moved, removed, added or replaced) and what must stay
(all other objects, in their cells, and nothing else). :func:`judge_edit` is the one rule for both, for planned scenes
and for those that were read from a picture. :mod:`...edit_prompts` makes the instructions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from unigrpo.worlds.shapes.planner import CONFUSED_COLOUR, CONFUSED_SHAPE, slip
from unigrpo.worlds.shapes.scenes import CELLS, Judgement, Kind, Object, Scene, judge

EDITS = ("recolour", "move", "move_relative", "remove", "add", "replace")
"""The categories of edits; evaluations tell them apart."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The object that an edit wants: its kind, and the cells in which it may be."""

    shape: str
    colour: str
    cells: tuple[str, ...]

    def at(self, cell: str) -> Object:
        """The object in one of its cells."""
        return Object(self.shape, self.colour, cell)


@dataclass(frozen=True)
class Edit:
    """One change of a source scene.

    edited: the object of the source that is no longer to be there as it was (None: one is added); wanted: what is to be
    there then (None: it is removed); instruction: the words; combination: what the splits are made of, the words but
    those that only point at the object (``edit_prompts``).
    """

    category: str
    source: Scene
    edited: Object | None
    wanted: Wanted | None
    instruction: str = ""
    combination: str = ""

    @property
    def kept(self) -> tuple[Object, ...]:
        """The objects that must stay as they are."""
        return tuple(item for item in self.source.objects if item != self.edited)

    @property
    def left(self) -> str | None:
        """The cell that must be empty then, because its object was moved or removed; None where there is none."""
        if self.edited is None or (self.wanted is not None and self.edited.cell in self.wanted.cells):
            return None
        return self.edited.cell

    def metadata(self) -> dict[str, Any]:
        """The JSON-able requirements of the edit, which :func:`edit_of` reads."""
        wanted = self.wanted and {
            "shape": self.wanted.shape,
            "colour": self.wanted.colour,
            "cells": list(self.wanted.cells),
        }
        return {
            "category": self.category,
            "source": [{"shape": o.shape, "colour": o.colour, "cell": o.cell} for o in self.source.objects],
            "edited": None if self.edited is None else self.source.objects.index(self.edited),
            "wanted": wanted,
        }

    def results(self) -> list[Scene]:
        """Every scene that does the edit, one for each cell that the wanted object may have; the source's order."""
        if self.wanted is None:
            return [Scene(self.kept)]
        made = [self.wanted.at(cell) for cell in self.wanted.cells]
        if self.edited is None:
            return [Scene((*self.kept, item)) for item in made]
        objects = self.source.objects
        return [Scene(tuple(item if o == self.edited else o for o in objects)) for item in made]


def is_edit(metadata: Mapping[str, Any]) -> bool:
    """Whether a prompt of the shapes world asks for an edit."""
    return "source" in metadata and "wanted" in metadata


def edit_of(metadata: Mapping[str, Any]) -> Edit:
    """The edit that a prompt's metadata describes, without its words; ValueError if a key is missing or wrong."""
    try:
        source = Scene(tuple(Object(item["shape"], item["colour"], item["cell"]) for item in metadata["source"]))
        edited, wanted = metadata["edited"], metadata["wanted"]
        edit = Edit(
            metadata["category"],
            source,
            None if edited is None else source.objects[edited],
            None if wanted is None else Wanted(wanted["shape"], wanted["colour"], tuple(wanted["cells"])),
        )
        edit.results()
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(
            f"this is not the metadata of an edit ({error!r} in {dict(metadata)!r}): the verifier shapes/edit needs "
            "category, source, edited and wanted, which the prompts shapes:edit and shapes:edit-held-out have"
        ) from error
    if edit.edited is None and edit.wanted is None:
        raise ValueError("an edit that neither takes an object nor wants one asks for nothing: set edited or wanted")
    return edit


# Judging


def judge_edit(scene: Scene, metadata: Mapping[str, Any]) -> Judgement:
    """Judge a scene as the result of an edit: the points of what must change, then of what must stay.

    Changed: the wanted object is in one of its cells; the edited one is gone from the cell that it leaves. Kept: each
    other object is where it was, and nothing is in a cell that none of these may have. correct = all points.
    """
    edit = edit_of(metadata)
    points = (*changed_points(scene, edit), *kept_points(scene, edit))
    return Judgement(all(met for _, met in points), points)


def judged(scene: Scene, metadata: Mapping[str, Any]) -> Judgement:
    """Judge a scene by the rule of its prompt: as an edit where it is one, else as a picture (``scenes.judge``)."""
    return judge_edit(scene, metadata) if is_edit(metadata) else judge(scene, metadata)


def changed_points(scene: Scene, edit: Edit) -> tuple[tuple[str, bool], ...]:
    """(question, met) for what must change."""
    points, shown = [], {item.cell: item for item in scene.objects}
    if edit.wanted is not None:
        words, cells = f"{edit.wanted.colour} {edit.wanted.shape}", " or ".join(edit.wanted.cells)
        found = any(shown.get(cell) == edit.wanted.at(cell) for cell in edit.wanted.cells)
        points.append((f"is there a {words} at {cells}", found))
    if edit.edited is not None and edit.left is not None:
        question = f"is the {edit.edited.colour} {edit.edited.shape} gone from {edit.left}"
        points.append((question, edit.left not in shown))
    return tuple(points)


def kept_points(scene: Scene, edit: Edit) -> tuple[tuple[str, bool], ...]:
    """(question, met) for what must stay."""
    shown = set(scene.objects)
    points = [(f"is the {item.colour} {item.shape} still at {item.cell}", item in shown) for item in edit.kept]
    taken = {item.cell: item for item in scene.objects}
    empty = empty_cells(edit, _placed(taken, edit))
    return (*points, ("is there nothing else", not any(cell in taken for cell in empty)))


def empty_cells(edit: Edit, placed: str | None) -> tuple[str, ...]:
    """The cells in which nothing was and nothing may be; ``placed``: where the wanted object is taken to be."""
    used = {item.cell for item in edit.source.objects} | {placed}
    return tuple(cell for cell in CELLS if cell not in used)


def _placed(shown: Mapping[str, Object], edit: Edit) -> str | None:
    """Where the wanted object is, or else what stands for it: the first of its cells that is not empty."""
    if edit.wanted is None:
        return None
    right = [cell for cell in edit.wanted.cells if shown.get(cell) == edit.wanted.at(cell)]
    return next(iter(right or [cell for cell in edit.wanted.cells if cell in shown]), None)


# Showing it to pupils


def sample_target(metadata: Mapping[str, Any], generator: random.Random, unsorted: float = 0.0) -> Scene:
    """A random scene that does the edit; objects in random order with probability ``unsorted``, else row-major.

    ``planner.format_plan`` writes it as a plan: all objects of the result, as for any other picture.
    """
    scene = generator.choice(edit_of(metadata).results())
    if generator.random() >= unsorted:
        return scene.row_major()
    objects = list(scene.objects)
    generator.shuffle(objects)
    return Scene(tuple(objects))


def corrupt_target(scene: Scene, metadata: Mapping[str, Any], generator: random.Random) -> Scene:
    """The scene with one plausible mistake, so that the edit is not done or something else is changed.

    The likely ones: nothing is changed; the change happens to another object; the changed object has another colour or
    shape; something that must stay is moved, changed, lost or added (``planner.slip``).
    """
    edit, sorted_before = edit_of(metadata), scene == scene.row_major()
    for _ in range(_ATTEMPTS):
        kind = generator.choices(("unchanged", "other object", "other kind", "slip"), (3, 3, 2, 2))[0]
        made = _mistaken(kind, edit, scene, generator)
        if made is not None and made.objects and not judge_edit(made, metadata).correct:
            return made.row_major() if sorted_before else made
    raise ValueError("no mistake was found that spoils this edit: its source needs an object that must stay")


_ATTEMPTS = 100


def _mistaken(kind: str, edit: Edit, scene: Scene, draws: random.Random) -> Scene | None:
    match kind:
        case "unchanged":
            return edit.source
        case "other object":
            return _to_another(edit, draws)
        case "other kind":
            return _of_another_kind(edit, scene, draws)
        case _:
            return slip(scene, draws)


def _to_another(edit: Edit, draws: random.Random) -> Scene | None:
    """The same change of an object that must stay; None where the edit points at none, or there is no other."""
    if edit.edited is None or not edit.kept:
        return None
    other = draws.choice(edit.kept)
    if edit.wanted is None:
        return Scene(tuple(item for item in edit.source.objects if item != other))
    moved = edit.left is not None
    cell = draws.choice(edit.wanted.cells) if moved else other.cell
    match edit.category:
        case "recolour":
            made = replace(other, colour=edit.wanted.colour)
        case "replace":
            made = edit.wanted.at(cell)
        case _:
            made = replace(other, cell=cell)
    return Scene(tuple(made if item == other else item for item in edit.source.objects))


def _of_another_kind(edit: Edit, scene: Scene, draws: random.Random) -> Scene | None:
    """The wanted object in another colour, or another shape that is easily confused with its own."""
    if edit.wanted is None:
        return None
    kind = Kind(edit.wanted.shape, edit.wanted.colour)
    places = [i for i, item in enumerate(scene.objects) if kind.matches(item) and item.cell in edit.wanted.cells]
    if not places:
        return None
    item = scene.objects[places[0]]
    changed = (
        replace(item, colour=CONFUSED_COLOUR[item.colour])
        if draws.random() < 0.5
        else replace(item, shape=CONFUSED_SHAPE[item.shape])
    )
    return Scene(tuple(changed if i == places[0] else other for i, other in enumerate(scene.objects)))
