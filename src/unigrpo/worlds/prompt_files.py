"""Prompts of one's own, as a shuffled stream and in file order: of a file or a data set (:mod:`.records`).

A row has ``prompt`` (words; another column where the name says so), where there are any ``images`` (paths beside the
file, or the pictures themselves), and anything else as metadata for a reward; GenEval's own files are such files. Every
fault is a ConfigError of one sentence that names the file and the row. Rows are read when they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unigrpo import pictures, seeds
from unigrpo.ranges import ConfigError
from unigrpo.trajectory import Prompt
from unigrpo.worlds.records import EXAMPLE, PROMPT, Record, Records
from unigrpo.worlds.sources import open_records

Source = Path | bytes
"""A picture that is not read yet."""


@dataclass(frozen=True)
class Row:
    """One prompt as it is stored: its words, its metadata, its pictures (not read yet) and where it stands."""

    where: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[Source, ...] = ()

    def prompt(self, position: int) -> Prompt:
        """The prompt at a position of a stream, its pictures read now (ConfigError if one cannot be)."""
        images = tuple(read_picture(source, self.where) for source in self.pictures)
        return Prompt(position, self.text, self.metadata, images)


@dataclass(frozen=True)
class PromptRows(Sequence[Row]):
    """The rows of a file or data set as prompts."""

    records: Records

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.records.rows)

    def __getitem__(self, index: Any) -> Any:
        """One row; ConfigError says what is wrong with it."""
        return row_of(self.records.rows[index], self.records)


@dataclass(frozen=True)
class RowPrompts:
    """The prompts of some rows: an endless shuffled stream with random access, and the rows in their own order."""

    name: str
    rows: Sequence[Row]
    seed: int

    def batch(self, iteration: int, n: int) -> list[Prompt]:
        """The prompts at positions iteration * n ... iteration * n + n - 1; every pass has every row once."""
        positions = range(iteration * n, iteration * n + n)
        return [self.rows[shuffled(self.seed, p, len(self.rows))].prompt(p) for p in positions]

    def fixed(self, limit: int) -> list[Prompt]:
        """The first ``limit`` prompts in their own order (all, where there are fewer), positions 0, 1, 2, ..."""
        return [self.rows[index].prompt(index) for index in range(min(limit, len(self.rows)))]


def own_prompts(name: str | Path, seed: int) -> RowPrompts:
    """The prompts of a file, a saved folder or a data set (:func:`unigrpo.worlds.records.open_records`)."""
    records = open_records(str(name))
    return RowPrompts(records.name, PromptRows(records), seed)


def shuffled(seed: int, position: int, size: int) -> int:
    """The row at a position of a stream that shuffles ``size`` rows anew in every pass."""
    number, place = divmod(position, size)
    return int(_order(seed, number, size)[place])


@lru_cache(maxsize=4)
def _order(seed: int, number: int, size: int) -> Tensor:
    """The order of one pass; key: (seed, pass)."""
    return torch.randperm(size, generator=seeds.generator(seed, number, 0, 0, "order of prompts"))


# Rows


def row_of(record: Record, records: Records, *, other: Sequence[str] = ("images",), example: str = EXAMPLE) -> Row:
    """A record as a prompt: all keys but the prompt's and ``other`` are metadata, paths are relative to the folder."""
    where, written = record.where, record.written
    text = words_of(record, records.column, example)
    names = written.get("images") or []
    if not isinstance(names, list):
        raise ConfigError(f'{where}: images must be a list of paths, such as ["cup.png"], not {names!r}')
    shown = tuple(picture_of(records.folder, name, where) for name in names)
    metadata = {key: value for key, value in written.items() if key != records.column and key not in other}
    return Row(where, text, with_category(metadata), shown)


def words_of(record: Record, column: str, example: str = EXAMPLE) -> str:
    """The words under a key; ConfigError where there are none."""
    where, written = record.where, record.written
    text = written.get(column)
    if not isinstance(text, str) or not text.strip():
        found = f"{column} is {text!r}" if column in written else f"it has {', '.join(written) or 'no keys'}"
        other = "" if column in written or column != PROMPT else "; FILE:COLUMN names another column"
        raise ConfigError(f"{where} has no {column} in words ({found}): every entry needs one, as in {example}{other}")
    return text


def with_category(metadata: dict[str, Any]) -> dict[str, Any]:
    """GenEval calls a category ``tag``; evaluations and logs read ``category``."""
    tag = metadata.get("tag")
    return {**metadata, "category": tag} if isinstance(tag, str) and "category" not in metadata else metadata


# Pictures


def picture_of(folder: Path, stored: Any, where: str) -> Source:
    """A picture that a row names (a path relative to ``folder``) or holds; ConfigError if it is not there."""
    if isinstance(stored, Mapping) and isinstance(stored.get("bytes"), bytes):
        return stored["bytes"]
    name = stored.get("path") if isinstance(stored, Mapping) else stored
    if not isinstance(name, str) or not name:
        raise ConfigError(f'{where}: a picture is named by its path, such as "cup.png", not by {stored!r}')
    path = folder.expanduser() / name
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a name that no path can have
        there = False
    if not there:
        raise ConfigError(
            f"{where} names the picture {name!r}, but {path} is not there: paths are relative to the file"
        )
    return path


def read_picture(source: Source, where: str) -> Tensor:
    """Read a picture file (or its bytes) that a line names: uint8 [3, H, W] (:func:`unigrpo.pictures.read_picture`)."""
    try:
        return pictures.read_picture(source)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; replace it, or take the line out") from error
