"""Recipes of several stages: one YAML, several runs, each of which starts from the last checkpoint of the one before.

``stages`` lists what a stage changes: its keys are laid over the common ones (``merging``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unigrpo.ranges import MOST_ITEMS, ConfigError, did_you_mean, shown
from unigrpo.recipe.merging import merged, value_at
from unigrpo.recipe.notation import Dumper, override_pairs, override_value, parse, read_text, with_key
from unigrpo.recipe.reading import read_recipe
from unigrpo.recipe.schema import Recipe

STAGES = "stages"
START = "stage:"
"""``stage:NAME`` as model.path: the last checkpoint of that stage, whose folder only the run knows."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class StagedRecipe:
    """Several recipes, to be run in order: ``written`` is what was given, with the command line's overrides.

    The recipes of ``stages`` are called ``<name>:<stage>``. All but the first have ``stage:<the one before>`` as their
    model.path, which is replaced by a folder when that stage is run.
    """

    name: str
    stages: tuple[Recipe, ...]
    written: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        """The names of the stages."""
        return [recipe.name.removeprefix(f"{self.name}:") for recipe in self.stages]

    def to_yaml(self) -> str:
        """The staged recipe as YAML, without what it leaves to defaults."""
        return yaml.dump(
            dict(self.written), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None
        )

    def folders(self, run_dir: Path) -> list[Path]:
        """The run folders of the stages: 1-NAME, 2-NAME and so on."""
        return _folders(run_dir, self.names)


def stage_folders(run_dir: Path) -> list[Path]:
    """The stages' folders of a staged run, in order, there or not; none for a run of a plain recipe.

    ConfigError where recipe.yaml cannot be read.
    """
    path = run_dir / "recipe.yaml"
    try:
        written = parse(read_text(path))
        return _folders(run_dir, [name for name, _ in _sections(written)]) if is_staged(written) else []
    except ConfigError as error:
        raise ConfigError(f"{path} is no recipe of a run: {error}") from error


def _folders(run_dir: Path, names: Sequence[str]) -> list[Path]:
    return [run_dir / f"{number}-{name}" for number, name in enumerate(names, start=1)]


def is_staged(written: Any) -> bool:
    """Whether what was written has stages."""
    return isinstance(written, Mapping) and STAGES in written


def staged_recipe(written: Mapping[str, Any]) -> StagedRecipe:
    """Read the recipe of every stage; ConfigError names the stage in which something cannot work."""
    name, common = written.get("name"), {key: value for key, value in written.items() if key != STAGES}
    if not isinstance(name, str):
        raise ConfigError(f"name = {shown(name)} is not the name of a recipe: set it to a text")
    recipes: list[Recipe] = []
    before: str | None = None
    for stage, own in _sections(written):
        try:
            whole = {**merged(common, own), "name": f"{name}:{stage}"}
            recipes.append(read_recipe(whole if before is None else _started(whole, own, before)))
        except ConfigError as error:
            raise ConfigError(f"stage {stage}: {error}") from None
        before = stage
    return StagedRecipe(name, tuple(recipes), written)


def _started(whole: Mapping[str, Any], own: Mapping[str, Any], before: str) -> dict[str, Any]:
    """The keys of a later stage, with the stage before as its start."""
    model, changed = whole.get("model") or {}, own.get("model")
    if not isinstance(model, Mapping):
        raise ConfigError(f"model = {shown(model)} is not a section: give it values for its keys")
    if isinstance(changed, Mapping) and "path" in changed:
        raise ConfigError(
            f"model.path = {shown(changed['path'])}: every stage but the first starts from the one before it, here "
            f"{before}; remove it, or make this a recipe of its own"
        )
    return {**whole, "model": {**model, "path": START + before}}


def _sections(written: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every stage's name and its own keys; ConfigError for a list that names no stages, or one twice."""
    listed, seen = written[STAGES], dict[str, int]()
    if not isinstance(listed, list) or not listed:
        raise ConfigError(
            f"{STAGES} = {shown(listed)} lists no stage: write a list, one item with name and keys for each stage, or "
            f"remove {STAGES}"
        )
    if len(listed) > MOST_ITEMS:
        raise ConfigError(f"{STAGES} lists {len(listed)} stages: {MOST_ITEMS} are the most")
    for number, own in enumerate(listed, start=1):
        if not isinstance(own, Mapping) or "name" not in own:
            raise ConfigError(f"stage {number} has no name: give it one, for example {{name: first, iterations: 50}}")
        name = own["name"]
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"stage {number} is called {shown(name)}, but the name of a stage is part of a folder's name: use "
                "letters, digits, - and _, a letter first"
            )
        if first := seen.get(_plain(name)):
            raise ConfigError(f"stages {first} and {number} are both called {name}: give them different names")
        seen[_plain(name)] = number
        yield name, {key: value for key, value in own.items() if key != "name"}


def _plain(name: str) -> str:
    """A stage's name as overrides spell it."""
    return name.replace("-", "_")


# Overrides


def with_overrides(written: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """What was written with the command line's overrides: of common keys, or of a stage's (``--stages.NAME.key``).

    A stage may also be meant by its number, from 1 as in the names of the folders. ConfigError where a stage sets a
    common key itself, so that the override would be lost.
    """
    given = [(key.split("."), value) for key, value in override_pairs(overrides)]
    common = [(keys, value) for keys, value in given if keys[0] != STAGES or len(keys) == 1]
    for keys, value in common:
        written = with_key(written, keys, override_value(".".join(keys), value))
    of_stages = [(keys, value) for keys, value in given if keys[0] == STAGES and len(keys) > 1]
    if not is_staged(written):
        if of_stages:
            raise ConfigError(
                f"--{'.'.join(of_stages[0][0])}: this recipe has no stages; leave out the first two parts"
            )
        return dict(written)
    names, listed = [name for name, _ in _sections(written)], list(written[STAGES])
    own = [(_position(keys, names), keys[2:], value) for keys, value in of_stages]
    _check_nothing_lost(written, names, common, [(position, keys) for position, keys, _ in own])
    for position, keys, value in own:
        where = f"{STAGES}.{names[position]}."
        listed[position] = with_key(listed[position], keys, override_value(where + ".".join(keys), value), where)
    return {**written, STAGES: listed}


def _position(keys: Sequence[str], names: Sequence[str]) -> int:
    """Which stage the second part of an override means."""
    said, plain = keys[1], [_plain(name) for name in names]
    if said not in plain and not (said.isdigit() and 1 <= int(said) <= len(names)):
        there = ", ".join(f"{number} {name}" for number, name in enumerate(names, start=1))
        raise ConfigError(f"--{'.'.join(keys)}: there is no stage {said}{did_you_mean(said, names)}; there are {there}")
    if len(keys) == 2:
        raise ConfigError(f"--{'.'.join(keys)} names no key: write --{STAGES}.{said}.KEY VALUE")
    return plain.index(said) if said in plain else int(said) - 1


def _check_nothing_lost(
    written: Mapping[str, Any],
    names: Sequence[str],
    common: Sequence[tuple[list[str], str]],
    own: Sequence[tuple[int, list[str]]],
) -> None:
    """ConfigError where an override of a common key does not reach a stage, unless that stage has one of its own."""
    below = {key: value for key, value in written.items() if key != STAGES}
    for keys, value in common:
        if keys in (["name"], [STAGES]):
            continue
        lost = [
            name
            for position, (name, stage) in enumerate(zip(names, written[STAGES], strict=True))
            if value_at(merged(below, stage), keys) != value_at(below, keys) and (position, keys) not in own
        ]
        if lost:
            key = ".".join(keys)
            instead = " ".join(f"--{STAGES}.{name}.{key} {value}" for name in lost)
            whose = f"stage {lost[0]} sets" if len(lost) == 1 else f"stages {' and '.join(lost)} set"
            raise ConfigError(f"--{key} {value} would be lost where {whose} {key} otherwise: write {instead}")
