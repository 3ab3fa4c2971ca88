"""The verbs about recipes: the list of those that ship, every key of one, and a copy of one to edit."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from unigrpo import cli, config, output
from unigrpo.config import ConfigError, Recipe, StagedRecipe
from unigrpo.reports import runlog
from unigrpo.verbs.places import try_file

FILES = (".yaml", ".yml")


def list_all() -> int:
    """Print the recipes that ship with the package."""
    found = [(name, " ".join(description.split())) for name, description in config.list_recipes()]
    lines = [f"{name:24} {description}" for name, description in found]
    output.result("\n".join(lines), recipes=[{"name": name, "description": about} for name, about in found])
    return 0


def list_keys(asked: Recipe | StagedRecipe) -> int:
    """Print every key of a recipe, explained; of several stages, of each."""
    stages = asked.stages if isinstance(asked, StagedRecipe) else (asked,)
    lines, figures = [], []
    for number, recipe in enumerate(stages, start=1):
        if isinstance(asked, StagedRecipe):
            lines.append(f"# stage {number} of {len(stages)}")
        lines += config.keys_listing(recipe)
        figures.append({"name": recipe.name, "keys": config.keys_figures(recipe)})
    output.result("\n".join(lines), stages=figures)
    return 0


def write(verb: cli.RecipeToEdit, overrides: Sequence[str]) -> int:
    """Write a recipe to a new file, or print it."""
    if verb.out is not None:
        if verb.out.suffix not in FILES:
            raise ConfigError(f"--out {verb.out}: recipes are .yaml files; name one")
        if verb.out.exists():
            raise ConfigError(f"--out {verb.out} is there already: name a new file")
        try_file(verb.out)
    text = config.written_out(config.load_experiment(verb.recipe, overrides))
    if verb.out is None:
        output.result(text.rstrip("\n"), recipe=text)
        return 0
    runlog.write_text_atomic(verb.out, text)
    told = f"wrote {verb.out}; to run it: unigrpo train {shlex.quote(str(verb.out))}"
    output.result(told, wrote=str(verb.out), recipe=text)
    return 0
