"""Recipes: one experiment, whole, as frozen dataclasses read from YAML and dotted overrides.

A recipe is data: the method is a dataclass whose fields are its terms, and names (of models, prompts, rewards) stay
names here; ``unigrpo.resolve`` turns them into things. This package imports neither torch nor the rest of ``unigrpo``,
so that the command line answers at once. Whatever cannot work raises :class:`ConfigError`, which says what was set,
why it cannot work and what to change.

sections: the keys · methods: those of the methods · recipe: the whole, and whether its parts fit · stages: several
recipes in one · references: rewards of one's own, by file or module · notation: YAML and overrides · paths: of files,
made absolute · reading: from what was written to dataclasses · arithmetic: what an iteration costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import yaml

from unigrpo.config.arithmetic import batch_arithmetic
from unigrpo.config.methods import (
    FPO,
    METHODS,
    Advantage,
    DiffusionNFT,
    FlowGRPO,
    FlowTerm,
    ForwardTerm,
    FPOTerm,
    Method,
    NFTTerm,
    ReFL,
    ReFLTerm,
    Regulariser,
    Supervised,
    TextGRPO,
    TextTerm,
    UniFPO,
    UniGRPO,
    WithForwardNoise,
    WithImage,
    WithSDE,
    WithText,
)
from unigrpo.config.notation import Dumper, parse
from unigrpo.config.paths import absolute, absolute_overrides, split_path
from unigrpo.config.reading import read_recipe
from unigrpo.config.recipe import Recipe, trained_experts
from unigrpo.config.references import Reference, absolute_reward_name, reference
from unigrpo.config.scaling import scaling_report
from unigrpo.config.sections import (
    Checkpoint,
    ConfigError,
    DemonstrationData,
    Eval,
    Lora,
    Mix,
    Model,
    Optimizer,
    PromptData,
    Reward,
    Rollout,
    Scorer,
    did_you_mean,
    how_to_install,
)
from unigrpo.config.stages import (
    START,
    StagedRecipe,
    is_staged,
    stage_folders,
    staged_recipe,
    with_overrides,
)

__all__ = [
    "FPO",
    "METHODS",
    "START",
    "Advantage",
    "Checkpoint",
    "ConfigError",
    "DemonstrationData",
    "DiffusionNFT",
    "Eval",
    "FPOTerm",
    "FlowGRPO",
    "FlowTerm",
    "ForwardTerm",
    "Lora",
    "Method",
    "Mix",
    "Model",
    "NFTTerm",
    "Optimizer",
    "PromptData",
    "ReFL",
    "ReFLTerm",
    "Recipe",
    "Reference",
    "Regulariser",
    "Reward",
    "Rollout",
    "Scorer",
    "StagedRecipe",
    "Supervised",
    "TextGRPO",
    "TextTerm",
    "UniFPO",
    "UniGRPO",
    "WithForwardNoise",
    "WithImage",
    "WithSDE",
    "WithText",
    "absolute_reward_name",
    "batch_arithmetic",
    "from_yaml",
    "how_to_install",
    "is_recipe_file",
    "list_recipes",
    "load_experiment",
    "load_recipe",
    "load_stages",
    "reference",
    "scaling_report",
    "split_path",
    "stage_folders",
    "to_yaml",
    "trained_experts",
]


def load_experiment(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe | StagedRecipe:
    """Read a recipe, plain or of several stages, by name (``shapes/unigrpo``) or from a ``.yaml`` file.

    Overrides come from the command line: ``--method.flow.clip-range 1e-5`` and ``--method.flow.clip_range=1e-5`` are
    the same; values are YAML, and whole sections and lists may be given (``--method "{name: text_grpo}"``);
    ``--stages.NAME.key`` sets a key of one stage. The verbs of the command line are parsed by tyro; overrides are not,
    because the recipe, not the dataclass, decides which defaults they override. Paths are absolute in what is returned
    (``paths``). Raises ConfigError, also where there is no such recipe.
    """
    text = _find(str(name_or_path))
    try:
        written = parse(text)
        if not isinstance(written, Mapping):
            raise ConfigError(
                "the file holds no keys: write at least name, iterations, model, data, reward, method and eval"
            )
        here = Path.cwd()
        if is_recipe_file(str(name_or_path)):
            written = absolute(written, Path(name_or_path).absolute().parent, here)
        else:  # one that ships names no file of its own, but a hub id may be a folder here
            written = absolute(written, here)
        written = with_overrides(written, absolute_overrides(overrides, here))
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
    for name, path in _shipped().items():
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
    return read_recipe(written)


def _shipped() -> dict[str, Traversable]:
    def walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
        for entry in folder.iterdir():
            if entry.is_dir():
                yield from walk(entry, f"{prefix}{entry.name}/")
            elif entry.name.endswith(".yaml"):
                yield prefix + entry.name.removesuffix(".yaml"), entry

    return dict(sorted(walk(resources.files("unigrpo") / "recipes", "")))


def is_recipe_file(name: str) -> bool:
    """Whether a recipe is named by its file, and not one that ships with the package."""
    return name.endswith((".yaml", ".yml"))


def _find(name: str) -> str:
    if is_recipe_file(name):
        try:
            return Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"recipe file {name} cannot be read ({error.strerror}): check the path") from error
    shipped = _shipped()
    if name not in shipped:
        near = did_you_mean(name, list(shipped)) or f" (there are {', '.join(shipped)})"
        raise ConfigError(
            f"no recipe {name!r} ships with the package{near}: for your own, give the path of a .yaml file"
        )
    return shipped[name].read_text(encoding="utf-8")
