"""Every row of a file of prompts or demonstrations is looked at before anything is drawn: words, keys and pictures.

A row that cannot be used would end a run where the stream comes to it, and again whenever it is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from unigrpo.plurals import counted
from unigrpo.ranges import ConfigError
from unigrpo.worlds.pairs import PairRow
from unigrpo.worlds.prompt_files import Row, Source, read_picture

LISTED = 10
PART = 64  # rows whose pictures are in memory (as files, if a table holds them) at a time
THREADS = 4  # that decode pictures: it is done outside Python's lock

Opened = dict[Path, str | None]
"""Picture files that were decoded, and what is wrong with them."""

_R = TypeVar("_R", Row, PairRow)


def nothing(rows: int) -> None:
    """Tell nobody of finished rows."""


def check_prompts(
    name: str,
    rows: Sequence[Row],
    words: Callable[[Row], None],
    opened: Opened,
    *,
    limit: int | None = None,
    advance: Callable[[int], None] = nothing,
) -> None:
    """Look at prompts (the first ``limit``); ConfigError lists ten rows that cannot be used, and counts the others.

    ``words`` raises ValueError for words that the model cannot take; ``opened`` remembers picture files, so that each
    is decoded once; ``advance`` is told of finished rows.
    """

    def look(row: Row) -> tuple[str, Sequence[Source]]:
        words(row)
        return row.where, row.pictures

    total = len(rows) if limit is None else min(limit, len(rows))
    _require(name, total, _faults(rows, total, look, opened, advance))


def check_pairs(
    name: str,
    rows: Sequence[PairRow],
    words: Callable[[PairRow], None],
    opened: Opened,
    *,
    advance: Callable[[int], None] = nothing,
) -> None:
    """Look at demonstrations, in the same way."""

    def look(pair: PairRow) -> tuple[str, Sequence[Source]]:
        words(pair)
        return pair.row.where, (*pair.row.pictures, pair.image)

    _require(name, len(rows), _faults(rows, len(rows), look, opened, advance))


def _faults(
    rows: Sequence[_R],
    total: int,
    look: Callable[[_R], tuple[str, Sequence[Source]]],
    opened: Opened,
    advance: Callable[[int], None],
) -> list[str]:
    """What is wrong with the first ``total`` rows, in order, one sentence each."""
    faults: list[str] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, total, PART):
            part = range(start, min(start + PART, total))
            found: dict[int, str] = {}
            shown: list[tuple[int, str, Source]] = []
            for index in part:
                try:
                    where, sources = look(rows[index])
                except ValueError as error:
                    found[index] = str(error)
                else:
                    shown += [(index, where, source) for source in sources]
            for index, fault in _pictures(shown, opened, pool):
                found.setdefault(index, fault)
            faults += [found[index] for index in sorted(found)]
            advance(len(part))
    return faults


def _pictures(
    shown: Sequence[tuple[int, str, Source]], opened: Opened, pool: ThreadPoolExecutor
) -> list[tuple[int, str]]:
    """The faults of some rows' pictures: (row, sentence)."""

    def fault(one: tuple[str, Source]) -> str | None:
        try:
            read_picture(one[1], one[0])
        except ValueError as error:
            return str(error).removeprefix(f"{one[0]}: ")
        return None

    files = {source: where for _, where, source in shown if isinstance(source, Path) and source not in opened}
    opened |= zip(files, pool.map(fault, ((where, path) for path, where in files.items())), strict=True)
    held = [(index, where, source) for index, where, source in shown if isinstance(source, bytes)]
    whys = pool.map(fault, ((where, source) for _, where, source in held))
    faults = [(index, where, opened[source]) for index, where, source in shown if isinstance(source, Path)]
    faults += [(index, where, why) for (index, where, _), why in zip(held, whys, strict=True)]
    return [(index, f"{where}: {why}") for index, where, why in faults if why is not None]


def _require(name: str, total: int, faults: Sequence[str]) -> None:
    if not faults:
        return
    if len(faults) == 1:
        raise ConfigError(faults[0])
    listed = [f"  {fault.removeprefix(f'{name}, ')}" for fault in faults[:LISTED]]
    more = [f"  and {len(faults) - LISTED:,} more"] if len(faults) > LISTED else []
    of = counted(total, "row", ",")
    few = f"{len(faults):,} of {of} cannot be used; mend them, or take them out (nothing was written):"
    raise ConfigError("\n".join([f"{name}: {few}", *listed, *more]))
