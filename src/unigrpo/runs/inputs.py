"""The files and folders that a run reads: their hashes are kept with it, so that it can go on where one has moved.

A run folder's environment.json lists them under ``inputs``. ``--resume`` takes a new place for one of them; another
content is another run, and is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unigrpo import build
from unigrpo.ranges import ConfigError
from unigrpo.recipe import PromptData, Recipe, split_path
from unigrpo.reports import runlog
from unigrpo.training import checkpoint

MOVABLE = re.compile(
    r"--(stages\.[^.]+\.)?(model\.path|data\.(prompts|demonstrations)|eval\.prompts|reward\.(train|validation))"
)
"""Overrides that may name something that has moved."""
WHOLE, BLOCKS, BLOCK = 2**28, 512, 2**16
"""Files up to 256 MiB are hashed whole; of larger ones (weights) 512 blocks of 64 KiB, evenly spread, and the size."""


def names_of(recipe: Recipe) -> dict[str, str]:
    """The names in a recipe that may mean files, by their keys (those of rewards with a number)."""
    data = recipe.data
    names = {"model.path": recipe.model.path, "eval.prompts": recipe.eval.prompts}
    if isinstance(data, PromptData):
        names["data.prompts"] = data.prompts
    else:
        names["data.demonstrations"] = data.demonstrations
    for kind, scorers in (("train", recipe.reward.train), ("validation", recipe.reward.validation)):
        names |= {f"reward.{kind}[{number}]": scorer.name for number, scorer in enumerate(scorers)}
    return names


def renamed(recipe: Recipe, names: Mapping[str, str]) -> Recipe:
    """The recipe with the names of another (:func:`names_of`), which has as many."""
    data, reward = recipe.data, recipe.reward
    if isinstance(data, PromptData):
        data = replace(data, prompts=names["data.prompts"])
    else:
        data = replace(data, demonstrations=names["data.demonstrations"])
    train = (replace(scorer, name=names[f"reward.train[{i}]"]) for i, scorer in enumerate(reward.train))
    watch = (replace(scorer, name=names[f"reward.validation[{i}]"]) for i, scorer in enumerate(reward.validation))
    return replace(
        recipe,
        model=replace(recipe.model, path=names["model.path"]),
        data=data,
        eval=replace(recipe.eval, prompts=names["eval.prompts"]),
        reward=replace(reward, train=tuple(train), validation=tuple(watch)),
    )


def recorded(recipe: Recipe) -> dict[str, Any]:
    """What a run keeps of its files: name and hash by key, of all that are files or folders here."""
    found = {key: {"name": name, "sha256": digest(key, name)} for key, name in names_of(recipe).items()}
    return {key: entry for key, entry in found.items() if entry["sha256"] is not None}


def digest(key: str, name: str) -> str | None:
    """A hash of what a file or folder holds; None where the name is of neither (a world's prompts, a hub id)."""
    path = _path(key, name)
    if path is None or not path.exists():
        return None
    if path.is_file():
        return _hash([("", path)])
    if key == "model.path":
        folder = build.model_folder(str(path))
        files = [file for pattern in ("*.safetensors", "*.json", "*.txt") for file in folder.rglob(pattern)]
        return _hash((str(f.relative_to(folder)), f) for f in sorted(files) if not f.name.startswith("training_state."))
    return _hash((str(file.relative_to(path)), file) for file in sorted(path.rglob("*")) if file.is_file())


def _path(key: str, name: str) -> Path | None:
    _, path, _ = split_path("reward" if key.startswith("reward") else key, name)
    return Path(path) if path else None


def _hash(files: Any) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        size = path.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= WHOLE:
                digest.update(file.read())
                continue
            for number in range(BLOCKS):
                file.seek(number * (size - BLOCK) // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()


# A run that goes on


@dataclass(frozen=True)
class Resumed:
    """A run, or a stage of one, that goes on: its recipe as it began and as it is asked for now, and its folder.

    finished: nothing of it will be read again.
    """

    begun: Recipe
    asked: Recipe
    folder: Path
    finished: bool = False


def check_moved(runs: Sequence[Resumed]) -> list[str]:
    """Check what a resumed run is asked to read against what it began with; return notes for a person.

    ConfigError where a file is another one, is not there, or where more than places (and iterations) would change.
    """
    notes: list[str] = []
    for run in runs:
        old, new, folder = run.begun, run.asked, run.folder
        kept = _kept(folder)
        before, now = names_of(old), names_of(new)
        alike = replace(new, iterations=old.iterations, log=old.log, parallel=old.parallel)
        if before.keys() != now.keys() or renamed(alike, before) != old:
            raise ConfigError(
                "with --resume, a new place may be given for files that have moved, and nothing else may change: leave "
                "the numbers, weights and functions of the run as they were"
            )
        for key, name in () if run.finished else now.items():
            notes += _check_one(key, before[key], name, kept.get(key), begun=(folder / runlog.RECIPE).is_file())
    return list(dict.fromkeys(notes))


def _kept(folder: Path) -> dict[str, Any]:
    """What was recorded first: by the run, or, where that was before there were records, by one that went on."""
    environment = runlog.read_json(folder / runlog.ENVIRONMENT)
    entries = [environment, *environment.get("resumed", [])]
    return next((entry["inputs"] for entry in entries if isinstance(entry.get("inputs"), dict)), {})


def _check_one(key: str, before: str, now: str, kept: Any, *, begun: bool) -> list[str]:
    """Check one file; ``kept`` is what the run recorded of it."""
    if now != before:
        old, new = (split_path("reward" if key.startswith("reward") else key, name) for name in (before, now))
        if not old[1] or not new[1] or (old[0], old[2]) != (new[0], new[2]):
            raise ConfigError(
                f"{key} of this run is {before!r}: with --resume only a file that has moved gets a new place"
            )
    path = _path(key, now)
    found = None if path is None else digest(key, now)
    if found is None and now != before:
        raise ConfigError(f"{key}: {now} is not there, and with --resume only a file that has moved gets a new place")
    if found is None and path is not None and path.is_absolute():
        option = key.partition("[")[0]
        what = checkpoint.gone(path) or "not there"
        raise ConfigError(f"{key}: {path} is {what}: put it back, or say where it is now, --{option} PLACE")
    expected = kept.get("sha256") if isinstance(kept, dict) else None
    if found is None or found == expected or not begun:
        return []
    if now == before:  # of rewards, the caller says it
        said = expected is not None and not key.startswith("reward")
        return [f"note: {key} {now} is not what it was when the run began"] if said else []
    if expected is None:
        return [f"note: {key} {now}: nothing is known of what it was when the run began, it is taken as the same"]
    raise ConfigError(
        f"{key} {now} does not hold what {before} held when the run began: name the new place of that, or start "
        "a new run"
    )
