"""What an adapter or a run stands on: found, known again by its weights, and kept while it is needed."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from unigrpo.files import read_json_object
from unigrpo.models.bagel_files.checkpoint import MODEL
from unigrpo.models.bagel_files.public import HUB_ID, is_public
from unigrpo.models.bagel_files.tensor_files import WEIGHTS, TensorFiles
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Recipe
from unigrpo.training import checkpoint
from unigrpo.training.adapter_files import BASE, CONFIG, Base, read_config
from unigrpo.training.adapter_files import WEIGHTS as ADAPTER_WEIGHTS

DEEPEST = 32  # adapters on adapters


@dataclass(frozen=True)
class Found:
    """A base as it can be loaded: builtin:NAME, init:NAME, a hub id or a folder; ``seed`` is of one that is made."""

    path: str
    seed: int | None


def is_adapter(folder: Path) -> bool:
    """Whether a model folder holds an adapter, which needs its base."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path, depth: int = 0) -> Found | None:
    """Where the base of an adapter folder is; None if it names none. Its weights are not looked at.

    A folder is looked for where the adapter says, then as its note has it seen from the adapter, then beside the
    adapter's folder. ConfigError where there is none.
    """
    name, note = read_config(folder).get("base_model_name_or_path"), Base.read(folder)
    if name is None:
        return None
    if depth > DEEPEST:
        raise ConfigError(f"the adapter in {folder} stands on itself: correct base_model_name_or_path in {CONFIG}")
    seed = None if note is None else note.seed
    if name.startswith(("builtin:", "init:")):
        return Found(name, seed)
    places = [Path(name), folder.absolute().parent / name]
    if note is not None and note.place is not None:
        places.insert(1, folder.absolute() / note.place)
    for place in places:
        if place.is_dir():
            if is_adapter(place):
                base_of(place, depth + 1)
            return Found(name if place == Path(name) else str(place.resolve()), seed)
    if re.fullmatch(HUB_ID, name):
        return Found(name, seed)
    what = checkpoint.gone(Path(name))
    raise ConfigError(
        f"the adapter in {folder} needs its base {name}, which is {what or 'not there'}: put that folder back, or, if "
        f"it was moved, write its new place as base_model_name_or_path into {folder / CONFIG}"
    )


def note_of(folder: Path) -> dict[str, object]:
    """What an adapter's folder says of its base beside the name."""
    return dict(read_json_object(folder / BASE))


def key_of(folder: Path) -> str:
    """A hash of the weights of a model folder; of an adapter's, of its own and of its base's."""
    if not is_adapter(folder):
        return TensorFiles.open(folder, WEIGHTS if is_public(folder) else (MODEL,)).key()
    own, note = TensorFiles.of(folder / ADAPTER_WEIGHTS).key(), Base.read(folder)
    return hashlib.sha256(f"{own} on {'an unknown base' if note is None else note.key}".encode()).hexdigest()


def require_same(folder: Path, found: Found, base: Path) -> None:
    """ConfigError where the ``base`` that was found for an adapter is not the one that it was trained on."""
    note = Base.read(folder)
    if note is not None and key_of(base) != note.key:
        raise ConfigError(
            f"the adapter in {folder} was trained on another model than {found.path}: the weights there are not those "
            f"that {BASE} keeps the hash of. Put the base back, or write its place as base_model_name_or_path into "
            f"{folder / CONFIG}"
        )


# The start of a run


def held(recipe: Recipe, start: Path) -> Recipe:
    """A recipe whose start is one checkpoint of another run, named by its folder and kept by that run from now on.

    Named: the run folder would mean another checkpoint as soon as that run goes on. ``start`` is the model folder that
    model.path means; where that is no checkpoint of a run, the recipe stays as it is.
    """
    if not checkpoint.is_one(start):
        return recipe
    checkpoint.hold(start, recipe.name)
    for below in _standing_on(start):
        checkpoint.hold(below, recipe.name)
    return replace(recipe, model=replace(recipe.model, path=str(start.resolve())))


def require_start(path: str) -> None:
    """ConfigError where the checkpoint that a run starts from was deleted while it was read."""
    if (what := checkpoint.gone(Path(path))) is not None:
        raise ConfigError(f"model.path = {path}, which is {what}: name another one")


def _standing_on(folder: Path) -> list[Path]:
    """The checkpoints of runs that an adapter's folder needs, from its base down."""
    found = base_of(folder) if is_adapter(folder) else None
    below = None if found is None else Path(found.path)
    if below is None or not below.is_dir():
        return []
    return [*([below] if checkpoint.is_one(below) else []), *_standing_on(below)]
