"""Check the FLUX autoencoder against a folder of reference numbers of the original: one picture in, one picture out.

The folder holds ``ae.safetensors`` (original names), ``golden.safetensors`` (image, moments, eps, latent, decoded) and
usually a ``config.json``, of which only the scale and the shift of the latents are read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from unigrpo.files import read_json_object
from unigrpo.models.bagel.limits import finite
from unigrpo.models.bagel_files.checkpoint import read_weights
from unigrpo.models.bagel_files.flux import FluxAutoencoder, FluxConfig
from unigrpo.models.bagel_files.sound import require_sound
from unigrpo.tools.parity.golden import Check, difference

TOLERANCE = 1e-4
NAMES = ("image", "moments", "eps", "latent", "decoded")
_SCALING = {"scale": ("scale_factor", "scaling_factor"), "shift": ("shift_factor", "shifting_factor")}


def is_vae_folder(folder: Path) -> bool:
    """Whether this is a reference folder of the autoencoder alone (BAGEL's own have ``weights.safetensors``)."""
    names = ("ae.safetensors", "golden.safetensors")
    return all((folder / name).is_file() for name in names) and not (folder / "weights.safetensors").is_file()


def read_scaling(path: Path) -> dict[str, float]:
    """``scale`` and ``shift`` of the latents from a config.json, at whatever depth; what it lacks is left out.

    Keys: scale_factor or scaling_factor, and shift_factor or shifting_factor; the shallowest wins. No file: nothing.
    """
    if not path.is_file():
        return {}
    waiting: deque[object] = deque([read_json_object(path)])
    found: dict[str, float] = {}
    while waiting:
        value = waiting.popleft()
        if isinstance(value, dict):
            for field, keys in _SCALING.items():
                numbers = [value[key] for key in keys if finite(value.get(key))]
                if numbers and field not in found:
                    found[field] = float(numbers[0])
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return found


def strip_prefix(names: Iterable[str], anchor: str) -> dict[str, str]:
    """Name in the file -> name without the prefix that ``anchor`` shows (``vae.`` in ``vae.image`` for ``image``).

    Without one such prefix names stay as they are.
    """
    known = list(names)
    prefixes = {name.removesuffix(anchor) for name in known if name.endswith(f".{anchor}")}
    prefix = prefixes.pop() if len(prefixes) == 1 and anchor not in known else ""
    return {name: name.removeprefix(prefix) for name in known}


def read_golden(path: Path) -> dict[str, Tensor]:
    """The five tensors of ``golden.safetensors`` with a batch axis, fp32; ValueError names a missing or odd one.

    image and decoded [B, 3, H, W]; moments [B, 2z, h, w]; eps and latent [B, z, h, w].
    """
    data = read_weights(path)
    data = {ours: data[theirs] for theirs, ours in strip_prefix(data, "image").items()}
    golden: dict[str, Tensor] = {}
    for name in NAMES:
        if name not in data:
            raise ValueError(f"{path} has no tensor {name!r}; a VAE parity folder has {', '.join(NAMES)}")
        value = data[name].float()
        golden[name] = value[None] if value.ndim == 3 else value
        if golden[name].ndim != 4:
            raise ValueError(f"{path}: {name} has shape {tuple(value.shape)}; it needs [B, C, H, W] or [C, H, W]")
    return golden


def load(folder: Path) -> FluxAutoencoder:
    """The folder's autoencoder: sizes from the shapes of its tensors, scale and shift from its config, fp32, frozen."""
    path = folder / "ae.safetensors"
    weights: Mapping[str, Tensor] = read_weights(path)
    weights = {ours: weights[theirs] for theirs, ours in strip_prefix(weights, "encoder.conv_in.weight").items()}
    require_sound(weights, str(path))
    config = FluxConfig.infer({name: tuple(value.shape) for name, value in weights.items()}, str(path))
    autoencoder = FluxAutoencoder(replace(config, **read_scaling(folder / "config.json")))
    autoencoder.load_original(weights, str(path))
    return autoencoder.requires_grad_(False).eval()


def require_shapes(autoencoder: FluxAutoencoder, golden: Mapping[str, Tensor], path: Path) -> None:
    """ValueError if the picture and the latents that are fed are not of this autoencoder's sizes."""
    batch, _, height, width = golden["image"].shape
    factor = autoencoder.downsample
    latent = (batch, autoencoder.channels, height // factor, width // factor)
    wanted = {"image": (batch, 3, height, width), "eps": latent, "latent": latent}
    for name, shape in wanted.items():
        if tuple(golden[name].shape) != shape:
            raise ValueError(f"{path}: {name} has shape {tuple(golden[name].shape)}, this autoencoder asks for {shape}")


def decode_gradient(autoencoder: FluxAutoencoder, latent: Tensor) -> float:
    """0 if the gradient of decode's mean square reaches the latents and is finite, else inf."""
    with torch.enable_grad():
        leaf = latent.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(autoencoder.decode(leaf).square().mean(), leaf)
    return 0.0 if gradient.isfinite().all() and gradient.any() else float("inf")


@torch.no_grad()
def run(folder: Path) -> list[Check]:
    """All checks of a VAE parity folder; ValueError names what is missing in it or does not fit."""
    if not is_vae_folder(folder):
        raise ValueError(f"{folder} is not a VAE parity folder: it needs ae.safetensors and golden.safetensors")
    golden = read_golden(folder / "golden.safetensors")
    autoencoder = load(folder)
    require_shapes(autoencoder, golden, folder / "golden.safetensors")
    latent = autoencoder.encode(golden["image"], golden["eps"])
    pairs = {
        "vae moments": (autoencoder.moments(golden["image"]), golden["moments"]),
        "vae latent": (latent, golden["latent"]),
        "vae decoded": (autoencoder.decode(golden["latent"]), golden["decoded"]),
        "vae round trip": (autoencoder.decode(latent), golden["decoded"]),
    }
    checks = [Check(group, difference(ours, theirs), TOLERANCE) for group, (ours, theirs) in pairs.items()]
    return [*checks, Check("vae decode gradient is finite", decode_gradient(autoencoder, golden["latent"]), TOLERANCE)]
