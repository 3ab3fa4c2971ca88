"""From keyword arguments to the overrides of a recipe: nested mappings, or keys with __ in place of dots."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from unigrpo.ranges import ConfigError, did_you_mean, shown
from unigrpo.recipe import sources
from unigrpo.recipe.merging import replaced
from unigrpo.recipe.notation import Dumper

ARGUMENTS = ("model", "prompts", "reward", "recipe", "out", "resume")
"""What ``train`` takes beside the keys of a recipe."""


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments as nested mappings: ``optimizer__lr_reasoning=1e-4`` is ``optimizer={"lr_reasoning": 1e-4}``.

    ConfigError where a key is set twice.
    """
    made: dict[str, Any] = {}
    for key, value in overrides.items():
        made = joined(made, functools.reduce(lambda inner, part: {part: inner}, reversed(key.split("__")), value))
    return made


def joined(first: Mapping[str, Any], second: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Two nested mappings in one; ConfigError where both set a key."""
    made = dict(first)
    for key, value in second.items():
        here = f"{where}{key}"
        if key in made:
            before = made[key]
            if not isinstance(before, Mapping) or not isinstance(value, Mapping):
                raise ConfigError(f"{here} is set twice, to {shown(before)} and {shown(value)}: leave one of them out")
            value = joined(before, value, f"{here}.")
        made[key] = value
    return made


def words(recipe: str, own: Mapping[str, Any]) -> list[str]:
    """Nested keys as the command line's overrides of a recipe, merged as a recipe's over the one that it extends.

    Key by key; ``method`` of another name replaces that section whole. ConfigError names a value that no recipe holds.
    """
    whole = replaced(sources.resolved(sources.find(recipe, Path())), own)
    return [f"--{key}={_flow(value)}" for key, value in _leaves(own, whole)]


def _leaves(own: Mapping[str, Any], whole: tuple[str, ...], where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain values; sections in ``whole`` are one value."""
    for key, value in own.items():
        here = f"{where}{key}"
        if isinstance(value, Mapping) and here not in whole:
            yield from _leaves(value, whole, f"{here}.")
        else:
            yield here, plain(value, here)


def plain(value: Any, where: str) -> Any:
    """A value as YAML writes it; ConfigError where no recipe can hold it."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, f"{where}[{number}]") for number, inner in enumerate(value)]
    hint = did_you_mean(where.split(".")[0], ARGUMENTS)
    raise ConfigError(
        f"{where} is an object of the type {type(value).__name__}, which no key of a recipe can be{hint}: give "
        "numbers, text, lists or dicts"
    )


def _flow(value: Any) -> str:
    """A value as one line of YAML."""
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
