"""Recipes: one experiment, whole, as frozen dataclasses read from YAML and dotted overrides.

A recipe is data, and names (of models, prompts, rewards) stay names here; ``unigrpo.build`` turns them into things. The
method is a dataclass of ``unigrpo.objectives`` itself. Whatever cannot work raises ConfigError, which says what was
set, why it cannot work and what to change.

sections: the keys · schema: the whole, and whether its parts fit · stages: several recipes in one · sources: names,
files and what they extend · merging: one over another · own_methods: methods by file or module · references, paths: of
files, made absolute · notation: YAML and overrides · reading: from what was written to dataclasses · keys: the keys,
explained · editing: a recipe to edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import yaml

from unigrpo.ranges import ConfigError
from unigrpo.recipe import sources
from unigrpo.recipe.editing import written_out
from unigrpo.recipe.keys import figures as keys_figures
from unigrpo.recipe.keys import listing as keys_listing
from unigrpo.recipe.keys import page as keys_page
from unigrpo.recipe.notation import Dumper, parse
from unigrpo.recipe.paths import absolute_overrides, split_path
from unigrpo.recipe.reading import read_recipe, read_scorers
from unigrpo.recipe.schema import Recipe, trained_experts
from unigrpo.recipe.sections import (
    BUILTIN_MODELS,
    Checkpoint,
    DemonstrationData,
    Eval,
    Lora,
    Mix,
    Model,
    Optimizer,
    Parallel,
    PromptData,
    Reward,
    Rollout,
    Scorer,
)
from unigrpo.recipe.sources import is_recipe_file
from unigrpo.recipe.stages import (
    START,
    StagedRecipe,
    is_staged,
    stage_folders,
    staged_recipe,
    with_overrides,
)

__all__ = [
    "BUILTIN_MODELS",
    "START",
    "Checkpoint",
    "DemonstrationData",
    "Eval",
    "Lora",
    "Mix",
    "Model",
    "Optimizer",
    "Parallel",
    "PromptData",
    "Recipe",
    "Reward",
    "Rollout",
    "Scorer",
    "StagedRecipe",
    "from_yaml",
    "is_recipe_file",
    "keys_figures",
    "keys_listing",
    "keys_page",
    "list_recipes",
    "load_experiment",
    "load_recipe",
    "load_stages",
    "parse",
    "read_scorers",
    "split_path",
    "stage_folders",
    "to_yaml",
    "trained_experts",
    "written_out",
]


def load_experiment(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe | StagedRecipe:
    """Read a recipe, plain or of several stages, by name (``shapes/unigrpo``) or from a ``.yaml`` file.

    Overrides come from the command line: ``--method.flow.clip-range 1e-5`` and ``--method.flow.clip_range=1e-5`` are
    the same; values are YAML, and whole sections and lists may be given (``--method "{name: text_grpo}"``);
    ``--stages.NAME.key`` sets a key of one stage. The verbs of the command line are parsed by tyro; overrides are not,
    because the recipe, not the dataclass, decides which defaults they override. Paths are absolute in what is returned
    (``paths``). Raises ConfigError, also where there is no such recipe.
    """
    source = sources.find(str(name_or_path), Path())
    try:
        written = with_overrides(sources.resolved(source), absolute_overrides(overrides, Path.cwd()))
        if sources.EXTENDS in written:
            raise ConfigError("--extends: only a recipe file can extend another; name that one in place of this one")
        return staged_recipe(written) if is_staged(written) else read_recipe(written)
    except ConfigError as error:
        raise ConfigError(f"recipe {name_or_path}: {error}") from None


def load_stages(name_or_path: str | Path, overrides: Sequence[str] = ()) -> list[Recipe]:
    """Read the recipes of all stages (:func:`load_experiment`); a plain recipe is one."""
    loaded = load_experiment(name_or_path, overrides)
    return list(loaded.stages) if isinstance(loaded, StagedRecipe) else [loaded]


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a plain recipe (:func:`load_experiment`); ConfigError for one of several stages."""
    loaded = load_experiment(name_or_path, overrides)
    if isinstance(loaded, StagedRecipe):
        raise ConfigError(
            f"recipe {name_or_path} has the stages {', '.join(loaded.names)}, and one recipe is asked for here: "
            "load_stages reads them all"
        )
    return loaded


def list_recipes() -> list[tuple[str, str]]:
    """Return (name, description) of the shipped recipes; the description is that key, or the first comment."""
    found = []
    for name, path in sources.shipped().items():
        text = path.read_text(encoding="utf-8")
        comment = next((line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#")), "")
        found.append((name, str(parse(text).get("description") or comment)))
    return found


def to_yaml(recipe: Recipe) -> str:
    """Write a recipe, every key of it; ``from_yaml(to_yaml(recipe)) == recipe``."""
    return yaml.dump(
        asdict(recipe), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None
    )


def from_yaml(text: str) -> Recipe:
    """Read a plain recipe from YAML text; raises ConfigError."""
    written = parse(text)
    if is_staged(written):
        raise ConfigError("this recipe has stages, and one recipe is asked for here: load_stages reads them all")
    if isinstance(written, dict) and sources.EXTENDS in written:
        raise ConfigError("this recipe extends another, relative to its file: load_recipe reads it from there")
    return read_recipe(written)
