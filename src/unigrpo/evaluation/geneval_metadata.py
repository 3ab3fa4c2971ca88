"""What GenEval's metadata ask of a picture, read from a line of its prompt file (pure Python).

Two depths: :func:`read` takes whatever the official evaluation gives an answer to, :func:`check` refuses also what it
answers with a silent "wrong" for every picture: a class, colour, relation or tag that nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unigrpo.geneval_names import CLASSES, COLOURS, RELATIONS, TAGS
from unigrpo.ranges import ConfigError, did_you_mean, shown

EXAMPLE = '{"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]}'


@dataclass(frozen=True)
class Wanted:
    """An entry of ``include`` or ``exclude``: ``count`` objects of a class.

    place: the relation to the objects of another entry, by its index in ``include``; negative ones count back from
    this entry, as in Python.
    """

    name: str
    count: int
    colour: str | None = None
    place: tuple[str, int] | None = None


@dataclass(frozen=True)
class Asked:
    """All that a picture is asked for. The tag decides above which score a detection counts."""

    tag: str
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...]

    @property
    def coloured(self) -> tuple[str, ...]:
        """The classes whose colour matters, sorted."""
        return tuple(sorted({item.name for item in self.include if item.colour is not None}))


def read(metadata: Mapping[str, Any]) -> Asked:
    """What metadata ask for; ConfigError where they have not the form that the rules need.

    A key that is null is a key that is left out (tables store it so); keys beyond these are not looked at.
    """
    if not isinstance(metadata, Mapping) or not isinstance(metadata.get("tag"), str):
        has = ", ".join(map(str, metadata)) if isinstance(metadata, Mapping) else shown(metadata)
        raise ConfigError(
            f"GenEval's rules need metadata with tag and include, as in {EXAMPLE}; there is: {has or '-'}"
        )
    include = tuple(_wanted(entry, f"include[{i}]", i) for i, entry in enumerate(_entries(metadata, "include")))
    exclude = tuple(_wanted(entry, f"exclude[{i}]", None) for i, entry in enumerate(_entries(metadata, "exclude")))
    return Asked(metadata["tag"], include, exclude)


def check(metadata: Mapping[str, Any]) -> Asked:
    """The same, and ConfigError also for what no picture can satisfy: unknown names, and counts below 1."""
    asked = read(metadata)
    _known("tag", asked.tag, TAGS)
    if not asked.include:
        raise ConfigError(f"GenEval metadata ask for nothing: include is empty; give it entries, as in {EXAMPLE}")
    for key, entries in (("include", asked.include), ("exclude", asked.exclude)):
        for i, item in enumerate(entries):
            _known(f"{key}[{i}].class", item.name, CLASSES)
            if item.count < 1:
                raise ConfigError(f"GenEval metadata: {key}[{i}].count = {item.count} must be at least 1")
            if item.colour is not None:
                _known(f"{key}[{i}].color", item.colour, COLOURS)
            if item.place is not None:
                _known(f"{key}[{i}].position[0]", item.place[0], RELATIONS)
    return asked


def _known(where: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = did_you_mean(name, names)
        some = ", ".join(names) if len(names) <= 10 else f"it must be one of COCO's {len(names)} by GenEval's names"
        raise ConfigError(f"GenEval metadata: {where} = {shown(name)} is not known{near}: {some}")


def _entries(metadata: Mapping[str, Any], key: str) -> Sequence[Any]:
    entries = metadata.get(key)
    if entries is None:
        return ()
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise ConfigError(f"GenEval metadata: {key} = {shown(entries)} must be a list of entries, as in {EXAMPLE}")
    return entries


def _wanted(entry: Any, where: str, before: int | None) -> Wanted:
    """One entry; ``before``: how many entries of include stand before it (None: it is one of exclude)."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class"), str):
        raise ConfigError(
            f"GenEval metadata: {where} = {shown(entry)} must name a class and a count, "
            'such as {"class": "dog", "count": 1}'
        )
    count = entry.get("count")
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ConfigError(f"GenEval metadata: {where}.count = {shown(count)} must be a whole number of objects")
    if before is None:
        return Wanted(entry["class"], count)
    colour = entry.get("color")
    if colour is not None and not isinstance(colour, str):
        raise ConfigError(f"GenEval metadata: {where}.color = {shown(colour)} must be the name of a colour")
    return Wanted(entry["class"], count, colour, _place(entry.get("position"), where, before))


def _place(position: Any, where: str, before: int) -> tuple[str, int] | None:
    if position is None:
        return None
    pair = tuple(position) if isinstance(position, list | tuple) else ()
    if len(pair) != 2 or not isinstance(pair[0], str) or isinstance(pair[1], bool) or not isinstance(pair[1], int):
        raise ConfigError(
            f"GenEval metadata: {where}.position = {shown(position)} must be a relation and the index of an entry, "
            'such as ["left of", 0]'
        )
    if not -before <= pair[1] < before:
        raise ConfigError(
            f"GenEval metadata: {where}.position refers to entry {pair[1]}, and {before} stand before it: a target "
            "comes before what is placed, so put it first"
        )
    return pair
