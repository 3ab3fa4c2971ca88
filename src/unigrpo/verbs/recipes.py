"""The verbs about recipes: the list of those that ship, every key of one, and a copy of one to edit."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from unigrpo import cli, config
from unigrpo.config import ConfigError, Recipe, StagedRecipe
from unigrpo.reports import runlog

FILES = (".yaml", ".yml")


def list_all() -> int:
    """Print the recipes that ship with the package."""
    for name, description in config.list_recipes():
        print(f"{name:24} {' '.join(description.split())}")
    return 0


def list_keys(asked: Recipe | StagedRecipe) -> int:
    """Print every key of a recipe, explained; of several stages, of each."""
    stages = asked.stages if isinstance(asked, StagedRecipe) else (asked,)
    for number, recipe in enumerate(stages, start=1):
        if isinstance(asked, StagedRecipe):
            print(f"# stage {number} of {len(stages)}")
        print("\n".join(config.keys_listing(recipe)))
    return 0


def write(verb: cli.RecipeToEdit, overrides: Sequence[str]) -> int:
    """Write a recipe to a new file, or print it."""
    if verb.out is not None:
        if verb.out.suffix not in FILES:
            raise ConfigError(f"--out {verb.out}: recipes are .yaml files; name one")
        if verb.out.exists():
            raise ConfigError(f"--out {verb.out} is there already: name a new file")
    text = config.written_out(config.load_experiment(verb.recipe, overrides))
    if verb.out is None:
        print(text, end="")
        return 0
    runlog.write_text_atomic(verb.out, text)
    print(f"wrote {verb.out}; to run it: unigrpo train {shlex.quote(str(verb.out))}")
    return 0
