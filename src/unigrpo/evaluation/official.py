"""Reading what a user downloaded of a public benchmark: its rows, and the sentences in its scripts, which never run.

Templates of benchmarks whose licence keeps them from being copied here are read from the scripts that lie beside the
prompt files, as Python's own parser sees them; without these scripts a suite asks in words of our own, and says so.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigrpo.files import parse_json_object, read_bytes
from unigrpo.ranges import ConfigError, shown

ABOVE = 3
"""How many folders above a prompt file its benchmark's scripts are looked for."""


@dataclass(frozen=True)
class Row:
    """One entry of an official file and where it stands."""

    where: str
    written: dict[str, Any]

    def words(self, key: str, what: str = "words") -> str:
        """The words under a key; ConfigError where there are none."""
        value = self.written.get(key)
        if not isinstance(value, str) or not value.strip():
            found = (
                f"{key} is {shown(value)}" if key in self.written else f"it has {', '.join(self.written) or 'no keys'}"
            )
            raise ConfigError(
                f"{self.where} has no {key} ({found}): every row needs it, as {what}; get the official file"
            )
        return value

    def several(self, key: str, why: str) -> list[Any]:
        """The entries of a list under a key; ConfigError, with ``why`` they are needed, where there are none."""
        value = self.written.get(key)
        if not isinstance(value, list) or not value:
            found = (
                f"it is {shown(value)}"
                if key in self.written
                else f"the row has {', '.join(self.written) or 'no keys'}"
            )
            raise ConfigError(f"{self.where} has no {key} ({found}): {why}; get the official file")
        return value


def lines_of(path: Path) -> list[Row]:
    """The rows of a file with one JSON object a line; ConfigError says which line is none."""
    content = _bytes(path).decode("utf-8", errors="replace").splitlines()
    try:
        rows = [
            Row(f"{path}, line {number}", parse_json_object(line, f"{path}, line {number}", "get the official file"))
            for number, line in enumerate(content, 1)
            if line.strip()
        ]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return _some(path, rows)


def list_of(path: Path) -> list[Row]:
    """The rows of a file that is one JSON list of objects."""
    try:
        found = json.loads(_bytes(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({error}): get the official file") from error
    if not isinstance(found, list):
        raise ConfigError(f"{path} is no list of rows but {shown(found)}: get the official file")
    for number, item in enumerate(found, 1):
        if not isinstance(item, dict):
            raise ConfigError(f"{path}, row {number} is {shown(item)}, no object: get the official file")
    return _some(path, [Row(f"{path}, row {number}", item) for number, item in enumerate(found, 1)])


def _some(path: Path, rows: list[Row]) -> list[Row]:
    if not rows:
        raise ConfigError(f"{path} has no rows: get the official file")
    return rows


def _bytes(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def digests(files: Sequence[Path]) -> dict[str, str]:
    """The sha256 of files by their names."""
    return {path.name: hashlib.sha256(_bytes(path)).hexdigest() for path in files}


@dataclass(frozen=True)
class Script:
    """A script of a benchmark as Python's parser sees it."""

    path: Path
    tree: ast.Module

    def function(self, name: str) -> ast.AST:
        """A function of the script; ConfigError where there is none."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return node
        raise self.fault(f"function {name}")

    def fault(self, what: str) -> ConfigError:
        """The error for something that a version of the script known here has."""
        return ConfigError(
            f"{self.path} has no {what} with the template of the judge: get the official script, or move this one away "
            "to be asked in other words (the result says so)"
        )

    def assigned(self, name: str) -> str:
        """The text that a name of the script stands for."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                if name in names and isinstance(node.value.value, str):
                    return node.value.value
        raise self.fault(f"text {name}")

    def formatted(self, function: str) -> str:
        """The text on which a function calls ``.format``."""
        for node in ast.walk(self.function(function)):
            if isinstance(node, ast.Attribute) and node.attr == "format" and isinstance(node.value, ast.Constant):
                return str(node.value.value)
        raise self.fault(f"text to be formatted in {function}")

    def said(self, function: str, role: str) -> str:
        """What a role says in the messages that a function makes; ``{key}`` stands for what comes from a row."""
        for node in ast.walk(self.function(function)):
            if isinstance(node, ast.Dict) and _role(node) == role and (text := _text(node)) is not None:
                return text
        raise self.fault(f"message of the role {role} in {function}")


def _role(node: ast.Dict) -> Any:
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == "role" and isinstance(value, ast.Constant):
            return value.value
    return None


def _text(message: ast.Dict) -> str | None:
    """The words of a message: its content, or what stands under "text" in its content."""
    for node in ast.walk(message):
        for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
            if isinstance(key, ast.Constant) and key.value in ("text", "content"):
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    return value.value
                if isinstance(value, ast.JoinedStr):
                    return "".join(map(_piece, value.values))
    return None


def _piece(node: ast.expr) -> str:
    """A piece of an f-string; ``{key}`` for the entry of a row."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    inner = node.value if isinstance(node, ast.FormattedValue) else node
    place = inner.slice if isinstance(inner, ast.Subscript) else inner
    return f"{{{place.value if isinstance(place, ast.Constant) else ast.unparse(place)}}}"


def script(path: Path, name: str) -> Script | None:
    """The benchmark's script ``name`` in the folder of a prompt file or up to three above it; None where it is not."""
    start = path.resolve() if path.is_dir() else path.resolve().parent
    for folder in (start, *start.parents[:ABOVE]):
        place = folder / name
        if place.is_file():
            try:
                return Script(place, ast.parse(_bytes(place)))
            except (SyntaxError, ValueError) as error:
                raise ConfigError(
                    f"{place} is no Python ({error}): get the official script, or move it away"
                ) from error
    return None
