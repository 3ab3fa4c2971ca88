"""Things of one's own, found where a recipe names them: ``path/file.py:thing`` and ``package.module:thing``."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from unigrpo.frames import explain
from unigrpo.ranges import ConfigError, did_you_mean


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


def own_model(path: str) -> tuple[Reference | None, str]:
    """The family that a model's path names (None: none of one's own), and the folder of its weights after @."""
    name, _, folder = path.partition("@")
    return (None, "") if name.startswith(SHIPPED) else (reference(name), folder)


def _dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


SHIPPED = ("builtin:", "init:", "stage:")
"""How names of models begin that are no file or module."""
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


def load(name: str, reference: Reference, what: str = "reward") -> Any:
    """The thing that a name refers to; ConfigError says what (a reward) is not there, or where its code fails."""
    said = f"{what} {name!r}"
    module = _file(said, reference.place) if reference.is_file else _module(said, reference.place)
    found: Any = module
    for part in reference.thing.split("."):
        if part not in dir(found):
            names = [n for n in dir(module) if not n.startswith("_")]
            hint = did_you_mean(reference.thing, names)
            raise ConfigError(f"{said}: there is no {reference.thing} in {reference.place}{hint}")
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


def _file(said: str, place: str) -> ModuleType:
    """The module of a file, run once for each content; of the script that is running, itself."""
    path = os.path.abspath(Path(place).expanduser())
    main = sys.modules["__main__"]
    if os.path.abspath(vars(main).get("__file__") or "") == path:
        return main
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{said}: {path} cannot be read ({error.strerror}): put the file back, or name its new place"
        ) from error
    now = hashlib.sha256(source).hexdigest()
    if path not in _FILES or _FILES[path][0] != now:
        _FILES[path] = now, _run(said, path, source, now)
    return _FILES[path][1]


def _run(said: str, path: str, source: bytes, version: str) -> ModuleType:
    """Run a file as a module of its own, which sees what lies beside it."""
    module = ModuleType(f"unigrpo_reward_{hashlib.sha256(path.encode()).hexdigest()[:8]}_{version[:8]}")
    module.__file__ = path
    also_import_from(os.path.dirname(path))
    sys.modules[module.__name__] = module  # dataclasses look there
    with _import_faults(said, path):
        exec(compile(source, path, "exec"), module.__dict__)
    return module


@contextmanager
def _import_faults(said: str, place: str) -> Iterator[None]:
    _running.append(place)
    try:
        yield
    except StartedAgain:
        pass
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{said}: {place} cannot be imported: {explain(error)}") from error
    finally:
        _running.pop()


def _module(said: str, place: str) -> ModuleType:
    """An imported module; the working folder counts as a place to import from."""
    also_import_from(Path.cwd())
    try:
        with _import_faults(said, place):
            return importlib.import_module(place)
    except ConfigError as error:
        cause = error.__cause__
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if missing and f"{place}.".startswith(f"{missing}."):
            raise ConfigError(
                f"{said}: there is no module {missing} to import: install it, call from the folder that holds "
                "it, or name the file as path/file.py:thing"
            ) from error
        raise
    raise ConfigError(
        f"{said}: {place} calls the command line of unigrpo when it is imported: "
        'put that below if __name__ == "__main__":'
    )
