"""How a recipe is written down: YAML as people expect it, within bounds, and dotted overrides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from unigrpo.ranges import ConfigError, shown

LARGEST = 100_000
"""Bytes of a recipe file; those that ship have less than 5,000."""
DEEPEST = 32
"""How deep sections and lists may be nested; a recipe needs 5."""
LONGEST_KEY = 100
DIGITS = 19
"""Of a whole number, without its sign: more than any range allows."""

_PREFIX = "tag:yaml.org,2002:"
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_SCALARS = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")),
    "float": (_FLOAT, list("-+.0123456789")),
    # no value of a recipe is a date: it is known so that it can be refused, and a text that looks like one is quoted
    "timestamp": (
        re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:(?:[Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}.*)?$"),
        list("0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: 1e-5 is a float, only true and false are booleans. No anchors, and no end to the depth."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (the name and the type are PyYAML's)
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise ConfigError(
                f"line {line} has an anchor (&) or an alias (*): a recipe has none, so write the value out"
            )
        if self.depth == DEEPEST:
            raise ConfigError(f"line {line} is nested more than {DEEPEST} deep: a recipe needs 5 levels at most")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Dumper(yaml.SafeDumper):
    """Quotes what either YAML would misread, so that a text stays a text; writes everything out, without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """What stands in two places is written twice."""
        return True


for _kind, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_PREFIX + _kind, _pattern, _first)
    Dumper.add_implicit_resolver(_PREFIX + _kind, _pattern, _first)


# Files


def read_text(path: Path) -> str:
    """The text of a YAML file; ConfigError where it is no file, too large, not UTF-8, or no text at all."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is not a file: give the path of a .yaml file")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"recipe file {path} cannot be read ({why}): check the path") from error
    if len(content) > LARGEST:
        raise ConfigError(f"{path} has more than {LARGEST} bytes: that is no recipe; check the path")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"line {line} of {path} is not UTF-8 text: save the file as UTF-8, or check the path"
        ) from None


# YAML


def parse(text: str) -> Any:
    """Read YAML text (a recipe, or the value of one override) as plain data; ConfigError where it is not within bounds.

    Plain data: mappings with texts as keys, lists, texts, numbers, true, false and null.
    """
    if not text.isascii() or not text.isprintable():
        _check_characters(text)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, error.problem or error.context
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"this is not valid YAML{where}: {problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter of escapes and directives out of range
        raise ConfigError(f"this is not valid YAML: {' '.join(str(error).split())}") from None
    return None if node is None else _value(node)


def _check_characters(text: str) -> None:
    found = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise ConfigError(
            f"line {line} has the character {found[0]!r}, which text cannot have: remove it, or check that this is YAML"
        )


def _value(node: yaml.Node) -> Any:
    """A composed node as plain data."""
    tag, line = node.tag.removeprefix(_PREFIX), node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode) and tag == "map":
        return _mapping(node)
    if isinstance(node, yaml.SequenceNode) and tag == "seq":
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.ScalarNode) and tag == "str":
        return node.value
    if isinstance(node, yaml.ScalarNode) and tag == "timestamp" and _SCALARS[tag][0].fullmatch(node.value):
        said = shown(node.value)
        raise ConfigError(f'{said} (line {line}) is a date: if it is a text, quote it (on a command line, "{said}")')
    if isinstance(node, yaml.ScalarNode) and tag in _SCALARS and _SCALARS[tag][0].fullmatch(node.value):
        return _scalar(tag, node.value, line)
    said = shown(node.value) if isinstance(node, yaml.ScalarNode) else "a list or a section"
    raise ConfigError(f"line {line} tags {said} as {shown(tag)}: a recipe has no such tags, so leave it out")


def _mapping(node: yaml.MappingNode) -> dict[str, Any]:
    section: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{_PREFIX}str":
            said = shown(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a list or a section"
            raise ConfigError(f"{said} (line {line}) stands where a key should: keys are plain words")
        key = key_node.value
        if len(key) > LONGEST_KEY or not key.isprintable():
            raise ConfigError(f"{shown(key)} (line {line}) is not a key of a recipe: keys are plain words")
        if key in section:
            raise ConfigError(f"{key} is set twice (line {line}): remove one of them")
        section[key] = _value(value_node)
    return section


def _scalar(tag: str, text: str, line: int) -> Any:
    match tag:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if len(text.lstrip("+-")) > DIGITS:
        raise ConfigError(
            f"{text[:DIGITS]}... (line {line}) is a whole number of {len(text.lstrip('+-'))} digits, and no key of a "
            f"recipe takes more than {DIGITS}: quote it if it is a text"
        )
    return int(text)


# Overrides


_OVERRIDE = re.compile(r"--[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+){0,9}")


def override_pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Split ``--a.b-c 1`` and ``--a.b_c=1`` into ("a.b_c", "1")."""
    items = iter(overrides)
    for item in items:
        name, equals, value = item.partition("=")
        if not _OVERRIDE.fullmatch(name):
            raise ConfigError(f"{shown(item)} is not an override: write --section.key value, or --section.key=value")
        if not equals:
            value = next(items, "--")
            if value.startswith("--"):
                raise ConfigError(f"{name} has no value: write {name} VALUE, or {name}=VALUE")
        yield name.removeprefix("--").replace("-", "_"), value


def override_value(key: str, text: str) -> Any:
    """Read the value of an override; ConfigError names the override."""
    if len(text) > LARGEST:
        raise ConfigError(f"--{key} has a value of more than {LARGEST} characters: that is no value of a recipe")
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"--{key}: {error}") from None


def with_key(written: Mapping[Any, Any], keys: Sequence[str], value: Any, where: str = "") -> dict[Any, Any]:
    """Return a copy of ``written`` in which the nested key is set."""
    if len(keys) == 1:
        return {**written, keys[0]: value}
    inner = written.get(keys[0])
    here = where + keys[0]
    if inner is not None and not isinstance(inner, Mapping):
        raise ConfigError(f"{here} = {shown(inner)} has no keys of its own: set it whole, --{here} VALUE")
    return {**written, keys[0]: with_key(inner or {}, keys[1:], value, f"{here}.")}
