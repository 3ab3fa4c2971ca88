"""Where a recipe is written: under its name in the package, or in a file; and what it extends."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from unigrpo.ranges import ConfigError, did_you_mean, shown
from unigrpo.recipe.merging import merged
from unigrpo.recipe.notation import parse, read_text
from unigrpo.recipe.paths import absolute
from unigrpo.recipe.stages import STAGES

EXTENDS = "extends"
LONGEST_CHAIN = 8
"""How many recipes may extend each other in a row."""
FILES = (".yaml", ".yml")
_OWN = ("name", "description")  # what a recipe is called is never taken from the one that it extends


@dataclass(frozen=True)
class Source:
    """One recipe as text. ``name`` names it in errors; ``path`` is the file it was read from, None if it ships."""

    name: str
    text: str
    path: Path | None

    @property
    def identity(self) -> str:
        """The same for two sources that are one recipe."""
        return self.name if self.path is None else str(self.path.resolve())

    @property
    def folder(self) -> Path:
        """What its paths are relative to: its own folder; of one that ships the working folder."""
        return Path.cwd() if self.path is None else self.path.parent

    @property
    def written(self) -> Mapping[str, Any]:
        """Its keys as written, with absolute paths (``paths``); ConfigError where there are none."""
        written = parse(self.text)
        if not isinstance(written, Mapping):
            raise ConfigError(
                "the file holds no keys: write at least name, iterations, model, data, reward, method and eval, or "
                "extends with the recipe to start from"
            )
        return absolute(written, self.folder, None if self.path is None else Path.cwd())


def shipped() -> dict[str, Traversable]:
    """The recipes of the package by name."""

    def walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
        for entry in folder.iterdir():
            if entry.is_dir():
                yield from walk(entry, f"{prefix}{entry.name}/")
            elif entry.name.endswith(".yaml"):
                yield prefix + entry.name.removesuffix(".yaml"), entry

    return dict(sorted(walk(resources.files("unigrpo") / "recipes", "")))


def is_recipe_file(name: str) -> bool:
    """Whether a recipe is named by its file, and not one that ships with the package."""
    return name.endswith(FILES)


def find(name: str, folder: Path) -> Source:
    """A shipped recipe by name, or a .yaml file, whose path may be relative to ``folder``; ConfigError."""
    if is_recipe_file(name):
        path = Path(os.path.abspath(folder / name))  # a link's own folder counts, not that of what it links to
        return Source(name, read_text(folder / name), path)
    recipes = shipped()
    if name not in recipes:
        near = did_you_mean(name, list(recipes)) or f" (there are {', '.join(recipes)})"
        raise ConfigError(
            f"no recipe {shown(name)} ships with the package{near}: for your own, give the path of a .yaml file"
        )
    return Source(name, recipes[name].read_text(encoding="utf-8"), None)


def resolved(source: Source) -> dict[str, Any]:
    """The keys of a recipe, laid over those of the recipes that it extends; ConfigError.

    A recipe that extends another is called by the stem of its file, unless it has a name of its own.
    """
    layers, chain = [dict(source.written)], [source]
    if EXTENDS in layers[0] and source.path is not None:
        layers[0] = {"name": source.path.stem, **layers[0]}
    while EXTENDS in layers[-1]:
        base = _extended(layers[-1].pop(EXTENDS), chain)
        try:
            below = {key: value for key, value in base.written.items() if key not in _OWN}
            if STAGES in below:
                raise ConfigError(f"it has {STAGES} and cannot be extended: copy it with `unigrpo recipe {base.name}`")
        except ConfigError as error:
            raise ConfigError(f"{EXTENDS}: {base.name}: {error}") from None
        layers.append(below)
        chain.append(base)
    own = {key: layers[0].pop(key) for key in _OWN if key in layers[0]}
    return {**own, **functools.reduce(merged, reversed(layers))}  # from the ground up: what is laid over has its name


def _extended(name: Any, chain: list[Source]) -> Source:
    """The recipe that the last one of a chain extends."""
    if not isinstance(name, str):
        raise ConfigError(
            f"{EXTENDS} = {shown(name)} is not one recipe: give the name of a shipped recipe, or the path of a .yaml "
            "file, relative to this one"
        )
    if len(chain) == LONGEST_CHAIN:
        raise ConfigError(f"{EXTENDS} = {shown(name)}: more than {LONGEST_CHAIN} recipes in a row; shorten the chain")
    try:
        base = find(name, chain[-1].folder)
    except ConfigError as error:
        raise ConfigError(f"{EXTENDS} = {shown(name)}: {error}") from None
    if base.identity in {source.identity for source in chain}:
        circle = " -> ".join([*(source.name for source in chain), base.name])
        raise ConfigError(f"{EXTENDS} = {shown(name)} goes in a circle: {circle}")
    return base
