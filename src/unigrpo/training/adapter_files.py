"""The files of an adapter folder: peft's two, read with care, and a note of ours on the base that the adapter needs.

peft's config only has a name for the base, and another model of the same shapes under that name would be taken without
a word. So ``unigrpo_base.json`` beside it keeps a hash of the base's weights; other programs leave it alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unigrpo.files import read_json_object, write_json_atomic

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "unigrpo_base.json"
COPY_AGAIN = "copy the adapter folder again"


@dataclass(frozen=True)
class Base:
    """What an adapter was trained on: its name, a hash of its weights, and the seed of one that is made (init:micro).

    ``quantize``: how that base was held while the adapter was trained (nf4), None: as it is in its files.
    ``place`` is where a base that is a folder lies as seen from the adapter's, so that both may be moved together.
    """

    name: str
    key: str
    seed: int = 0
    place: str | None = None
    quantize: str | None = None

    def write(self, folder: Path) -> None:
        """Write the note into an adapter folder, with the base's place as seen from there."""
        place = os.path.relpath(self.name, folder) if os.path.isabs(self.name) else self.place
        values = {"sha256": self.key, "seed": self.seed, "place": place, "quantize": self.quantize}
        write_json_atomic(folder / BASE, {key: value for key, value in values.items() if value is not None})

    @classmethod
    def read(cls, folder: Path) -> Base | None:
        """The note of an adapter folder; None where it has none, or names no base."""
        name = read_config(folder).get("base_model_name_or_path")
        if name is None or not (folder / BASE).is_file():
            return None
        said = read_json_object(folder / BASE, COPY_AGAIN)
        key, seed = said.get("sha256"), said.get("seed", 0)
        place, quantize = said.get("place"), said.get("quantize")
        texts = isinstance(place, str | None) and isinstance(quantize, str | None)
        if not isinstance(key, str) or not _number(0, 2**63)(seed) or not texts:
            raise ValueError(f"{folder / BASE} is damaged: it should have a sha256, a seed and a place; {COPY_AGAIN}")
        return cls(name, key, seed, place, quantize)


def read_config(folder: Path) -> dict[str, Any]:
    """The config of an adapter folder as plain data; ValueError where there is none or it is not LoRA's."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is no adapter folder: it has no {CONFIG}")
    try:
        config = read_json_object(folder / CONFIG, COPY_AGAIN)
        kind = config["peft_type"]
    except (ValueError, KeyError) as error:
        why = error if isinstance(error, ValueError) else "it has no peft_type"
        raise ValueError(f"{folder / CONFIG} is not a readable adapter config: {why}") from error
    if kind != "LORA":
        raise ValueError(f"the adapter in {folder} is of the kind {str(kind)[:60]}: only LORA can be used")
    for key, fits in _PLAUSIBLE.items():
        if key in config and not fits(config[key]):
            raise ValueError(
                f"{folder / CONFIG} is damaged: it has {key} = {repr(config[key])[:60]}, which no adapter has"
            )
    return config


def _number(low: float, high: float, kind: type | UnionType = int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high


def _names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


_PLAUSIBLE: Mapping[str, Callable[[Any], bool]] = {
    "r": _number(1, 2**20),
    "lora_alpha": _number(-1e6, 1e6, int | float),
    "lora_dropout": _number(0.0, 1.0, int | float),
    "base_model_name_or_path": lambda value: value is None or (isinstance(value, str) and 0 < len(value) < 4096),
    "target_modules": lambda value: value is None or _names(value),
    "use_rslora": lambda value: isinstance(value, bool),
    "rank_pattern": lambda value: isinstance(value, dict) and all(map(_number(1, 2**20), value.values())),
    "alpha_pattern": lambda value: (
        isinstance(value, dict) and all(map(_number(-1e6, 1e6, int | float), value.values()))
    ),
}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter folder; ValueError where there are none or they cannot be read."""
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} is no adapter folder: it has no {WEIGHTS} (pickled ones are not read)")
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS} is not a readable safetensors file: {error}") from error
    for name, value in weights.items():
        if not value.is_floating_point():
            raise ValueError(f"{folder / WEIGHTS} keeps {name} as {value.dtype}: weights are floating-point numbers")
        # its smallest and largest number: NaN anywhere makes both NaN
        if value.numel() and not all(math.isfinite(end) for end in torch.aminmax(value)):
            raise ValueError(f"{folder / WEIGHTS}: {name} is not finite; {COPY_AGAIN}")
    return weights
