"""From the name of a model to a model: shipped ones, folders of either layout, runs, adapters, hub ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from unigrpo.build import bases, families
from unigrpo.build.grown import grown_by
from unigrpo.build.worlds import started_by
from unigrpo.models.bagel.policy import group_of as bagel_group_of
from unigrpo.models.bagel_files.checkpoint import load_autoencoder
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.bagel_files.public import fetch, is_public, nothing_trained
from unigrpo.models.bagel_files.tensor_files import TensorFiles
from unigrpo.models.micro import build_micro
from unigrpo.policy import Loading, Policy
from unigrpo.ranges import ConfigError
from unigrpo.recipe import BUILTIN_MODELS, Model, Recipe, stage_folders
from unigrpo.training import checkpoint
from unigrpo.training import quantized as quantizing
from unigrpo.training.lora import Adapter
from unigrpo.training.saving import fingerprint

ASSETS = "assets"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def builtin_folder(name: str) -> Path:
    """The folder of a checkpoint that ships with the package (``shapes-sft``)."""
    folder = Path(str(resources.files("unigrpo"))) / ASSETS / name
    if not folder.is_dir():
        raise ConfigError(f"builtin:{name} is not in this installation ({folder} is missing): `make base` makes it")
    return folder


def model_folder(path: str) -> Path:
    """The model folder that a name means: builtin:NAME, a model folder, a run folder (its newest checkpoint), a hub id.

    Of a run of several stages it is the newest checkpoint of the last stage that has one. ConfigError says what the
    name could have been; a hub id is downloaded.
    """
    if path.startswith("builtin:"):
        return builtin_folder(path.removeprefix("builtin:"))
    folder = Path(path)
    if (what := checkpoint.gone(folder)) is not None:
        raise ConfigError(f"the model {path} is {what}: name another one, or the run's folder (its newest)")
    if not folder.is_dir():
        try:
            return fetch(path)
        except ValueError as error:
            builtin = ", ".join(name for name in BUILTIN_MODELS if name.startswith("builtin:"))
            raise ConfigError(
                f"the model {path!r} is not a folder: give a model or run folder, {builtin}, or a hub id ({error})"
            ) from error
    if (folder / "recipe.yaml").is_file():
        saved = checkpoint.complete(folder)
        if not saved:
            saved = [one for stage in stage_folders(folder) for one in checkpoint.complete(stage)]
        if not saved:
            raise ConfigError(f"the run {path} has no checkpoint yet: wait for one, or name a model folder")
        return saved[-1]
    return folder


def device_of(model: Model) -> torch.device:
    """Where a model is to run: ``auto`` is the accelerator where there is one, but the CPU for the shipped models."""
    if model.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device = cuda, but torch sees no CUDA device here: set it to cpu or auto")
    if families.is_own(model.path):
        return torch.device("cpu" if model.device == "cpu" or not torch.cuda.is_available() else "cuda")
    folder = model_folder(model.path) if Path(model.path).is_dir() else Path(model.path)
    if bases.is_adapter(folder) and (base := bases.base_of(folder)) is not None:
        return device_of(replace(model, path=base.path))
    small = model.path.startswith(("builtin:", "init:"))
    if model.device == "cpu" or (model.device == "auto" and (small or not torch.cuda.is_available())):
        return torch.device("cpu")
    return torch.device("cuda")


def policy(
    model: Model,
    *,
    seed: int = 0,
    image_side: int | None = None,
    trained: Callable[[str], bool] = nothing_trained,
    merge: bool = False,
) -> Policy:
    """Load (or, for init:..., make) a model that thinks and draws.

    Weights whose name is ``trained`` are kept in fp32, all others in ``model.dtype``. The model of a LoRA run is its
    base with the adapter beside it; ``merge`` folds the adapter into the weights.
    """
    device, size = device_of(model), None if image_side is None else (image_side, image_side)
    if (own := families.own(model.path)) is not None:
        return own.family.load(own.folder, Loading(device, DTYPES[model.dtype], trained, size, seed))
    if (world := started_by(model.path)) is not None:
        made = build_micro(
            world.vocabulary(),
            load_autoencoder(builtin_folder(world.autoencoder)).to(device),
            seed=seed,
            image_size=world.image_size,
            spells=world.spells,
        )
        made.model.to(device)
        return made if size is None else made.at_size(size)
    if (grown := grown_by(model.path)) is not None:
        made = grown.made(builtin_folder(grown.of), seed)
        made.model.to(device)
        return made if size is None else made.at_size(size)
    folder = model_folder(model.path)
    if bases.is_adapter(folder):
        adapted, adapter = with_adapter(model, folder, seed=seed, image_side=image_side, trained=trained)
        if merge:
            adapter.merge()
        return adapted
    loaded = Bagel.load(
        folder,
        device=device,
        compute_dtype=DTYPES[model.dtype],
        image_size=size,
        trained=trained,
        autoencoder_memory=model.autoencoder,
    )
    if loaded.autoencoder is None:
        raise ConfigError(f"{folder} cannot draw: it has no autoencoder (autoencoder.json and ae.safetensors); add one")
    loaded.model.activation_checkpointing = model.activation_checkpointing
    return loaded


def quantized(model: Model, *, seed: int, image_side: int | None) -> tuple[Policy, str | None]:
    """Load a model whose MLPs' matrices are held in 4 bits, and hash the weights that it had before.

    It is read into the CPU's memory and moved matrix by matrix, so that its device never holds it whole.
    """
    quantizing.require()
    device = device_of(model)
    made = policy(replace(model, device="cpu"), seed=seed, image_side=image_side, merge=True)
    known = fingerprint(made)
    quantizing.quantize(made.module, made.packed_targets(), device, made.compute_dtype)
    made.module.to(device)
    if isinstance(made, Bagel) and isinstance(made.autoencoder, nn.Module):
        made.autoencoder.to(device)
    return made, known


def with_adapter(
    model: Model,
    folder: Path,
    *,
    seed: int = 0,
    image_side: int | None = None,
    trained: Callable[[str], bool] = nothing_trained,
) -> tuple[Policy, Adapter]:
    """The base of the adapter in ``folder``, with that adapter beside it; ``model`` says where and how it is held."""
    base = bases.base_of(folder)
    if base is None:
        raise ConfigError(f"the adapter in {folder} does not name the model it belongs to (base_model_name_or_path)")
    if not base.path.startswith("init:"):
        bases.require_same(folder, base, model_folder(base.path))
    made_of = seed if base.seed is None else base.seed
    below = replace(model, path=base.path)
    loaded = policy(below, seed=made_of, image_side=image_side, trained=trained, merge=True)
    return loaded, Adapter.load(loaded.module, folder)


@dataclass(frozen=True)
class Stored:
    """The precision in which a model is kept in its files, and how to hold it so that nothing is lost."""

    dtype: Literal["float32", "bfloat16"]
    wide: frozenset[str] = frozenset()

    def trained(self, name: str) -> bool:
        """Whether a weight is held in fp32 although the rest is not."""
        return name in self.wide


def stored(folder: Path) -> Stored:
    """How a model folder (of an adapter, its base) keeps its weights; to hold them so is the least memory."""
    if bases.is_adapter(folder):
        base = bases.base_of(folder)
        made = base is None or base.path.startswith("init:")
        return Stored("float32") if base is None or made else stored(model_folder(base.path))
    if not is_public(folder):
        return Stored("float32")
    dtypes = TensorFiles.open(folder).dtypes
    if not set(dtypes.values()) <= {torch.bfloat16, torch.float32}:
        return Stored("float32")
    return Stored("bfloat16", frozenset(name for name, dtype in dtypes.items() if dtype == torch.float32))


def group_of(path: str) -> Callable[[str], str | None]:
    """From the name of a parameter of a model to its group."""
    own = families.own(path)
    return bagel_group_of if own is None else own.family.group_of


def lasting_name(path: str) -> str:
    """What an adapter says it belongs to: a name that means the same model from any working folder."""
    if path.startswith(("builtin:", "init:")) or not Path(path).is_dir():
        return path
    return str(model_folder(path).resolve())


def base_key(path: str, seed: int) -> str:
    """A hash of the weights that a name means, for the adapter that is trained on them."""
    if path.startswith("init:"):
        return hashlib.sha256(f"{path} of seed {seed}".encode()).hexdigest()
    return bases.key_of(model_folder(path))


def started(recipe: Recipe) -> Recipe:
    """The recipe of a run about to start: a start in another run is fixed to one checkpoint, which is kept there."""
    if not Path(recipe.model.path).is_dir() and checkpoint.gone(Path(recipe.model.path)) is None:
        return recipe
    return bases.held(recipe, model_folder(recipe.model.path))
