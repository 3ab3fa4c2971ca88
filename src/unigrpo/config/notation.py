"""How a recipe is written down: YAML as people expect it, and dotted overrides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from unigrpo.config.sections import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: 1e-5 is a float, only true and false are booleans, and a key stands once in a section."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (the name and the type are PyYAML's)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise ConfigError(f"{name} is set twice (line {key.start_mark.line + 1}): remove one of them")
            seen.add(name)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Quotes what either YAML would misread, so that a text stays a text."""


_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$")
_SCALARS = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
)
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
    Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


def parse(text: str) -> Any:
    """Read YAML text (a recipe, or the value of one override); ConfigError where it is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"this is not valid YAML: {error}") from error


def override_pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Split ``--a.b-c 1`` and ``--a.b_c=1`` into ("a.b_c", "1")."""
    items = iter(overrides)
    for item in items:
        name, equals, value = item.removeprefix("--").partition("=")
        if not item.startswith("--") or not all(name.split(".")):
            raise ConfigError(f"{item!r} is not an override: write --section.key value, or --section.key=value")
        if not equals:
            value = next(items, "--")
            if value.startswith("--"):
                raise ConfigError(f"--{name} has no value: write --{name} VALUE, or --{name}=VALUE")
        yield name.replace("-", "_"), value


def with_key(written: Mapping[Any, Any], keys: Sequence[str], value: Any, where: str = "") -> dict[Any, Any]:
    """Return a copy of ``written`` in which the nested key is set."""
    if len(keys) == 1:
        return {**written, keys[0]: value}
    inner = written.get(keys[0])
    here = where + keys[0]
    if inner is not None and not isinstance(inner, Mapping):
        raise ConfigError(f"{here} = {inner!r} has no keys of its own: set it whole, --{here} VALUE")
    return {**written, keys[0]: with_key(inner or {}, keys[1:], value, f"{here}.")}
