"""Where rows of one's own come from: a file, a folder of save_to_disk, the hub."""

from __future__ import annotations

from unigrpo.data_names import HUB, SUFFIXES, TEXTS, split_name
from unigrpo.ranges import ConfigError
from unigrpo.worlds.data_sets import open_hub, open_parquet, open_saved
from unigrpo.worlds.records import Records, column_of, read_file


def names_records(name: str) -> bool:
    """Whether a name means rows of a file or data set (and no world's prompts)."""
    return name.startswith(HUB) or split_name(name) is not None


def open_records(name: str, *, plain: bool = True) -> Records:
    """The rows that a name means; ``plain``: prompts, whose column ``image`` (if any) is not read as a picture.

    ConfigError says what is wrong with the name or the file.
    """
    if name.startswith(HUB):
        return open_hub(name, plain=plain)
    if (found := split_name(name)) is None:
        raise ConfigError(
            f"{name!r} is no file ({', '.join(SUFFIXES)}), no folder of save_to_disk and no data set (hf:...)"
        )
    path, rest = found
    if path.suffix.lower() not in TEXTS:
        return open_saved(name, path, rest, plain=plain) if path.is_dir() else open_parquet(name, path, rest, plain)
    column = column_of(name, rest)
    return Records(str(path), read_file(path), column, path.parent)
