"""Where a reward came from: what a run records of it, so that a later command can find it again."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from unigrpo.loading import digest, reference


@dataclass(frozen=True)
class Origin:
    """Module, file and line of a reward (None where no file holds it), and a name that finds it again, if it has one.

    ``folder`` is where the imports of that name start; ``sha256`` is the file's.
    """

    module: str
    file: str | None = None
    line: int | None = None
    reference: str | None = None
    folder: str | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        if self.file is None:
            return f"a Python session (module {self.module})"
        return f"{self.file}, line {self.line}" if self.line else self.file

    def record(self) -> dict[str, Any]:
        """Plain data for a file."""
        return asdict(self)


def read_origin(recorded: Mapping[str, Any]) -> Origin:
    """An origin from what a run recorded; what is not of the right type counts as unknown."""
    text = {key: recorded.get(key) for key in ("file", "reference", "folder", "sha256")}
    text = {key: value if isinstance(value, str) else None for key, value in text.items()}
    line, module = recorded.get("line"), recorded.get("module")
    return Origin(str(module), line=line if isinstance(line, int) else None, **text)


def place_of(thing: Any) -> tuple[str, str]:
    """Module and qualified name of a function or class; of any other object, those of its class."""
    code = _code_holder(thing)
    return str(code.__module__), str(code.__qualname__)


def origin_of(thing: Any, built: Any = None, name: str = "") -> Origin:
    """The origin of a reward: ``thing``, registered or found by ``name``, is a factory of ``built``, or itself."""
    named = next((t for t in (thing, built, inspect.unwrap(built)) if _top_level(t)), None)
    subject = named or _code_holder(thing if built is None or isinstance(thing, type) else built)
    file, line = _file_and_line(subject)
    if file is None:
        return Origin(str(subject.__module__))
    module = _import_name(subject)
    found = f"{module or file}:{subject.__qualname__}" if named else None
    found = name if reference(name) is not None else found
    folder = _root(module or "", file)
    return Origin(str(subject.__module__), file, line, found, str(folder), digest(file))


def _code_holder(thing: Any) -> Any:
    """The function or class whose text a thing is made of."""
    while isinstance(thing, partial):
        thing = thing.func
    return thing if inspect.isroutine(thing) or isinstance(thing, type) else type(thing)


def _top_level(thing: Any) -> bool:
    """Whether a thing is found under its own name in its module."""
    if not (inspect.isfunction(thing) or isinstance(thing, type)):
        return False
    return vars(sys.modules.get(thing.__module__, object)).get(thing.__qualname__) is thing


def _file_and_line(subject: Any) -> tuple[str | None, int | None]:
    """File and line of a function or class; None for both where no file holds it (a notebook, a string)."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(subject))
    except (TypeError, OSError):  # what is written in C, or typed into a session
        return None, None
    if file is None or not Path(file).is_file():
        return None, None
    try:
        return os.path.abspath(file), max(1, inspect.getsourcelines(inspect.unwrap(subject))[1])
    except OSError:
        return os.path.abspath(file), None


def _import_name(subject: Any) -> str | None:
    """The name by which the module of a function or class is imported; None outside packages, where the file is it."""
    module = vars(sys.modules.get(subject.__module__, object))
    spec = module.get("__spec__")
    return str(spec.name) if module.get("__package__") and spec is not None else None


def _root(module: str, file: str) -> Path:
    """The folder from which a module of this name was imported."""
    path = Path(file)
    return path.parents[module.count(".") + (path.name == "__init__.py" and bool(module))]
