"""Paths in a recipe: relative to its file, on the command line to the working folder; absolute once they are read.

The same keys name things that are no files (``shapes:train``, a hub id): what a path is, is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from unigrpo.data_names import HUB, SUFFIXES, split_name
from unigrpo.loading import SHIPPED, own_model, reference
from unigrpo.ranges import ConfigError
from unigrpo.recipe.notation import Dumper, override_pairs, override_value, with_key
from unigrpo.recipe.references import absolute_own_name, with_absolute_rewards


def split_path(key: str, name: str, base: Path = Path()) -> tuple[str, str, str]:
    """A name of a recipe as (before, path, after): the path is empty where the name is surely of no file.

    ``key``: model.path, data.prompts, data.demonstrations, eval.prompts, or reward (whose paths ``references`` makes
    absolute). Relative paths are looked up in ``base``.
    """
    if key == "reward":
        found = reference(name)
        return ("", found.place, f":{found.thing}") if found is not None and found.is_file else (name, "", "")
    if key == "model.path":
        own, _ = own_model(name)
        if own is not None:
            return ("", own.place, name.removeprefix(own.place)) if own.is_file else (name, "", "")
        return (name, "", "") if name.startswith(SHIPPED) else ("", name, "")
    if name.startswith(HUB):
        path, colon, rest = name.removeprefix(HUB).partition(":")
        return HUB, path, colon + rest
    if (found := split_name(name, base)) is not None:
        return "", str(found[0]), "".join(f":{part}" for part in found[1])
    return "", name, ""


def _surely(key: str, path: str) -> bool:
    """Whether a name can only be a path: it is written as one, or ends as a file does."""
    if path in (".", "..") or path.startswith(("./", "../", "~", "/")):
        return True
    return Path(path).suffix.lower() in ((".py",) if key == "model.path" else SUFFIXES)


def _is_there(path: Path) -> bool:
    """Whether a path exists; one that no file system takes does not."""
    try:
        return path.exists()
    except OSError:
        return False


def absolute_name(key: str, name: Any, base: Path, here: Path | None = None) -> Any:
    """A name with its path made absolute from ``base``; one that is no path, or is not there, stays (a hub id).

    ``here``: the working folder where ``base`` is that of a recipe file. ConfigError for what lies only there.
    """
    if not isinstance(name, str):
        return name
    before, path, after = split_path(key, name, base)
    if key == "model.path" and (folder := after.partition("@")[2]):
        after = f"{after.partition('@')[0]}@{_plain(base / Path(folder).expanduser())}"
    there = base / Path(path).expanduser()
    if not path or not (_surely(key, path) or _is_there(there)):
        if path and here is not None and _is_there(here / path):
            raise _elsewhere(key, name, there, here / path)
        return name
    if here is not None and not _is_there(there) and _is_there(here / path):
        raise _elsewhere(key, name, there, here / path)
    return f"{before}{_plain(there)}{after}"


def _plain(path: Path) -> Path:
    """The absolute path without ``..``; a link at its end stays, it may mean another folder tomorrow."""
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def _elsewhere(key: str, name: str, there: Path, here: Path) -> ConfigError:
    return ConfigError(
        f"{key} = {name!r}: paths in a recipe file are relative to that file, and {_plain(there)} is not there; "
        f"for {_plain(here)} write that, or set it on the command line"
    )


def absolute(written: Mapping[str, Any], base: Path, here: Path | None = None) -> dict[str, Any]:
    """What was written in a recipe, with all its paths absolute (:func:`absolute_name`); also those of its stages."""
    made = dict(written)
    for section, key in (("model", "path"), ("data", "prompts"), ("data", "demonstrations"), ("eval", "prompts")):
        inner = made.get(section)
        if isinstance(inner, Mapping) and key in inner:
            made[section] = {**inner, key: absolute_name(f"{section}.{key}", inner[key], base, here)}
    method = made.get("method")
    if isinstance(method, Mapping) and isinstance(method.get("name"), str):
        made["method"] = {**method, "name": absolute_own_name(method["name"], base)}
    if isinstance(log := made.get("log"), list | str):
        names = log.split(",") if isinstance(log, str) else log  # a,b is how the command line writes a list
        made["log"] = [absolute_own_name(name.strip(), base) if isinstance(name, str) else name for name in names]
    stages = made.get("stages")
    if isinstance(stages, list):
        made["stages"] = [absolute(stage, base, here) if isinstance(stage, Mapping) else stage for stage in stages]
    return with_absolute_rewards(made, base)


def absolute_overrides(overrides: Sequence[str], here: Path) -> list[str]:
    """The command line's overrides, with their paths absolute from the working folder."""
    made = []
    for key, value in override_pairs(overrides):
        keys = key.split(".")
        if keys[0] == "stages" and len(keys) > 2:
            keys = keys[2:]
        parsed = override_value(key, value)
        changed: Any = absolute(with_key({}, keys, parsed), here)
        for part in keys:
            changed = changed[part]
        made.append(f"--{key}={value if changed == parsed else _flow(changed)}")
    return made


def _flow(value: Any) -> str:
    """A value as one line of YAML."""
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
