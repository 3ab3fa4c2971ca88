"""Prompts that a call gives: a name or file as it is, anything else as rows, which a run keeps in its own folder."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unigrpo.files import json_line, write_text_atomic
from unigrpo.ranges import ConfigError, shown
from unigrpo.reports import runlog
from unigrpo.worlds.prompt_files import Row, row_of
from unigrpo.worlds.records import PROMPT, Record, Records
from unigrpo.worlds.sources import names_records

FILE = "prompts.jsonl"
"""Where a run keeps the prompts that were given as a list or a stream."""
EXAMPLE = '"a red cup" or {"prompt": "a red cup"}'

Prompts = str | Path | Iterable[str | Mapping[str, Any]]
"""The name of a world's prompts or of a file, or the prompts themselves, in words or with metadata."""


def name_of(prompts: Prompts | None) -> str | None:
    """The name, where prompts are given by one; ConfigError where that is surely a prompt itself."""
    if not isinstance(prompts, str | Path):
        return None
    name = str(prompts)
    if " " in name and not names_records(name):
        raise ConfigError(
            f"prompts = {shown(name)} is neither a file nor a name such as shapes:train: for one prompt give a list, "
            f"prompts=[{shown(name)}]"
        )
    return name


def rows_of(prompts: Iterable[str | Mapping[str, Any]], most: int | None = None) -> list[dict[str, Any]]:
    """Prompts as the rows of a .jsonl file; of a stream (what has no length) at most ``most``.

    Paths of pictures are made absolute from the working folder. ConfigError names the first prompt that is none.
    """
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise ConfigError(f"prompts = {shown(prompts)} is no list of prompts: give [{EXAMPLE}], a file, or a name")
    given = _records(prompts)
    taken = list(given) if most is None or isinstance(given, Sized) else list(itertools.islice(given, most))
    if not taken:
        raise ConfigError(f"prompts is empty: give at least one, such as {EXAMPLE}")
    rows = [_row(one, number) for number, one in enumerate(taken)]
    read(rows)  # raises where one cannot be used
    return rows


def _records(prompts: Iterable[Any]) -> Iterable[Any]:
    """The rows of a data frame of pandas, of which a loop sees the columns; everything else as it is."""
    pandas: Any = sys.modules.get("pandas")
    frame: Any = prompts
    return frame.to_dict("records") if pandas is not None and isinstance(prompts, pandas.DataFrame) else prompts


def _row(given: Any, number: int) -> dict[str, Any]:
    if isinstance(given, str):
        return {PROMPT: given}
    if not isinstance(given, Mapping):
        raise ConfigError(f"prompts[{number}] = {shown(given)} is no prompt: give {EXAMPLE}")
    row = {str(key): value for key, value in given.items()}
    if row.get("images") is not None:
        images = row["images"]
        listed = [images] if isinstance(images, str | Path) else images
        row["images"] = [_absolute(one) for one in listed] if isinstance(listed, list | tuple) else listed
    try:
        json_line(row)
    except TypeError as error:
        raise ConfigError(f"prompts[{number}]: {error}") from error
    return row


def _absolute(picture: Any) -> Any:
    return str(Path(picture).expanduser().absolute()) if isinstance(picture, str | Path) else picture


def read(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows as prompts in memory; ConfigError says what is wrong with one."""
    records = Records("prompts", [Record(f"prompts[{n}]", row) for n, row in enumerate(rows)], PROMPT, Path())
    return [row_of(record, records) for record in records.rows]


def text_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """What stands in the file of a run."""
    return "".join(json_line(row) for row in rows)


@contextmanager
def kept(run_dir: Path, rows: Sequence[Mapping[str, Any]] | None) -> Iterator[None]:
    """Write rows into a run's folder; where the run comes to nothing inside, they are gone again."""
    if rows is None:
        yield
        return
    path = write_text_atomic(run_dir / FILE, text_of(rows))
    try:
        yield
    finally:
        if not (run_dir / runlog.RECIPE).is_file():
            path.unlink(missing_ok=True)
