"""Places that verbs write to. Every one is tried before work begins, and none that is a source is written to."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from unigrpo.ranges import ConfigError


def try_folder(folder: Path, option: str = "--out") -> None:
    """Refuse a folder that cannot be made or written to; nothing is left behind, and it is not made yet."""
    _try(folder, option, folder)


def try_file(path: Path, option: str = "--out") -> None:
    """Refuse a file that cannot be written: a folder is there, or its own folder cannot be made or written to."""
    if os.path.isdir(path):  # Path.is_dir raises where a name is too long
        raise ConfigError(
            f"{option} {path}: a folder is there, where a file is to be: move it, or name another {option}"
        )
    _try(path.parent, option, path)


def no_source(places: Iterable[Path], sources: Iterable[Path], option: str = "--out") -> None:
    """Refuse to write to a file that is read, by whatever name: a link of either kind counts too."""
    known = {_identity(source): source for source in sources}
    for place in places:
        source = known.get(_identity(place))
        if source is not None:
            also = "" if place == source else f" (as {source})"
            raise ConfigError(f"{option}: {place} is read{also}, and would be overwritten: name another {option}")


def _identity(path: Path) -> object:
    """What two names of one file have in common."""
    try:
        found = path.stat()
    except OSError:
        return path.resolve()
    return found.st_dev, found.st_ino


def _try(folder: Path, option: str, named: Path) -> None:
    """Write a file where ``folder`` is, or where it will be made, and remove it again."""
    try:
        os.lstat(named)  # names that are too long
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise refused(option, named, error.strerror if isinstance(error, OSError) else str(error)) from error
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place) or place == place.parent)
    if not there.is_dir():
        raise refused(option, named, f"{there} is no folder")
    trial = there / f".{secrets.token_hex(8)}.tmp"
    try:
        with open(trial, "xb") as file:
            file.write(b"?")
        trial.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            trial.unlink(missing_ok=True)
        raise refused(option, named, error.strerror) from error


def refused(option: str, named: Path, why: str | None) -> ConfigError:
    """The error of a place that cannot be written."""
    return ConfigError(f"cannot write to {named} ({why}): choose another {option}")
