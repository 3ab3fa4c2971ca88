"""Instructions for edits of the shapes world: "make the ring blue", "move the red circle to the left of the square".

Every instruction points at exactly one object of its source picture. Train and held-out share no combination: what is
asked ("make ring blue"), whatever the picture, and whether or not the words name the colour that the object has. So no
instruction of one split occurs in the other.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from unigrpo import seeds
from unigrpo.trajectory import Prompt
from unigrpo.worlds.shapes.edits import EDITS, Edit, Wanted
from unigrpo.worlds.shapes.planner import random_scene
from unigrpo.worlds.shapes.renderer import enlarged, render
from unigrpo.worlds.shapes.scenes import CELLS, COLOURS, RELATIONS, SHAPES, Object, Scene, related

SPLITS = ("edit", "edit-held-out", "edit-large", "edit-large-held-out")
"""In a recipe shapes:edit ...; the large ones are for models that draw photographs: pictures of 512 pixels a side, and
no words that name a cell."""
_SPOKEN = ("recolour", "move_relative", "remove", "replace")
"""Categories of the large ones."""
HELD_OUT_SHARE = 0.22
HELD_OUT_SALT = 153
"""Chosen once, so that the few held-out combinations name all shapes, and all colours (but one that is removed)."""
OBJECTS = (2, 4)
"""Objects of a source scene, at least and at most."""
PLAIN = 0.4
"""Share of the objects with a shape of their own that are named without their colour."""
PHRASES = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}
_VERBS = ("make", "move", "remove", "add", "replace")
WORDS = (*_VERBS, "the", "to", "with", "a", "an", "of", "left", "right", "above", "below", "at")
"""All words of instructions but colours, shapes and cells."""
_COLOURS = tuple(COLOURS)


def categories(split: str) -> tuple[str, ...]:
    """The categories of a split's edits, in turn; ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"the shapes world has no edits {split!r}: splits are {', '.join(SPLITS)} (shapes:edit)")
    return _SPOKEN if "large" in split else EDITS


def held_out(combination: str) -> bool:
    """Whether a combination is kept for evaluation: by its blake2b hash, about ``HELD_OUT_SHARE`` of all."""
    text = f"{HELD_OUT_SALT}: {combination}"
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    return number < HELD_OUT_SHARE * 2**64


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _alone(source: Scene) -> set[str]:
    """The shapes of which the scene has exactly one."""
    shapes = [item.shape for item in source.objects]
    return {shape for shape in shapes if shapes.count(shape) == 1}


def _named(source: Scene, draws: random.Random) -> tuple[Object, str] | None:
    """A random object and words that point at it alone; None where another one has its shape and colour."""
    item = draws.choice(source.objects)
    if item.shape in _alone(source) and draws.random() < PLAIN:
        return item, item.shape
    same = [other for other in source.objects if (other.shape, other.colour) == (item.shape, item.colour)]
    return (item, f"{item.colour} {item.shape}") if len(same) == 1 else None


def _free(source: Scene) -> list[str]:
    return [cell for cell in CELLS if all(item.cell != cell for item in source.objects)]


def _recolour(source: Scene, draws: random.Random) -> Edit | None:
    if (named := _named(source, draws)) is None:
        return None
    item, name = named
    colour = draws.choice([c for c in _COLOURS if c != item.colour])
    wanted = Wanted(item.shape, colour, (item.cell,))
    return Edit("recolour", source, item, wanted, f"make the {name} {colour}", f"make {item.shape} {colour}")


def _move(source: Scene, draws: random.Random) -> Edit | None:
    if (named := _named(source, draws)) is None:
        return None
    item, name = named
    cell = draws.choice(_free(source))
    wanted = Wanted(item.shape, item.colour, (cell,))
    return Edit("move", source, item, wanted, f"move the {name} to {cell}", f"move {item.shape} {cell}")


def _move_relative(source: Scene, draws: random.Random) -> Edit | None:
    """Beside an object with a shape of its own, on a side where the moved one is not yet, and where there is room."""
    others = [item for item in source.objects if item.shape in _alone(source)]
    if (named := _named(source, draws)) is None or not others:
        return None
    (item, name), other, relation = named, draws.choice(others), draws.choice(RELATIONS)
    cells = tuple(cell for cell in _free(source) if related(relation, cell, other.cell))
    if other == item or not cells or related(relation, item.cell, other.cell):
        return None
    wanted = Wanted(item.shape, item.colour, cells)
    phrase = f"{PHRASES[relation]} the {other.shape}"
    return Edit("move_relative", source, item, wanted, f"move the {name} {phrase}", f"move {item.shape} {phrase}")


def _remove(source: Scene, draws: random.Random) -> Edit | None:
    item = draws.choice(source.objects)
    if sum((other.shape, other.colour) == (item.shape, item.colour) for other in source.objects) > 1:
        return None
    words = f"remove the {item.colour} {item.shape}"
    return Edit("remove", source, item, None, words, words)


def _add(source: Scene, draws: random.Random) -> Edit | None:
    shape, colour, cell = draws.choice(SHAPES), draws.choice(_COLOURS), draws.choice(_free(source))
    words = f"add {_article(f'{colour} {shape}')}"
    return Edit("add", source, None, Wanted(shape, colour, (cell,)), f"{words} at {cell}", words)


def _replace(source: Scene, draws: random.Random) -> Edit | None:
    if (named := _named(source, draws)) is None:
        return None
    item, name = named
    shape, colour = draws.choice([s for s in SHAPES if s != item.shape]), draws.choice(_COLOURS)
    new = _article(f"{colour} {shape}")
    wanted = Wanted(shape, colour, (item.cell,))
    return Edit(
        "replace", source, item, wanted, f"replace the {name} with {new}", f"replace {item.shape} with {colour} {shape}"
    )


_MAKERS: dict[str, Callable[[Scene, random.Random], Edit | None]] = {
    "recolour": _recolour,
    "move": _move,
    "move_relative": _move_relative,
    "remove": _remove,
    "add": _add,
    "replace": _replace,
}


def sample_edit(draws: random.Random, split: str = "edit", category: str | None = None) -> Edit:
    """A random edit of a split over a random source scene of 2 to 4 objects; ``category``: None for any, uniformly.

    ValueError for an unknown split or category.
    """
    known = categories(split)
    category = draws.choice(known) if category is None else category
    if category not in known:
        raise ValueError(f"there are no edits called {category!r}: there are {', '.join(known)}")
    while True:
        edit = _MAKERS[category](random_scene(draws, *OBJECTS), draws)
        if edit is not None and held_out(edit.combination) == split.endswith("held-out"):
            return edit


def edit_prompt(position: int, edit: Edit, *, large: bool = False) -> Prompt:
    """The edit as a prompt: its words, its requirements, and its source picture uint8 [3, 32, 32] (large: 512)."""
    picture = enlarged(edit.source) if large else (render([edit.source])[0] * 255).round().byte()
    return Prompt(position, edit.instruction, edit.metadata(), (picture,))


@dataclass(frozen=True)
class EditStream:
    """An endless stream of edits with random access; the one at a position depends on (seed, split) only.

    Of any six from position 6k on, each category has one, in a random order (of the large splits: four, 4k).
    """

    split: str
    seed: int

    def __post_init__(self) -> None:
        categories(self.split)

    def edit(self, position: int) -> Edit:
        """The edit at one position of the stream."""
        known = categories(self.split)
        block, place = divmod(position, len(known))
        order = random.Random(seeds.key(self.seed, 0, block, 0, "shapes edit order"))
        category = order.sample(known, len(known))[place]
        return sample_edit(random.Random(seeds.key(self.seed, 0, position, 0, "shapes edit")), self.split, category)

    def at(self, position: int) -> Prompt:
        """The prompt at one position of the stream."""
        return edit_prompt(position, self.edit(position), large="large" in self.split)

    def batch(self, iteration: int, n: int) -> list[Prompt]:
        """The prompts at positions iteration * n ... iteration * n + n - 1."""
        return [self.at(position) for position in range(iteration * n, iteration * n + n)]


def fixed_edits(split: str, n: int, seed: int = 0) -> list[Prompt]:
    """A fixed list of n edits for evaluation, categories in turn; a shorter list is the beginning of a longer one."""
    known, large = categories(split), "large" in split
    keys = [seeds.key(seed, 0, position, 0, f"shapes fixed {split}") for position in range(n)]
    edits = [sample_edit(random.Random(k), split, known[position % len(known)]) for position, k in enumerate(keys)]
    return [edit_prompt(position, edit, large=large) for position, edit in enumerate(edits)]
