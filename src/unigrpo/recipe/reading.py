"""From what was written (nested mappings) to the dataclasses, every type and range checked.

The reader knows no recipe by heart: it follows the annotations of the dataclasses. Only two things depend on each
other: ``method.name`` decides which keys ``method`` and ``data`` have.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from unigrpo.loading import reference
from unigrpo.objectives.methods import METHODS
from unigrpo.ranges import MOST_ITEMS, ConfigError, PathOrName, Range, Text, did_you_mean, shown
from unigrpo.recipe.notation import parse
from unigrpo.recipe.own_methods import method_class
from unigrpo.recipe.schema import Recipe
from unigrpo.recipe.sections import DATA, Scorer

_T = TypeVar("_T")
_SCALAR_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text (quote it if need be)"}


def _leaves(hints: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield (key, dotted key) of a section and of the sections in it."""
    for key, kind in hints.items():
        yield key, prefix + key
        if is_dataclass(kind):
            yield from _leaves(get_type_hints(kind, include_extras=True), f"{prefix}{key}.")


def _unknown_key(cls: type, hints: Mapping[str, Any], key: str, prefix: str) -> ConfigError:
    for family, example in ((METHODS, "{name: NAME}"), (DATA, "{demonstrations: shapes}")):
        owners = [name for name, other in family.items() if key in {f.name for f in fields(other)}]
        if cls in family.values() and owners:
            own = next(name for name, other in family.items() if other is cls)
            section = prefix.removesuffix(".")
            return ConfigError(
                f"{prefix}{key} is set, but the {section} of {own} has no such term (it has {', '.join(hints)}): "
                f'remove it, or use {" or ".join(owners)}; on the command line, --{section} "{example}" replaces the '
                "whole section"
            )
    leaves = list(_leaves(hints, prefix))
    elsewhere = [dotted for name, dotted in leaves if name == key]
    hint = f" (did you mean {' or '.join(elsewhere)}?)" if elsewhere else did_you_mean(key, list(hints))
    if not hint:
        close = difflib.get_close_matches(key, [name for name, _ in leaves], n=1)
        hint = "".join(did_you_mean(dotted, [dotted]) for name, dotted in leaves if name in close)
    return ConfigError(f"{prefix}{key} is not a key of a recipe{hint}; keys here: {', '.join(hints)}")


def _section(cls: type[_T], written: Any, where: str, kinds: Mapping[str, Any] | None = None) -> _T:
    """Build the dataclass ``cls`` from a mapping; ``kinds`` settles fields whose type depends on other keys."""
    hints = get_type_hints(cls, include_extras=True) | dict(kinds or {})
    prefix = f"{where}." if where else ""
    if not isinstance(written, Mapping):
        raise ConfigError(
            f"{where or 'the recipe'} = {shown(written)} is not a section: give it values for its keys, "
            f"{', '.join(hints)}"
        )
    for key in written:
        if key not in hints:
            raise _unknown_key(cls, hints, str(key), prefix)
    for spec in fields(cls):  # type: ignore[arg-type]  # cls is a dataclass by construction
        if spec.name not in written and spec.default is MISSING and spec.default_factory is MISSING:
            raise ConfigError(f"{prefix}{spec.name} is missing: a recipe has no default for it, so set it")
    return cls(**{key: _value(hints[key], value, prefix + key) for key, value in written.items()})


def read_scorers(written: str, where: str) -> tuple[Scorer, ...]:
    """One reward or a list of them, written as in a recipe; ConfigError begins with ``where``."""
    found = parse(written)
    return _value(tuple[Scorer, ...], found if isinstance(found, list) else [found], where)


def _value(kind: Any, written: Any, where: str) -> Any:
    """Check one value against its type and return it in that type (int where a float is due becomes a float)."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return written
    if is_dataclass(kind):
        return _section(kind, written, where)  # type: ignore[arg-type]
    if origin is Annotated:
        return _ranged(_value(args[0], written, where), args[1], where)
    if origin is Literal:
        return _choice(args, written, where)
    if origin in (Union, UnionType):
        return _either(args, written, where)
    if origin is tuple:
        return _sequence(args, written, where)
    if origin is Mapping:
        return _plain_mapping(written, where)
    return _scalar(kind, written, where)


def _ranged(value: Any, allowed: Range | Text, where: str) -> Any:
    if value not in allowed:
        raise ConfigError(f"{where} = {shown(value)} is out of range: it must be {allowed}")
    return value


def _choice(options: tuple[Any, ...], written: Any, where: str) -> Any:
    if written is None and "none" in options:  # null and none mean the same to people
        return "none"
    if written not in options:
        near = did_you_mean(str(written), options) if isinstance(written, str) else ""
        raise ConfigError(f"{where} = {shown(written)} is not known{near}; choose one of {', '.join(options)}")
    return written


def _either(kinds: tuple[Any, ...], written: Any, where: str) -> Any:
    """A value of ``X | None`` or ``X | Literal[...]``."""
    if NoneType in kinds and (written is None or (isinstance(written, str) and written.lower() == "none")):
        return None
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    if isinstance(written, str) and written in words:
        return written
    [kind] = [kind for kind in kinds if kind is not NoneType and get_origin(kind) is not Literal]
    try:
        return _value(kind, written, where)
    except ConfigError as error:
        raise ConfigError(f"{error} (or {', '.join([*words, *(['null'] if NoneType in kinds else [])])})") from None


def _sequence(kinds: tuple[Any, ...], written: Any, where: str) -> tuple[Any, ...]:
    repeated = kinds[-1] is Ellipsis
    words = kinds[0] == PathOrName or get_origin(kinds[0]) is Literal
    if repeated and words and isinstance(written, str):  # --log tensorboard,wandb
        written = [word.strip() for word in written.split(",")]
    if not isinstance(written, list) or (not repeated and len(written) != len(kinds)):
        shape = "a list" if repeated else f"a list of {len(kinds)} numbers"
        example = "[{name: shapes/verifier}]" if is_dataclass(kinds[0]) else "[a, b]"
        raise ConfigError(f"{where} = {shown(written)} is not {shape}: write it as {example}")
    if len(written) > MOST_ITEMS:
        raise ConfigError(f"{where} lists {len(written)} items: {MOST_ITEMS} are the most")
    chosen = [kinds[0]] * len(written) if repeated else kinds
    return tuple(
        _value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(chosen, written, strict=True))
    )


def _plain_mapping(written: Any, where: str) -> dict[str, Any]:
    """Arguments by name: plain data, whose meaning others know."""
    if not isinstance(written, Mapping):
        raise ConfigError(f"{where} = {shown(written)} is no mapping of names to values: write it as {{name: value}}")
    if wrong := [name for name in written if not isinstance(name, str) or not name.isidentifier()]:
        raise ConfigError(f"{where} has the name {shown(wrong[0])}, which no argument can have: write {{name: value}}")
    return dict(written)


def _scalar(kind: type, written: Any, where: str) -> Any:
    if kind is float and type(written) is int and abs(written) < 2**53:
        return float(written)
    if type(written) is not kind or (kind is float and not math.isfinite(written)):  # a bool is not an int here
        raise ConfigError(f"{where} = {shown(written)} is of the wrong type: it must be {_SCALAR_NAMES[kind]}")
    return written


def read_recipe(written: Any) -> Recipe:
    """Build a recipe; ``method.name`` decides the types of ``method`` and ``data``."""
    method = written.get("method") if isinstance(written, Mapping) else None
    if not isinstance(method, Mapping) or "name" not in method:
        raise ConfigError(f"method.name is missing: set it to one of {', '.join(METHODS)}")
    name = method["name"]
    if not isinstance(name, str) or reference(name) is None:
        name = _choice(tuple(METHODS), name, "method.name")
    return _section(Recipe, written, "", kinds_of(name))


def kinds_of(method: str) -> dict[str, Any]:
    """The dataclasses of the two sections that the method decides."""
    chosen = method_class(method)
    return {"method": chosen, "data": DATA["supervised" if chosen.learns_from == "demonstrations" else "RL"]}
