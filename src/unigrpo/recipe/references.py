"""Rewards that a recipe names by where they are: ``path/file.py:thing`` and ``package.module:thing``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unigrpo.loading import reference

REWARD_LISTS = ("train", "validation")


def absolute_own_name(name: str, folder: Path) -> str:
    """A name with an absolute file, if it is of one's own (relative ones are below ``folder``); others as they are."""
    found = reference(name)
    if found is None or not found.is_file:
        return name
    return f"{os.path.abspath(folder / Path(found.place).expanduser())}:{found.thing}"


def with_absolute_rewards(written: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a recipe says, its stages' own keys too, with absolute paths of rewards and in their args.

    What is malformed stays as it is.
    """
    whole = dict(written)
    if isinstance(stages := whole.get("stages"), list):
        whole["stages"] = [with_absolute_rewards(s, folder) if isinstance(s, Mapping) else s for s in stages]
    if isinstance(rewards := whole.get("reward"), Mapping):
        lists = {key: _absolute(value, folder) for key, value in rewards.items() if key in REWARD_LISTS}
        whole["reward"] = {**rewards, **lists}
    return whole


def _absolute(scorers: Any, folder: Path) -> Any:
    """The list of one key of the section ``reward``."""
    if not isinstance(scorers, list):
        return scorers
    return [_absolute_scorer(item, folder) if isinstance(item, Mapping) else item for item in scorers]


def _absolute_scorer(item: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """One reward; of its args those that can only be paths, because they begin with ./, ../ or ~/."""
    made = dict(item)
    if isinstance(name := item.get("name"), str):
        made["name"] = absolute_own_name(name, folder)
    if isinstance(args := item.get("args"), Mapping):
        made["args"] = {key: _absolute_argument(value, folder) for key, value in args.items()}
    return made


def _absolute_argument(value: Any, folder: Path) -> Any:
    if not isinstance(value, str) or not value.startswith(("./", "../", "~/")):
        return value
    return os.path.abspath(folder / Path(value).expanduser())
