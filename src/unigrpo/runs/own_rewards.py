"""Rewards of a user's own in a run folder: where they came from, so that a resumed run finds them again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unigrpo.loading import digest
from unigrpo.recipe import Recipe, StagedRecipe, stage_folders
from unigrpo.reports import runlog
from unigrpo.rewards import registry
from unigrpo.rewards.origins import Origin, read_origin

KEY = "rewards"  # of environment.json


def names(asked: Recipe | StagedRecipe) -> list[str]:
    """The rewards that a recipe, or any stage of it, names."""
    recipes = asked.stages if isinstance(asked, StagedRecipe) else (asked,)
    scorers = [s for recipe in recipes for s in (*recipe.reward.train, *recipe.reward.validation)]
    return list(dict.fromkeys(s.name for s in scorers))


def facts(asked: Recipe | StagedRecipe) -> dict[str, Any]:
    """What a run records of the rewards that are the user's own; empty without any."""
    found = registry.origins(names(asked))
    return {KEY: {name: origin.record() for name, origin in found.items()}} if found else {}


def recorded(run_dir: Path) -> dict[str, Origin]:
    """Where the rewards of a run (of all its stages) came from when it was last begun or resumed."""
    found: dict[str, Origin] = {}
    for folder in [run_dir, *(stage_folders(run_dir) if (run_dir / runlog.RECIPE).is_file() else [])]:
        before = runlog.read_json(folder / runlog.ENVIRONMENT)
        resumed = before.get("resumed")
        for entry in [before, *(resumed if isinstance(resumed, list) else [])]:
            rewards = entry.get(KEY) if isinstance(entry, Mapping) else None
            if isinstance(rewards, Mapping):
                found |= {name: read_origin(origin) for name, origin in rewards.items() if isinstance(origin, Mapping)}
    return found


def recall(run_dir: Path | None) -> None:
    """Know the rewards of the run to be resumed (None: a new run, which has none yet), and say which have changed."""
    found = {} if run_dir is None else recorded(run_dir)
    registry.recall(found)
    for name, origin in found.items():
        if origin.file is not None and Path(origin.file).is_file() and digest(origin.file) != origin.sha256:
            print(f"note: {origin.file}, which holds the reward {name!r}, has changed since the run began")


def lost(run_dir: Path) -> dict[str, Origin]:
    """The rewards of a run that only Python knows: no file holds them under a name that finds them again."""
    return {name: origin for name, origin in recorded(run_dir).items() if origin.reference is None}


def to_go_on(command: str, argv: list[str], run_dir: Path) -> str:
    """How to resume a run: the command, or where only Python knows a reward, what to do there."""
    if not (unknown := lost(run_dir)):
        return command
    name, origin = next(iter(unknown.items()))
    return f"register the reward {name!r} (which came from {origin}) and call unigrpo.cli.main({argv!r})"
