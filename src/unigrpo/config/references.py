"""Rewards that a recipe names by where they are: ``path/file.py:thing`` and ``package.module:thing``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REWARD_LISTS = ("train", "validation")


@dataclass(frozen=True)
class Reference:
    """A thing in a Python file (``place`` ends in .py) or in a module that can be imported."""

    place: str
    thing: str

    @property
    def is_file(self) -> bool:
        """Whether the place is a file."""
        return self.place.endswith(".py")

    @property
    def label(self) -> str:
        """The name for logs: that of a file without its folders, which differ from machine to machine."""
        return f"{os.path.basename(self.place)}:{self.thing}" if self.is_file else f"{self.place}:{self.thing}"


def reference(name: str) -> Reference | None:
    """Read ``path/file.py:thing`` or ``package.module:thing``; None for any other name."""
    place, _, thing = name.rpartition(":")
    if not place or not _dotted(thing):
        return None
    return Reference(place, thing) if place.endswith(".py") or _dotted(place) else None


def _dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def absolute_reward_name(name: str, folder: Path) -> str:
    """The name of a reward with an absolute file (relative ones are below ``folder``); other names as they are."""
    found = reference(name)
    if found is None or not found.is_file:
        return name
    return f"{os.path.abspath(folder / Path(found.place).expanduser())}:{found.thing}"


def with_absolute_rewards(written: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a recipe says, its stages' own keys too, with absolute files of rewards; what is malformed stays."""
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
    return [
        {**item, "name": absolute_reward_name(item["name"], folder)}
        if isinstance(item, Mapping) and isinstance(item.get("name"), str)
        else item
        for item in scorers
    ]
