"""Names of one's own prompts and demonstrations: what of ``FILE:COLUMN`` or ``FOLDER:SPLIT:COLUMN`` is the path."""

from __future__ import annotations

from pathlib import Path

HUB = "hf:"
EMBEDDED = ("shapes", "words")  # worlds that ship with the package: NAME, NAME:SPLIT
LOOKED_AT = ("shapes",)  # of these, worlds with demonstrations that look at pictures
TEXTS = (".txt", ".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXTS, ".parquet")
_SAVED = ("dataset_dict.json", "state.json")  # what ``Dataset.save_to_disk`` writes: several splits, one


def split_name(name: str, base: Path = Path()) -> tuple[Path, list[str]] | None:
    """The file or saved folder that a name begins with, and what follows it between colons; None where it is neither.

    What is there (relative paths: in ``base``) decides, so that a path may have colons; of a file that is not there its
    kind does.
    """
    parts = name.split(":")
    cuts = [(Path(":".join(parts[:end])), parts[end:]) for end in range(len(parts), 0, -1)]
    for path, rest in cuts:
        there = base / path.expanduser()
        if (there.is_file() and path.suffix.lower() in SUFFIXES) or is_saved(there):
            return path, rest
    return next(((path, rest) for path, rest in cuts if path.suffix.lower() in SUFFIXES), None)


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by ``Dataset.save_to_disk``."""
    return any((folder / mark).is_file() for mark in _SAVED)
