"""Rows of files as mappings, whatever the kind of file: .txt, .jsonl, .json, .csv, .tsv, .parquet, data sets.

A name is FILE or FILE:COLUMN, a folder that ``Dataset.save_to_disk`` wrote (FOLDER, FOLDER:SPLIT, FOLDER:SPLIT:COLUMN),
or a data set of the hub (hf:owner/name, hf:owner/name:split, hf:owner/name:split:column). The column is the one with
the prompts, and is called ``prompt`` unless the name says otherwise. A file that cannot be read at all is a ConfigError
when it is opened; a row that is wrong is one when it is asked for, so that all wrong rows can be listed.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from unigrpo.files import parse_json_object
from unigrpo.ranges import ConfigError, did_you_mean

PROMPT = "prompt"
EXAMPLE = '{"prompt": "a red cup"}'
TABLE_EXAMPLE = "prompt,images"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Record:
    """One row as it is stored, and where it stands (``p.jsonl, line 7``)."""

    where: str
    written: Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """The rows of a file or a data set, the column of the prompts, and the folder that paths are relative to."""

    name: str
    rows: Sequence[Record]
    column: str
    folder: Path


def column_of(name: str, rest: Sequence[str]) -> str:
    """The column that follows the path of a file."""
    if len(rest) > 1 or not all(rest):
        raise ConfigError(f"{name!r}: after a file comes at most the column of the prompts, as in FILE:COLUMN")
    return rest[0] if rest else PROMPT


def read_file(path: Path) -> Sequence[Record]:
    """The rows of a text file of any kind, in order."""
    match path.suffix.lower():
        case ".txt":
            return [Record(f"{path}, line {number}", {PROMPT: line}) for number, line in file_lines(path)]
        case ".jsonl":
            return JsonLines(path, file_lines(path))
        case ".json":
            return Entries(path, _json_list(path))
        case kind:
            return _table(path, "excel-tab" if kind == ".tsv" else "excel")


def file_text(path: Path) -> str:
    """A UTF-8 file, whole."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): name a file that is there") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line} is not UTF-8 text: save the file as UTF-8") from error


def file_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, with their numbers from 1; ConfigError if there are none."""
    # not splitlines, which also splits at characters that are rare, but part of a text
    lines = [(number, line.strip()) for number, line in enumerate(file_text(path).split("\n"), start=1)]
    return filled(path, [(number, line) for number, line in lines if line])


def filled(path: Path, rows: list[_T]) -> list[_T]:
    """The rows; ConfigError where there are none."""
    if not rows:
        raise ConfigError(f"{path} is empty: write one prompt a line")
    return rows


# JSON


@dataclass(frozen=True)
class JsonLines(Sequence[Record]):
    """A .jsonl file, each line read when it is asked for."""

    path: Path
    lines: Sequence[tuple[int, str]]

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.lines)

    def __getitem__(self, index: Any) -> Any:
        """One row."""
        number, line = self.lines[index]
        where = f"{self.path}, line {number}"
        try:
            return Record(where, parse_json_object(line, where, f"write an object like {EXAMPLE}, each on one line"))
        except ValueError as error:
            raise ConfigError(str(error).replace(" at line 1, column ", " at column ")) from error


@dataclass(frozen=True)
class Entries(Sequence[Record]):
    """The list in a .json file."""

    path: Path
    values: Sequence[Any]

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        """One row."""
        where, value = f"{self.path}, entry {range(1, len(self) + 1)[index]}", self.values[index]
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is not a JSON object: write one like {EXAMPLE}")
        return Record(where, value)


def _json_list(path: Path) -> list[Any]:
    text = file_text(path)
    try:
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is no JSON that can be read ({error}): write one list of objects like [{EXAMPLE}], or name a file "
            "with one object a line .jsonl"
        ) from error
    if not isinstance(value, list):
        raise ConfigError(f"{path} holds no list: write one list of objects like [{EXAMPLE}]")
    return filled(path, value)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


# Comma- and tab-separated values


@dataclass(frozen=True)
class Cells(Sequence[Record]):
    """The rows of a .csv or .tsv file under the names of its first line."""

    path: Path
    names: Sequence[str]
    lines: Sequence[tuple[int, Sequence[str]]]

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.lines)

    def __getitem__(self, index: Any) -> Any:
        """One row: words without empty cells; ``images`` as a list, of one path or of those of a JSON list."""
        number, cells = self.lines[index]
        where = f"{self.path}, line {number}"
        if len(cells) != len(self.names):
            raise ConfigError(
                f"{where} has {len(cells)} cells, but the first line names {len(self.names)} columns: a text with a "
                'separator in it stands in "double quotes"'
            )
        written: dict[str, Any] = {name: cell for name, cell in zip(self.names, cells, strict=True) if cell.strip()}
        if (images := written.get("images")) is not None:
            written["images"] = _listed(images, where)
        return Record(where, written)


def _listed(cell: str, where: str) -> Any:
    if not cell.lstrip().startswith("["):
        return [cell.strip()]
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f'{where}: images is no list: write one path, or a list such as ["a.png", "b.png"]'
        ) from error


def _table(path: Path, dialect: str) -> Cells:
    lines = list(_cells(path, dialect))
    if not lines:
        raise ConfigError(f"{path} is empty: write the names of the columns, such as {TABLE_EXAMPLE}, and rows below")
    names = [name.strip() for name in lines[0][1]]
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(
            f"{path}, line {lines[0][0]} must name every column once, such as {TABLE_EXAMPLE}, not {','.join(names)}"
        )
    return Cells(path, names, filled(path, lines[1:]))


def _cells(path: Path, dialect: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of every row that is not blank, with the line on which it begins."""
    reader = csv.reader(io.StringIO(file_text(path), newline=""), dialect, strict=True)
    line = 0
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line + 1, cells
            line = reader.line_num
    except csv.Error as error:
        raise ConfigError(
            f"{path}: the row from line {line + 1} on cannot be read ({error}): a text with a separator, a line end or "
            'quotes in it stands in "double quotes", with quotes inside it doubled'
        ) from error


def no_column(name: str, column: str, known: Sequence[str]) -> ConfigError:
    """The message for a column that is not there."""
    return ConfigError(f"{name}: there is no column {column!r}{did_you_mean(column, known)}; it has {', '.join(known)}")
