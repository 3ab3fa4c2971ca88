"""From the options of ``generate`` and ``eval`` to prompts, and to the files that they were read from."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unigrpo import build, options
from unigrpo.data_names import SUFFIXES, split_name
from unigrpo.pictures import read_picture
from unigrpo.policy import Reads, UnknownWords
from unigrpo.ranges import ConfigError
from unigrpo.trajectory import Prompt
from unigrpo.worlds.prompt_files import Row, Source, own_prompts
from unigrpo.worlds.sources import names_records

STDIN = "-"


@dataclass(frozen=True)
class Asked:
    """Prompts at positions 0, 1, ..., the pictures that each of them shows, and every file that was read."""

    prompts: list[Prompt]
    pictures: list[tuple[Source, ...]]
    files: tuple[Path, ...]


def asked(verb: options.Generate) -> Asked:
    """What the options of ``generate`` ask for."""
    if (verb.prompt is None) == (verb.prompts is None):
        raise ConfigError("say what to draw: give a PROMPT, or a file of them with --prompts (one of the two)")
    if verb.prompt is not None and not verb.prompt.strip():
        raise ConfigError("PROMPT is empty: say what to draw, or what to answer")
    rows = [Row("PROMPT", verb.prompt)] if verb.prompt is not None else _rows(verb)
    if verb.image and any(row.pictures for row in rows):
        raise ConfigError(
            f"--image with {verb.prompts}, whose prompts have pictures of their own: leave one of them out"
        )
    for row in rows:
        _check_words(row)
    images = tuple(read_picture(path) for path in verb.image)
    prompts = [row.prompt(position) for position, row in enumerate(rows)]
    if images:
        prompts = [replace(prompt, images=images) for prompt in prompts]
    pictures = [verb.image or row.pictures for row in rows]
    shown = (source for row in rows for source in row.pictures if isinstance(source, Path))
    read = {*verb.image, *shown, *_named(verb.prompts)}
    return Asked(prompts, pictures, tuple(sorted(read)))


def _rows(verb: options.Generate) -> Sequence[Row]:
    assert verb.prompts is not None
    if str(verb.prompts) == STDIN:
        return stdin_rows()
    name = str(verb.prompts)
    if not names_records(name):  # the lists of worlds have no end
        raise ConfigError(
            f"--prompts {name}: prompts to draw are read from a file ({', '.join(SUFFIXES)}), a data set, or - (stdin)"
        )
    build.check_drawn(name, verb.model, lambda model, row: readable(model, row, len(verb.image)))
    return list(own_prompts(name, 0).rows)


def readable(model: Reads, row: Row, images: int) -> None:
    """ValueError for a prompt that the model cannot read; of a world's words other spellings are understood too."""
    try:
        model.read(row.text, images or len(row.pictures))
    except UnknownWords:
        world = build.world_of(model.words)
        if world is None or images or row.pictures:
            raise
        world.understand(row.text)  # explains what can be asked for


def _named(name: Path | None) -> tuple[Path, ...]:
    """The file (without what follows it between colons) that prompts are read from."""
    found = None if name is None or str(name) == STDIN else split_name(str(name))
    return () if found is None else (found[0],)


def names_of(pictures: Sequence[Source]) -> list[str]:
    """Given pictures by their paths, for records; a table may hold them itself."""
    return [str(source) if isinstance(source, Path) else "(in the table)" for source in pictures]


def stdin_rows() -> list[Row]:
    """Prompts from stdin, one a line."""
    try:
        lines = [] if sys.stdin is None else sys.stdin.read().split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"stdin is not {error.encoding} text: send prompts in UTF-8") from error
    rows = [Row(f"stdin, line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ConfigError("stdin is empty: send one prompt a line, as in `unigrpo generate --prompts - < prompts.txt`")
    for row in rows:
        _check_words(row)
    return rows


def _check_words(row: Row) -> None:
    """Refuse what is no text: bytes that could not be read as UTF-8, which Python hides in surrogates."""
    try:
        row.text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{row.where} is not UTF-8 text: {row.text[:40]!a}") from error
