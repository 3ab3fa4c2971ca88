"""The verb ``recipe``: a copy of a recipe to edit, every key of it explained."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from unigrpo import options, output
from unigrpo.files import write_text_atomic
from unigrpo.ranges import ConfigError
from unigrpo.recipe import load_experiment, written_out
from unigrpo.runs.places import try_file

FILES = (".yaml", ".yml")


def run(verb: options.RecipeToEdit, overrides: Sequence[str]) -> int:
    """Write a recipe to a new file, or print it."""
    if verb.out is not None:
        if verb.out.suffix not in FILES:
            raise ConfigError(f"--out {verb.out}: recipes are .yaml files; name one")
        if verb.out.exists():
            raise ConfigError(f"--out {verb.out} is there already: name a new file")
        try_file(verb.out)
    text = written_out(load_experiment(verb.recipe, overrides))
    if verb.out is None:
        output.result(text.rstrip("\n"), recipe=text)
        return 0
    write_text_atomic(verb.out, text)
    told = f"wrote {verb.out}; to run it: unigrpo train {shlex.quote(str(verb.out))}"
    output.result(told, wrote=str(verb.out), recipe=text)
    return 0
