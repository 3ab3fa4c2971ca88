"""Whether numbers that are read as weights can be weights: floating, finite, and not all zero.

One pass over each tensor when its turn comes (its smallest and its largest number), so loading stays a stream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

ADVICE = "copy or download it again, or take an earlier checkpoint"
# Parts that cannot be all zeros; others may: biases, a velocity head before training, a LoRA adapter's B.
PARTS = ("language_model", "vit_model", "encoder", "decoder")
EMBEDDING = "language_model.model.embed_tokens.weight"


def require_floating(dtypes: Mapping[str, torch.dtype], source: str) -> None:
    """ValueError names a tensor that is kept as whole numbers: its header is damaged, or it is no weight."""
    for name, dtype in dtypes.items():
        if not dtype.is_floating_point:
            kind = _name(dtype)
            raise ValueError(f"{source} keeps {name} as {kind}, but weights are floating-point numbers: {ADVICE}")


class Sound:
    """Looks at the tensors of one source, in any order, and at the end at its parts as wholes."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.zero: dict[str, bool] = {}  # of each part: whether all its matrices so far are zeros

    def look(self, name: str, value: Tensor, target: torch.dtype) -> None:
        """ValueError where a tensor has numbers that are not finite, or will not be in the ``target`` dtype."""
        if not value.numel():
            return
        low, high = (float(end) for end in torch.aminmax(value.detach()))  # NaN anywhere makes both NaN
        largest = max(-low, high)
        if not math.isfinite(largest):
            kind = "NaN" if math.isnan(largest) else "infinite numbers"
            raise ValueError(f"{self.source}: {name} holds {kind}: {ADVICE}")
        if largest > torch.finfo(target).max:
            raise ValueError(f"{self.source}: {name} holds {largest:g}, which is too large for {_name(target)}")
        part = name.split(".")[0]
        if part in PARTS and value.ndim > 1:
            self.zero[part] = self.zero.get(part, True) and largest == 0
        if name == EMBEDDING and largest == 0:
            raise ValueError(f"{self.source}: {name} is all zeros, which no model has: {ADVICE}")

    def finish(self) -> None:
        """ValueError where a whole part was zeros."""
        if empty := sorted(part for part, zero in self.zero.items() if zero):
            raise ValueError(f"{self.source}: all weights of {' and '.join(empty)} are zero: {ADVICE}")


def require_sound(tensors: Mapping[str, Tensor], source: str, target: torch.dtype = torch.float32) -> None:
    """Look at tensors that are in memory already; ValueError as :class:`Sound` and :func:`require_floating` say."""
    require_floating({name: value.dtype for name, value in tensors.items()}, source)
    sound = Sound(source)
    for name, value in tensors.items():
        sound.look(name, value, target)
    sound.finish()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
