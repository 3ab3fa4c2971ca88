"""Prompts of one's own: a text file, a .jsonl file, or a data set of the hub, as a shuffled stream and in file order.

A .txt file holds one prompt a line. A .jsonl file holds one object a line: ``prompt`` (words), where there are any
``images`` (a list of paths beside the file), and anything else as metadata for a reward; GenEval's own files are such
files. Every fault is a ValueError of one sentence that names the file and the line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unigrpo import pictures, seeds
from unigrpo.config import ConfigError, did_you_mean, how_to_install
from unigrpo.trajectory import Prompt

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

EXAMPLE = '{"prompt": "a red cup"}'
HUB = "hf:"
HUB_FORMS = "hf:owner/name, hf:owner/name:split or hf:owner/name:split:column"


@dataclass(frozen=True)
class Row:
    """One prompt as it is stored: its words, its metadata, its pictures (not read yet) and where it stands."""

    where: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[Path, ...] = ()

    def prompt(self, position: int) -> Prompt:
        """The prompt at a position of a stream, its pictures read now (ValueError if one cannot be)."""
        images = tuple(read_picture(path, self.where) for path in self.pictures)
        return Prompt(position, self.text, self.metadata, images)


@dataclass(frozen=True)
class RowPrompts:
    """The prompts of some rows: an endless shuffled stream with random access, and the rows in their own order."""

    rows: Sequence[Row]
    seed: int

    def batch(self, iteration: int, n: int) -> list[Prompt]:
        """The prompts at positions iteration * n ... iteration * n + n - 1; every pass has every row once."""
        positions = range(iteration * n, iteration * n + n)
        return [self.rows[shuffled(self.seed, p, len(self.rows))].prompt(p) for p in positions]

    def fixed(self, limit: int) -> list[Prompt]:
        """The first ``limit`` prompts in their own order (all, where there are fewer), positions 0, 1, 2, ..."""
        return [self.rows[index].prompt(index) for index in range(min(limit, len(self.rows)))]


class FilePrompts(RowPrompts):
    """The prompts of a .txt or .jsonl file; ValueError names the file and the line of what is wrong with it."""

    def __init__(self, path: Path | str, seed: int) -> None:
        super().__init__(file_rows(Path(path)), seed)


def shuffled(seed: int, position: int, size: int) -> int:
    """The row at a position of a stream that shuffles ``size`` rows anew in every pass."""
    number, place = divmod(position, size)
    return int(_order(seed, number, size)[place])


@lru_cache(maxsize=4)
def _order(seed: int, number: int, size: int) -> Tensor:
    """The order of one pass; key: (seed, pass)."""
    return torch.randperm(size, generator=seeds.generator(seed, number, 0, 0, "order of prompts"))


# --------------------------------------------------------------------------------------------------------------- files


def file_rows(path: Path) -> list[Row]:
    """Every prompt of a .txt or .jsonl file."""
    if path.suffix.lower() == ".jsonl":
        return [_json_row(path, number, line) for number, line in file_lines(path)]
    if path.suffix.lower() != ".txt":
        raise ConfigError(f"prompts are read from .txt and .jsonl files, and {path} is neither: rename or convert it")
    return [Row(f"{path}, line {number}", line) for number, line in file_lines(path)]


def file_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, with their numbers from 1; ValueError if there are none."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): name a file that is there") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line} is not UTF-8 text: save the file as UTF-8") from error
    # not splitlines, which also splits at characters that are rare, but part of a text
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    if not (filled := [(number, line) for number, line in lines if line]):
        raise ConfigError(f"{path} is empty: write one prompt a line")
    return filled


def json_object(path: Path, number: int, line: str, example: str = EXAMPLE) -> dict[str, Any]:
    """One line of a .jsonl file as a mapping."""
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}, line {number} is not a JSON object: write one like {example}, each on one line")
    return value


def _json_row(path: Path, number: int, line: str) -> Row:
    where, written = f"{path}, line {number}", json_object(path, number, line)
    return row_of(where, written, path.parent, other=("prompt", "images"))


def row_of(where: str, written: Mapping[str, Any], folder: Path, *, other: Sequence[str]) -> Row:
    """A row from the keys of a JSON object; all keys but ``other`` are metadata, paths are relative to ``folder``."""
    text = words_of(written, "prompt", where)
    names = written.get("images") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f'{where}: images must be a list of paths, such as ["cup.png"], not {names!r}')
    pictures = tuple(picture_path(folder, name, where) for name in names)
    return Row(where, text, with_category({k: v for k, v in written.items() if k not in other}), pictures)


def words_of(written: Mapping[str, Any], key: str, where: str) -> str:
    """The words under a key; ValueError where there are none."""
    text = written.get(key)
    if not isinstance(text, str) or not text.strip():
        found = f"{key} is {text!r}" if key in written else f"it has {', '.join(written) or 'no keys'}"
        raise ConfigError(f"{where} has no {key} in words ({found}): every entry needs one, as in {EXAMPLE}")
    return text


def with_category(metadata: dict[str, Any]) -> dict[str, Any]:
    """GenEval calls a category ``tag``; evaluations and logs read ``category``."""
    tag = metadata.get("tag")
    return {**metadata, "category": tag} if isinstance(tag, str) and "category" not in metadata else metadata


# ------------------------------------------------------------------------------------------------------------ pictures


def picture_path(folder: Path, name: str, where: str) -> Path:
    """Where a picture lies that a file in ``folder`` names; ValueError if it is not there."""
    path = folder / name
    if not path.is_file():
        raise ConfigError(
            f"{where} names the picture {name!r}, but {path} is not there: paths are relative to the file"
        )
    return path


def read_picture(source: Path | bytes, where: str) -> Tensor:
    """Read a picture file (or its bytes) that a line names: uint8 [3, H, W] (:func:`unigrpo.pictures.read_picture`)."""
    try:
        return pictures.read_picture(source)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; replace it, or take the line out") from error


# ----------------------------------------------------------------------------------------------------- data sets (hub)


def hf_prompts(name: str, seed: int) -> RowPrompts:
    """The prompts of ``hf:owner/name[:split[:column]]`` (default train, prompt); a folder may stand for owner/name.

    Columns of plain values (numbers, words, lists and mappings of them) are metadata; others are not read. ValueError
    names the splits and columns that there are.
    """
    data, column = hub_data(name)
    return RowPrompts(HubRows(data.select_columns(plain_columns(data)), column, name), seed)


@dataclass(frozen=True)
class HubRows(Sequence[Row]):
    """The rows of a data set, read when they are asked for (data sets may be large)."""

    data: Dataset
    column: str
    name: str

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        """One row."""
        written, where = self.data[index], f"{self.name}, row {index}"
        text = words_of(written, self.column, where)
        return Row(where, text, with_category(without_empty({k: v for k, v in written.items() if k != self.column})))


def without_empty(value: Any) -> Any:
    """The value without empty cells at any depth: a table has no absent keys, so it says null instead."""
    if isinstance(value, Mapping):
        return {key: without_empty(part) for key, part in value.items() if part is not None}
    return [without_empty(part) for part in value] if isinstance(value, list) else value


def hub_data(name: str) -> tuple[Dataset, str]:
    """The split of a data set that a name means, and the column of the prompts; ValueError names what there is."""
    path, split, column = _hub_parts(name)
    splits = _hub_splits(name, path)
    if split not in splits:
        known = [str(s) for s in splits]
        raise ConfigError(f"{name}: there is no split {split!r}{did_you_mean(split, known)}; it has {', '.join(known)}")
    data = splits[split]
    known = data.column_names
    if column not in known:
        raise ConfigError(
            f"{name}: there is no column {column!r}{did_you_mean(column, known)}; it has {', '.join(known)}"
        )
    if not _is_words(data.features[column]):
        raise ConfigError(
            f"{name}: the column {column!r} holds no words: name one that does (hf:owner/name:split:column)"
        )
    if len(data) == 0:
        raise ConfigError(f"{name} is empty: name another split")
    return data, column


def _hub_parts(name: str) -> tuple[str, str, str]:
    """Path, split and column of a name."""
    parts = name.removeprefix(HUB).split(":")
    if not name.startswith(HUB) or not all(parts) or len(parts) > 3:
        raise ConfigError(f"{name!r} names no data set: write {HUB_FORMS}")
    path, split, column = [*parts, *("train", "prompt")[len(parts) - 1 :]]
    return path, split, column


def _hub_splits(name: str, path: str) -> DatasetDict:
    if find_spec("datasets") is None:
        raise ConfigError(f"{name} needs the package datasets: {how_to_install('bagel')}")
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise ConfigError(f"{name}: {path} is not a folder")
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_dataset(os.path.expanduser(path))
    except (DatasetsError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ConfigError(f"{name} cannot be loaded ({type(error).__name__}: {reason}): write {HUB_FORMS}") from error


def _is_words(feature: Any) -> bool:
    from datasets import Value

    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def plain_columns(data: Dataset) -> list[str]:
    """The columns that can be metadata."""
    return [name for name, feature in data.features.items() if _plain(feature)]


def _plain(feature: Any) -> bool:
    """Whether a column holds numbers, words, or lists and mappings of them (no pictures, sounds, bytes or times)."""
    from datasets import ClassLabel, Json, LargeList, List, Value

    if isinstance(feature, Mapping):
        return all(_plain(part) for part in feature.values())
    if isinstance(feature, List | LargeList):
        return _plain(feature.feature)
    if isinstance(feature, Value):
        return feature.dtype.startswith(("int", "uint", "float", "bool", "string", "large_string"))
    return isinstance(feature, ClassLabel | Json)
