"""What a number in a model folder's config may be: its type and its range, in one table for each kind of file.

The ranges are generous (a hundred times the 7B model); they are there so that a damaged or foreign file is a sentence,
and neither a model of 2^31 columns nor a division by zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONGEST = 60  # letters of a value that a message repeats


@dataclass(frozen=True)
class Limit:
    """A number from ``low`` to ``high``, both allowed; ``whole``: without a fraction."""

    low: float
    high: float
    whole: bool = True

    def allows(self, value: Any) -> bool:
        """Whether a value read from a file is such a number (a truth value is none)."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return self.low <= value <= self.high  # NaN is in no range

    def __str__(self) -> str:
        if self.whole:
            return f"a whole number from {int(self.low)} to {int(self.high)}"
        return f"a number from {self.low:g} to {self.high:g}"


WIDTH = Limit(1, 2**20)
LAYERS = Limit(1, 1024)
HEADS = Limit(1, 4096)
IDS = Limit(0, 2**24 - 1)
SIDE = Limit(1, 2**14)  # of a table of places, or of a picture in pixels
PATCH = Limit(1, 256)
EPSILON = Limit(1e-12, 1.0, whole=False)

LANGUAGE: Mapping[str, Limit] = {
    "vocab_size": Limit(1, 2**24),
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "num_kv_heads": HEADS,
    "latent_channels": Limit(1, 4096),
    "max_latent_size": Limit(1, 4096),
    "bos_token_id": IDS,
    "eos_token_id": IDS,
    "vision_start_id": IDS,
    "vision_end_id": IDS,
    "latent_patch_size": PATCH,
    "vae_downsample": PATCH,
    "rms_norm_eps": EPSILON,
    "rope_theta": Limit(1.0, 1e12, whole=False),
    "timestep_shift": Limit(1e-3, 1e3, whole=False),
    "num_points": Limit(2, 10**6),
    "guidance": Limit(0.0, 1e3, whole=False),
    "temperature": Limit(0.0, 1e3, whole=False),
    "max_think_tokens": Limit(1, 2**20),
}
VISION: Mapping[str, Limit] = {
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "image_size": SIDE,
    "patch_size": PATCH,
    "max_patches_per_side": SIDE,
    "layer_norm_eps": EPSILON,
}
# As llm_config.json, vit_config.json and config.json of a public folder call them.
PUBLIC: Mapping[str, Limit] = {
    **LANGUAGE,
    **VISION,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "vit_max_num_patch_per_side": SIDE,
}
AUTOENCODER: Mapping[str, Limit] = {"channels": Limit(1, 1024), "width": Limit(1, 4096), "groups": Limit(1, 4096)}
ADAPTER: Mapping[str, Limit] = {
    "r": WIDTH,
    "lora_alpha": Limit(-1e6, 1e6, whole=False),
    "lora_dropout": Limit(0.0, 1.0, whole=False),
}


def shown(value: Any) -> str:
    """A value as a message repeats it: not at any length."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def check(values: Mapping[str, Any], limits: Mapping[str, Limit]) -> None:
    """ValueError names the first of ``values`` that is not within its limit; a key without one may be anything."""
    for key, limit in limits.items():
        if key in values and not limit.allows(values[key]):
            raise ValueError(f"{key} is {shown(values[key])}, which should be {limit}")


def check_pair(name: str, value: Any, limit: Limit) -> None:
    """ValueError unless a value is two numbers within a limit."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(limit.allows, value)):
        raise ValueError(f"{name} is {shown(value)}, which should be two numbers, each {limit}")


def finite(value: Any) -> bool:
    """Whether a value is a number that is neither infinite nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
