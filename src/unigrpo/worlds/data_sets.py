"""Rows of data sets through the library ``datasets``: of the hub, of a .parquet file, of a ``save_to_disk`` folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unigrpo.data_names import HUB
from unigrpo.ranges import ConfigError, did_you_mean, lacking
from unigrpo.worlds.records import PROMPT, Record, Records, column_of, no_column

if TYPE_CHECKING:
    from datasets import Dataset

HUB_FORMS = "hf:owner/name, hf:owner/name:split or hf:owner/name:split:column"
TRAIN = "train"


@dataclass(frozen=True)
class Table(Sequence[Record]):
    """The rows of a data set, read when they are asked for (data sets may be large); pictures stay undecoded."""

    name: str
    data: Dataset

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        """One row, without empty cells."""
        return Record(f"{self.name}, row {range(len(self))[index]}", without_empty(self.data[index]))


def without_empty(value: Any) -> Any:
    """The value without empty cells at any depth: a table has no absent keys, so it says null instead."""
    if isinstance(value, Mapping):
        return {key: without_empty(part) for key, part in value.items() if part is not None}
    return [without_empty(part) for part in value] if isinstance(value, list) else value


def open_hub(name: str, *, plain: bool) -> Records:
    """The rows of ``hf:owner/name[:split[:column]]`` (default train, prompt); a folder may stand for owner/name."""
    parts = name.removeprefix(HUB).split(":")
    if not name.startswith(HUB) or not all(parts) or len(parts) > 3:
        raise ConfigError(f"{name!r} names no data set: write {HUB_FORMS}")
    path, *rest = parts
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise ConfigError(f"{name}: {path} is not a folder")
    path = os.path.expanduser(path)
    splits = _loaded(name, lambda library: library.load_dataset(path), f"write {HUB_FORMS}")
    return _of_splits(name, splits, rest, Path(path), plain)


def open_saved(name: str, path: Path, rest: Sequence[str], *, plain: bool) -> Records:
    """The rows of a folder of ``save_to_disk``: FOLDER[:SPLIT[:COLUMN]]; a folder without splits is called train."""
    if len(rest) > 2 or not all(rest):
        raise ConfigError(f"{name!r}: after a folder come at most a split and a column, as in FOLDER:SPLIT:COLUMN")
    found = _loaded(name, lambda library: library.load_from_disk(str(path)), "save it again with save_to_disk")
    splits = found if isinstance(found, dict) else {str(found.split or TRAIN): found}
    return _of_splits(name, splits, rest, path, plain)


def open_parquet(name: str, path: Path, rest: Sequence[str], plain: bool) -> Records:
    """The rows of a .parquet file: FILE[:COLUMN]."""
    column = column_of(name, rest)
    if not path.is_file():
        raise ConfigError(f"{path} cannot be read (there is no such file): name a file that is there")
    data = _loaded(name, lambda library: library.Dataset.from_parquet(str(path)), "write the file again")
    return _records(str(path), data, column, path.parent, plain)


def _loaded(name: str, load: Callable[[Any], Any], otherwise: str) -> Any:
    """What the library reads; ConfigError in one sentence where it cannot, or where it is not installed."""
    if find_spec("datasets") is None:
        raise lacking(name, "datasets", "bagel")
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return load(datasets)
    except (DatasetsError, OSError, ValueError, TypeError, KeyError) as error:  # damaged files raise any of them
        reason = (str(error.__cause__ or error).strip() or "no reason given").split("\n")[0].rstrip(".")
        raise ConfigError(f"{name} cannot be loaded ({type(error).__name__}: {reason}): {otherwise}") from error


def _of_splits(name: str, splits: Mapping[Any, Dataset], rest: Sequence[str], folder: Path, plain: bool) -> Records:
    split, column = [*rest, *(TRAIN, PROMPT)[len(rest) :]]
    if split not in splits:
        known = [str(s) for s in splits]
        raise ConfigError(f"{name}: there is no split {split!r}{did_you_mean(split, known)}; it has {', '.join(known)}")
    return _records(name, splits[split], column, folder, plain)


def _records(name: str, data: Dataset, column: str, folder: Path, plain: bool) -> Records:
    """The rows with their words, plain values and pictures; ConfigError where the column is none of prompts."""
    if column not in data.column_names:
        raise no_column(name, column, data.column_names)
    if not _is_words(data.features[column]):
        raise ConfigError(f"{name}: the column {column!r} holds no words: name one that does ({HUB_FORMS})")
    if len(data) == 0:
        raise ConfigError(f"{name} is empty: name another split")
    if not plain and "image" not in data.column_names:
        raise no_column(name, "image", data.column_names)
    shown = [key for key in ("images", *(() if plain else ("image",))) if key in data.column_names]
    chosen = data.select_columns([key for key in data.column_names if key in shown or _plain(data.features[key])])
    return Records(name, Table(name, _undecoded(name, chosen, shown)), column, folder)


def _undecoded(name: str, data: Dataset, shown: Sequence[str]) -> Dataset:
    """The data set with its columns of pictures as bytes or paths, whatever they are stored as."""
    from datasets import Image, List

    stored = Image(decode=False)
    for key in shown:
        many = key == "images" and isinstance(data.features[key], list | List)
        try:
            data = data.cast_column(key, List(stored) if many else stored)
        except (TypeError, ValueError) as error:  # the library names Arrow's types, which few have met
            raise ConfigError(f"{name}: the column {key!r} holds neither pictures nor paths of pictures") from error
    return data


def _is_words(feature: Any) -> bool:
    from datasets import Value

    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


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
