"""Model folders of either layout: the public one of BAGEL, and this package's own; names of tensors are strict.

The package's own has config.json, model.safetensors, tokenizer.json, autoencoder.json and ae.safetensors.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from unigrpo.files import read_json_object, replacing
from unigrpo.models.bagel.autoencoder import ConvAutoencoder, ConvAutoencoderConfig
from unigrpo.models.bagel.config import BagelConfig
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files.flux import Memory
from unigrpo.models.bagel_files.loaded import FromFiles, Loaded
from unigrpo.models.bagel_files.public import is_public, load_public, nothing_trained, save_public
from unigrpo.models.bagel_files.public_config import VISION_PREFIXES
from unigrpo.models.bagel_files.sound import require_sound
from unigrpo.models.bagel_files.tensor_files import (
    TensorFiles,
    copy_into,
    load_into,
    require_fit,
    write_stream,
)
from unigrpo.models.bagel_files.tokenizer import ADVICE, Tokenizer, require_ids
from unigrpo.shard_index import SUFFIX

CONFIG, MODEL, WORDS = "config.json", "model.safetensors", "tokenizer.json"
AUTOENCODER_CONFIG, AUTOENCODER = "autoencoder.json", "ae.safetensors"


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> list[str]:
    """Load by exact name and shape; return the names of a vision tower that the module does not have.

    ValueError names what is missing, unexpected or of another shape, or no weight; nothing is loaded then.
    """
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    dropped = sorted(name for name in weights if name.startswith(VISION_PREFIXES) and name not in wanted)
    given = {name: value for name, value in weights.items() if name not in dropped}
    require_fit({name: tuple(value.shape) for name, value in given.items()}, wanted, source)
    require_sound(given, source)
    module.load_state_dict(given, strict=True)
    return dropped


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; a missing or torn file is a ValueError that names it."""
    files = TensorFiles.of(path)
    return {name: files.read(name) for name in files.names}


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    write_stream(path, weights)


def save_policy(
    policy: FromFiles,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a complete model folder that :func:`read_folder` reads, every tensor in the dtype that it is held in.

    ``dtype``: another one for all weights of a model in this package's own layout (the autoencoder's stay).
    ``state``: these weights instead of those of now; without any, no file of weights is written.
    """
    if policy.origin is not None:
        return save_public(policy, folder, dtype="held", state=state)
    folder.mkdir(parents=True, exist_ok=True)
    _write_text(folder / CONFIG, policy.config.to_json())
    if policy.tokenizer is not None:
        policy.tokenizer.save(folder / WORDS)
    if isinstance(policy.autoencoder, ConvAutoencoder):
        _write_text(folder / AUTOENCODER_CONFIG, json.dumps(policy.autoencoder.config.to_dict()) + "\n")
        write_weights(folder / AUTOENCODER, policy.autoencoder.state_dict())
    weights = policy.model.state_dict() if state is None else state
    if weights:
        write_stream(folder / MODEL, weights, dtype_of=None if dtype is None else lambda name: dtype)


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def load_autoencoder(folder: Path) -> ConvAutoencoder:
    """Read the convolutional autoencoder of a folder, frozen."""
    path = folder / AUTOENCODER_CONFIG
    try:
        config = ConvAutoencoderConfig(**read_json_object(path, ADVICE))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not the config of an autoencoder: {error}") from error
    files = TensorFiles.of(folder / AUTOENCODER)
    with torch.device("meta"):  # sizes that do not fit are found before they take memory
        wanted = {name: tuple(value.shape) for name, value in ConvAutoencoder(config).state_dict().items()}
    require_fit(files.shapes, wanted, str(files.path))
    autoencoder = ConvAutoencoder(config)
    load_weights(autoencoder, read_weights(folder / AUTOENCODER), str(folder / AUTOENCODER))
    return autoencoder.requires_grad_(False).eval()


def missing_of(folder: Path) -> list[str]:
    """The files that a model folder of this package's own layout needs, and that are not there."""
    wanted = {CONFIG: [CONFIG], MODEL: [MODEL, f"{MODEL}{SUFFIX}"], WORDS: [WORDS]}
    return [name for name, any_of in wanted.items() if not any((folder / file).is_file() for file in any_of)]


def read_folder(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    image_size: tuple[int, int] | None = None,
    trained: Callable[[str], bool] = nothing_trained,
    autoencoder_memory: Memory = "whole",
) -> Loaded:
    """Read a model folder of either layout; memory beyond the model is one tensor.

    Weights whose name is ``trained`` are kept in fp32, all others in ``compute_dtype``, which is also what forwards run
    in. ``autoencoder_memory`` is for BAGEL's own autoencoder (``bagel_files.flux``).
    """
    if is_public(folder):
        return load_public(
            folder,
            device=device,
            compute_dtype=compute_dtype,
            trained=trained,
            image_size=image_size,
            autoencoder_memory=autoencoder_memory,
        )
    if missing := missing_of(folder):
        raise ValueError(f"{folder} is not a model folder: it has no {', '.join(missing)}")
    files, config = TensorFiles.open(folder, (MODEL,)), BagelConfig.load(folder / CONFIG)
    unseen = VISION_PREFIXES if config.vision is None else ()
    if dropped := sum(name.startswith(unseen) for name in files.entries):
        warnings.warn(f"{folder}: left out {dropped} tensors of the vision tower", stacklevel=2)
    with torch.device("meta"):
        model = BagelModel(config)
    dtypes = {name: torch.float32 if trained(name) else compute_dtype for name in files.entries}
    load_into(model, files, device=device, dtype_of=dtypes.__getitem__, ignore=unseen)
    autoencoder = load_autoencoder(folder).to(device) if (folder / AUTOENCODER_CONFIG).is_file() else None
    words = Tokenizer.load(folder / WORDS)
    require_ids(words, config.vocab_size, folder)
    return Loaded(model, words, autoencoder, image_size=image_size, compute_dtype=compute_dtype)


def restore_weights(policy: FromFiles, folder: Path) -> None:
    """Copy a saved folder's weights into a model of the same layout, in place: its optimizer keeps its parameters.

    ValueError names what does not fit; nothing is copied then.
    """
    copy_into(policy.model, TensorFiles.open(folder, (MODEL,) if policy.origin is None else (policy.origin.weights,)))
