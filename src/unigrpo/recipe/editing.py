"""A recipe written out for its reader: every key, and above it one line of explanation (``unigrpo recipe``)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from unigrpo.recipe.keys import Key, all_keys, in_line, keys_of
from unigrpo.recipe.schema import Recipe
from unigrpo.recipe.stages import STAGES, StagedRecipe

WIDTH = 120
_WHOLE = (
    "Every key, with its value. Give the copy a name of its own, change what you like, and run it: unigrpo train FILE"
)
_STAGED = "Keys that are not here have their defaults (unigrpo train FILE --keys). Give the copy a name of its own."


def written_out(loaded: Recipe | StagedRecipe) -> str:
    """A recipe as YAML to edit, with comments; reading it gives the same recipe.

    Of a recipe of several stages the keys that it sets: the others have their defaults in every stage.
    """
    if isinstance(loaded, Recipe):
        keys = {key.name: key for key in keys_of(loaded.method.name)}
        return "\n".join([f"# {_WHOLE}", *_section(asdict(loaded), keys)]) + "\n"
    keys = {key.name: key for key, _ in reversed(all_keys())}
    common = {key: value for key, value in loaded.written.items() if key != STAGES}
    lines = [f"# {_STAGED}", *_section(common, keys), f"{STAGES}:"]
    for stage in loaded.written[STAGES]:
        own = {key: value for key, value in stage.items() if key != "name"}
        lines += [f"  - name: {stage['name']}", *textwrap.indent("\n".join(_section(own, keys)), "    ").splitlines()]
    return "\n".join(lines) + "\n"


def _section(written: Mapping[str, Any], keys: Mapping[str, Key], prefix: str = "") -> Iterator[str]:
    """The lines of a section; of its sections they are indented."""
    for name, value in written.items():
        if key := keys.get(prefix + name):
            yield from textwrap.wrap(
                f"{key.line} ({key.allowed})", WIDTH - 10, initial_indent="# ", subsequent_indent="# "
            )
        if isinstance(value, Mapping) and value:
            yield f"{name}:"
            yield from (f"  {line}" for line in _section(value, keys, f"{prefix}{name}."))
        else:
            yield f"{name}: {in_line(value)}"
