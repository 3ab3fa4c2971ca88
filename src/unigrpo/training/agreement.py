"""Whether a checkpoint holds what the recipe of its run trains: a recipe.yaml may have been edited between sessions."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from unigrpo.ranges import ConfigError
from unigrpo.recipe import Lora
from unigrpo.training import checkpoint
from unigrpo.training.lora import CONFIG, PREFIX, WEIGHTS, adapted, read_config, read_weights


def check_adapter(lora: Lora | None, module: nn.Module, folder: Path) -> None:
    """Compare the adapter that a recipe asks for, and that ``module`` has, with the one in a checkpoint.

    ConfigError names the key in which they disagree; ValueError says that the checkpoint is damaged.
    """
    if difference := _difference(lora, module, folder):
        raise ConfigError(
            f"the recipe and the checkpoint {folder} disagree: {difference}. The checkpoint is sound: restore the "
            "recipe.yaml with which the run was started (model.lora), or start a new run"
        )


def _difference(lora: Lora | None, module: nn.Module, folder: Path) -> str | None:
    is_adapter = (folder / CONFIG).is_file() or (folder / WEIGHTS).is_file()
    if lora is None:
        return "model.lora is null, but the checkpoint is an adapter" if is_adapter else None
    if not is_adapter:
        return f"model.lora is set (rank {lora.rank}), but the checkpoint has all weights and no adapter"
    try:
        saved, names = read_config(folder), read_weights(folder)
    except ValueError as error:
        raise checkpoint.damaged(folder, error) from error
    for key, ours, theirs in (("rank", lora.rank, saved.get("r")), ("alpha", lora.alpha, saved.get("lora_alpha"))):
        if ours != theirs:
            return f"model.lora.{key} is {ours:g}, but the checkpoint's adapter has {theirs}"
    wanted, there = set(adapted(module)), {name.removeprefix(PREFIX).split(".lora_")[0] for name in names}
    if wanted != there:
        return (
            f"the recipe trains {len(wanted)} adapted layers, the checkpoint has {len(there)}, and "
            f"{sorted(wanted ^ there)[0]} is only in one of them (model.lora.experts and method.name decide)"
        )
    return None
