"""Rewards of one's own, found where a recipe names them: ``path/file.py:thing`` and ``package.module:thing``."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from unigrpo.config import ConfigError, Reference, did_you_mean
from unigrpo.rewards.frames import explain

_FILES: dict[str, tuple[str, ModuleType]] = {}  # by path: the sha256 of what was run, and the module that came of it
_running: list[str] = []  # the files that are being run now


class StartedAgain(BaseException):
    """Ends the run of a script, whose reward is being loaded, where it calls the command line.

    All that its rewards need stands above that call: when the run began, they were registered before it, too.
    """


def stop_if_loading() -> None:
    """Called at the start of every command line: a script that is being loaded for its reward must not start one."""
    if _running:
        raise StartedAgain(_running[-1])


def load(name: str, reference: Reference) -> Any:
    """The thing that a reward's name refers to; ConfigError says what is not there, or where its code fails."""
    module = _file(name, reference.place) if reference.is_file else _module(name, reference.place)
    found: Any = module
    for part in reference.thing.split("."):
        if part not in dir(found):
            names = [n for n in dir(module) if not n.startswith("_")]
            hint = did_you_mean(reference.thing, names)
            raise ConfigError(f"reward {name!r}: there is no {reference.thing} in {reference.place}{hint}")
        found = getattr(found, part)
    return found


def digest(path: Path | str) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def also_import_from(folder: Path | str) -> None:
    """Let imports find what lies in a folder, after everything else."""
    if (place := str(folder)) not in sys.path:
        sys.path.append(place)
        importlib.invalidate_caches()


def _file(name: str, place: str) -> ModuleType:
    """The module of a file, run once for each content; of the script that is running, itself."""
    path = os.path.abspath(Path(place).expanduser())
    main = sys.modules["__main__"]
    if os.path.abspath(vars(main).get("__file__") or "") == path:
        return main
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"reward {name!r}: {path} cannot be read ({error.strerror}): put the file back, or name its new place"
        ) from error
    now = hashlib.sha256(source).hexdigest()
    if path not in _FILES or _FILES[path][0] != now:
        _FILES[path] = now, _run(name, path, source, now)
    return _FILES[path][1]


def _run(name: str, path: str, source: bytes, version: str) -> ModuleType:
    """Run a file as a module of its own, which sees what lies beside it."""
    module = ModuleType(f"unigrpo_reward_{hashlib.sha256(path.encode()).hexdigest()[:8]}_{version[:8]}")
    module.__file__ = path
    also_import_from(os.path.dirname(path))
    sys.modules[module.__name__] = module  # dataclasses look there
    with _import_faults(name, path):
        exec(compile(source, path, "exec"), module.__dict__)
    return module


@contextmanager
def _import_faults(name: str, place: str) -> Iterator[None]:
    _running.append(place)
    try:
        yield
    except StartedAgain:
        pass
    except (Exception, SystemExit) as error:
        raise ConfigError(f"reward {name!r}: {place} cannot be imported: {explain(error)}") from error
    finally:
        _running.pop()


def _module(name: str, place: str) -> ModuleType:
    """An imported module; the working folder counts as a place to import from."""
    also_import_from(Path.cwd())
    try:
        with _import_faults(name, place):
            return importlib.import_module(place)
    except ConfigError as error:
        cause = error.__cause__
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if missing and f"{place}.".startswith(f"{missing}."):
            raise ConfigError(
                f"reward {name!r}: there is no module {missing} to import: install it, call from the folder that holds "
                "it, or name the file as path/file.py:thing"
            ) from error
        raise
    raise ConfigError(
        f"reward {name!r}: {place} calls the command line of unigrpo when it is imported: "
        'put that below if __name__ == "__main__":'
    )
