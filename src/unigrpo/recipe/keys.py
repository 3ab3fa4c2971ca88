"""Every key of a recipe with its default, its range and one line: what ``train --keys`` and the docs list.

Nothing is listed by hand: keys, defaults and ranges are those of the dataclasses, and the line is the string below the
field in the source of its class, wherever that class lives.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from unigrpo.objectives.methods import METHODS
from unigrpo.recipe.notation import Dumper
from unigrpo.recipe.reading import kinds_of
from unigrpo.recipe.schema import Recipe
from unigrpo.recipe.sections import DATA

UNSET = object()
"""In place of a default or a value where there is none."""


@dataclass(frozen=True)
class Key:
    """One key: its dotted name ([] stands for any item of a list), what it may be, and what it means in one line.

    default: UNSET where a recipe must set it.
    """

    name: str
    allowed: str
    default: Any
    line: str


def keys_of(method: str) -> list[Key]:
    """All keys of a recipe with this method, in the order of the dataclasses."""
    return list(_keys(Recipe, "", kinds_of(method)))


def all_keys() -> list[tuple[Key, tuple[str, ...]]]:
    """All keys of all recipes, each with the methods that have it."""
    found: dict[tuple[str, ...], tuple[Key, list[str]]] = {}
    for method in METHODS:
        for key in keys_of(method):
            same = (key.name, key.allowed, in_line(key.default) if key.name != "method.name" else "", key.line)
            found.setdefault(same, (key, []))[1].append(method)
    return [(key, tuple(methods)) for key, methods in found.values()]


def value_of(recipe: Recipe, name: str) -> Any:
    """The value of a key in a recipe; UNSET inside lists and in sections that are null."""
    found: Any = recipe
    for part in name.split("."):
        if not is_dataclass(found) or part.endswith("[]"):
            return UNSET
        found = vars(found)[part]
    return found


def in_line(value: Any) -> str:
    """A value as YAML in one line; UNSET is nothing."""
    if value is UNSET:
        return ""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    if isinstance(plain, Sequence) and not isinstance(plain, str):
        plain = [asdict(item) if is_dataclass(item) and not isinstance(item, type) else item for item in plain]
    text = yaml.dump([plain], Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return text.strip()[1:-1]


def _keys(cls: type, prefix: str, kinds: Mapping[str, Any]) -> Iterator[Key]:
    hints, lines = get_type_hints(cls, include_extras=True) | dict(kinds), field_lines(cls)
    for spec in fields(cls):
        name, kind = prefix + spec.name, hints[spec.name]
        if not is_dataclass(kind):
            allowed = " | ".join(METHODS) if name == "method.name" else _allowed(kind)
            yield Key(name, allowed, _default(spec), lines.get(spec.name, ""))
        for section, place in _sections(kind, name):
            yield from _keys(section, f"{place}.", {})


def _sections(kind: Any, name: str) -> Iterator[tuple[type, str]]:
    """The dataclass that a key holds, also where it may be null or is the item of a list."""
    place = f"{name}[]" if get_origin(kind) is tuple else name
    for held in [kind] if is_dataclass(kind) else get_args(kind):
        if is_dataclass(held) and isinstance(held, type):
            yield held, place


def _default(spec: Field[Any]) -> Any:
    if spec.default is not MISSING:
        return spec.default
    return UNSET if spec.default_factory is MISSING else spec.default_factory()


def _allowed(kind: Any) -> str:
    """What a key may be, in few words."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return args[1].brief
    if origin is Literal:
        return " | ".join(args)
    if origin in (Union, UnionType):
        return " | ".join(_allowed(arg) for arg in args)
    if origin is tuple:
        items = "sections" if is_dataclass(args[0]) else _allowed(args[0])
        return f"list of {items}" if args[-1] is Ellipsis else f"[{', '.join(map(_allowed, args))}]"
    if is_dataclass(kind):
        return "a section"
    if origin is Mapping:
        return "{name: value}"
    return {bool: "true | false", NoneType: "null"}[kind]


@functools.cache
def field_lines(cls: type) -> dict[str, str]:
    """The string below each field of a dataclass (and of those that it is made from), in its source."""
    lines: dict[str, str] = {}
    for part in reversed(cls.__mro__[:-1]):
        try:
            [tree] = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        except (OSError, TypeError):  # made around a term of one's own: its fields are those of its bases
            continue
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match below:
                    case ast.Expr(ast.Constant(str(text))):
                        lines[field.target.id] = " ".join(text.split())
    return lines


# Written down


def listing(recipe: Recipe) -> list[str]:
    """Every key of a recipe in two lines: its value, default and range, and what it means."""
    lines = []
    for key in keys_of(recipe.method.name):
        value, default = value_of(recipe, key.name), in_line(key.default) or "none: set it"
        given = "" if value is UNSET else f" = {in_line(value)}"
        lines += [f"{key.name}{given}   (default {default}; {key.allowed})", f"    {key.line}"]
    return lines


def figures(recipe: Recipe) -> list[dict[str, Any]]:
    """The same for programs; values as YAML says them, and a key without a default or a value has none here either."""
    rows = []
    for key in keys_of(recipe.method.name):
        row: dict[str, Any] = {"key": key.name, "allowed": key.allowed, "meaning": key.line}
        for name, value in (("value", value_of(recipe, key.name)), ("default", key.default)):
            if value is not UNSET:
                row[name] = in_line(value)
        rows.append(row)
    return rows


def page() -> str:
    """docs/recipe-keys.md."""
    words = [
        "# Every key of a recipe",
        "",
        "Written by `python scripts/write_recipe_keys.py`; do not edit it. `unigrpo train RECIPE --keys` lists the",
        "keys of one recipe with its values, `unigrpo recipe RECIPE --out my.yaml` writes one to edit. A key without",
        "a default must be set; `[]` stands for any item of a list. [guide.md](guide.md) says how a recipe is written.",
    ]
    sections: dict[str, list[str]] = {}
    for key, methods in all_keys():
        top = key.name.partition(".")[0] if "." in key.name else "the recipe"
        sections.setdefault(top, []).append(_row(key, methods))
    for top, rows in sections.items():
        words += ["", f"## {top}", "", "| key | default | may be | meaning |", "|---|---|---|---|", *rows]
    return "\n".join(words) + "\n"


def _row(key: Key, methods: Sequence[str]) -> str:
    default = f"`{in_line(key.default)}`" if key.default is not UNSET and key.name != "method.name" else ""
    return f"| `{key.name}` | {default} | {key.allowed.replace(' | ', ', ')} | {key.line}{_whose(methods)} |"


def _whose(methods: Sequence[str]) -> str:
    """Which methods have a key, where not all of them have it."""
    if len(methods) == len(METHODS):
        return ""
    prompts = [name for name in METHODS if name not in DATA]
    return f" ({'RL' if list(methods) == prompts else ', '.join(methods)})"
