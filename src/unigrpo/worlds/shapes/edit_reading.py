"""Understanding instructions that people type: from words and a source scene to the edit that the verifier judges."""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from unigrpo.worlds.shapes.edit_prompts import PHRASES
from unigrpo.worlds.shapes.edits import Edit, Wanted
from unigrpo.worlds.shapes.parsing import normalise_prompt
from unigrpo.worlds.shapes.scenes import CELLS, COLOURS, SHAPES, Object, Scene, related
from unigrpo.worlds.shapes.verifier import read_scenes

_COLOUR, _SHAPE, _CELL = ("|".join(words) for words in (COLOURS, SHAPES, CELLS))
_THE = rf"the (?:(?P<colour>{_COLOUR}) )?(?P<shape>{_SHAPE})"
_NEW = rf"an? (?P<new_colour>{_COLOUR}) (?P<new_shape>{_SHAPE})"
_SIDES = {phrase: kind for kind, phrase in PHRASES.items()}
_FORMS = {
    "recolour": rf"make {_THE} (?P<new_colour>{_COLOUR})",
    "move": rf"move {_THE} to (?P<cell>{_CELL})",
    "move_relative": rf"move {_THE} (?P<side>{'|'.join(_SIDES)}) the (?P<other>{_SHAPE})",
    "remove": rf"remove {_THE}",
    "add": rf"add {_NEW} at (?P<cell>{_CELL})",
    "replace": rf"replace {_THE} with {_NEW}",
}
_EXAMPLES = (
    '"make the ring blue", "move the red circle to b3", "move the red circle to the left of the square", '
    '"remove the red circle", "add a blue square at b3", "replace the ring with a red circle"'
)


def parse_edit(text: str, source: Scene) -> Edit:
    """The edit that words ask of a scene, in any case and punctuation; ValueError says what cannot be understood."""
    words = normalise_prompt(text)
    for category, form in _FORMS.items():
        if found := re.fullmatch(form, words):
            edit = _edit(category, {k: v for k, v in found.groupdict().items() if v is not None}, source, words)
            return replace(edit, instruction=words)
    raise ValueError(f"cannot understand the edit {text!r}: ask for one change of one object, such as {_EXAMPLES}")


def read_source(picture: Tensor) -> Scene:
    """The scene that a source picture uint8 [3, 32, 32] shows; ValueError where it shows other things."""
    (reading,) = read_scenes(picture[None].float() / 255.0)
    if reading.smudges:
        raise ValueError("the picture has cells that show no object of the shapes world: give one that it has drawn")
    return reading.scene


def _edit(category: str, said: dict[str, str], source: Scene, words: str) -> Edit:
    cells = {item.cell for item in source.objects}
    item = _only(source, said["shape"], said.get("colour"), words) if "shape" in said else None
    if (cell := said.get("cell")) in cells:
        raise ValueError(f"{words!r}: {cell} is not empty, and a cell holds one object: name another cell")
    if item is None:
        return Edit(category, source, None, Wanted(said["new_shape"], said["new_colour"], (said["cell"],)))
    match category:
        case "remove":
            return Edit(category, source, item, None)
        case "move":
            return Edit(category, source, item, Wanted(item.shape, item.colour, (said["cell"],)))
        case "move_relative":
            return Edit(category, source, item, Wanted(item.shape, item.colour, _beside(said, source, words)))
        case _:
            return Edit(
                category, source, item, Wanted(said.get("new_shape", item.shape), said["new_colour"], (item.cell,))
            )


def _only(source: Scene, shape: str, colour: str | None, words: str) -> Object:
    """The one object that words point at."""
    found = [item for item in source.objects if item.shape == shape and colour in (None, item.colour)]
    if len(found) != 1:
        name = shape if colour is None else f"{colour} {shape}"
        how = "name its colour, or another object" if found else "name one that is there"
        raise ValueError(f"{words!r}: the picture has {len(found)} of what is called the {name}: {how}")
    return found[0]


def _beside(said: dict[str, str], source: Scene, words: str) -> tuple[str, ...]:
    """The empty cells on a side of another object."""
    other, kind = _only(source, said["other"], None, words), _SIDES[said["side"]]
    taken = {item.cell for item in source.objects}
    cells = tuple(cell for cell in CELLS if cell not in taken and related(kind, cell, other.cell))
    if not cells:
        raise ValueError(f"{words!r}: there is no empty cell {said['side']} the {other.shape}: name another side")
    return cells
