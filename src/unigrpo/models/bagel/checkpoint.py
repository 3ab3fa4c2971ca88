"""Model folders: config.json, model.safetensors, tokenizer.json, autoencoder.json, ae.safetensors; names are strict."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from unigrpo.models.bagel.autoencoder import ConvAutoencoder, ConvAutoencoderConfig
from unigrpo.models.bagel.config import BagelConfig
from unigrpo.models.bagel.policy import BagelPolicy
from unigrpo.models.bagel.tokenizer import Tokenizer
from unigrpo.models.bagel.transformer import Bagel

VISION_PREFIXES = ("vit_model.", "connector.", "vit_pos_embed.")


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> list[str]:
    """Load by exact name and shape; return the names left out because they belong to the vision tower.

    ValueError names what is missing, unexpected or of another shape; nothing is loaded then.
    """
    dropped = sorted(name for name in weights if name.startswith(VISION_PREFIXES))
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: value for name, value in weights.items() if name not in dropped}
    problems = [f"missing {name}" for name in sorted(set(wanted) - set(given))]
    problems += [f"unexpected {name}" for name in sorted(set(given) - set(wanted))]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, the config asks for {shape}"
        for name, shape in sorted(wanted.items())
        if name in given and tuple(given[name].shape) != shape
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise ValueError(f"{source} does not fit the model: {'; '.join(problems[:5])}{more}")
    module.load_state_dict(given, strict=True)
    return dropped


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; a missing or torn file is a ValueError that names it."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except Exception as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that others may read (``save_file`` makes it private to its owner)."""
    path.write_bytes(save({name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()}))


def save_policy(policy: BagelPolicy, folder: Path) -> None:
    """Write a complete model folder that :func:`load_policy` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(policy.config.to_json(), encoding="utf-8")
    write_weights(folder / "model.safetensors", policy.model.state_dict())
    if policy.tokenizer is not None:
        policy.tokenizer.save(folder / "tokenizer.json")
    if isinstance(policy.autoencoder, ConvAutoencoder):
        values = policy.autoencoder.config.to_dict()
        (folder / "autoencoder.json").write_text(json.dumps(values) + "\n", encoding="utf-8")
        write_weights(folder / "ae.safetensors", policy.autoencoder.state_dict())


def load_autoencoder(folder: Path) -> ConvAutoencoder:
    """Read the convolutional autoencoder of a folder, frozen."""
    path = folder / "autoencoder.json"
    try:
        config = ConvAutoencoderConfig(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not the config of an autoencoder: {error}") from error
    autoencoder = ConvAutoencoder(config)
    load_weights(autoencoder, read_weights(folder / "ae.safetensors"), str(folder / "ae.safetensors"))
    return autoencoder.requires_grad_(False).eval()


def load_policy(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    image_size: tuple[int, int] | None = None,
) -> BagelPolicy:
    """Read a model folder. Master weights are fp32; ``compute_dtype`` is what forwards run in."""
    missing = [n for n in ("config.json", "model.safetensors", "tokenizer.json") if not (folder / n).is_file()]
    if missing:
        raise ValueError(f"{folder} is not a model folder: it has no {', '.join(missing)}")
    config = BagelConfig.load(folder / "config.json")
    model = Bagel(config)
    if dropped := load_weights(model, read_weights(folder / "model.safetensors"), str(folder / "model.safetensors")):
        warnings.warn(f"{folder}: left out {len(dropped)} tensors of the vision tower", stacklevel=2)
    autoencoder = load_autoencoder(folder) if (folder / "autoencoder.json").is_file() else None
    model = model.to(device)
    if autoencoder is not None:
        autoencoder = autoencoder.to(device)
    return BagelPolicy(
        model,
        Tokenizer.load(folder / "tokenizer.json"),
        autoencoder,
        image_size=image_size,
        compute_dtype=compute_dtype,
    )
