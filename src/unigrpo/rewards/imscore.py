"""imscore:NAME: the reward models of the package imscore (MIT), as differentiable rewards; it is not a dependency.

Written against imscore 0.0.11: every scorer is a torch module with ``from_pretrained`` and ``score(pixels [B, 3, H, W]
in [0, 1], prompts)``, which gives [B], [B, 1], or one number without a dimension for a single picture. imscore needs
torchvision, and says that it works well only with transformers below 5: give it an environment of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from unigrpo.ranges import ConfigError, did_you_mean, shown
from unigrpo.rewards.frozen import by_chunks, check_whole, frozen, reading
from unigrpo.rewards.pixels import device_of
from unigrpo.rewards.protocol import DifferentiableReward


@dataclass(frozen=True)
class Place:
    """Where a scorer is in imscore, and the weights that its README names; ``alone``: one picture at a time."""

    module: str
    weights: str
    alone: bool = False


SCORERS: Mapping[str, Place] = {
    "CLIPScore": Place("preference", "RE-N-Y/clipscore-vit-large-patch14"),
    "SiglipPreferenceScorer": Place("preference", "RE-N-Y/pickscore-siglip"),
    "PickScorer": Place("pickscore", "RE-N-Y/pickscore"),
    "MPS": Place("mps", "RE-N-Y/mpsv1"),
    "HPSv2": Place("hps", "RE-N-Y/hpsv21"),
    "ImageReward": Place("imreward", "RE-N-Y/ImageReward"),
    "CycleReward": Place("cyclereward", "NagaSaiAbhinay/CycleReward-Combo"),
    "EvalMuse": Place("evalmuse", "RE-N-Y/evalmuse"),
    # its score is the exponential of a loss that is the mean of the whole batch
    "VQAScore": Place("vqascore", "RE-N-Y/clip-t5-xxl", alone=True),
    "LAIONAestheticScorer": Place("aesthetic", "RE-N-Y/laion-aesthetic"),
    "ShadowAesthetic": Place("aesthetic", "RE-N-Y/aesthetic-shadow-v2"),
}


class Imscore(DifferentiableReward):
    """The score of one of imscore's models; ``weights`` is a folder or hub id, by default that of its README."""

    def __init__(self, *, scorer: str, weights: str = "", batch: int = 8, device: str | None = None) -> None:
        self.name = f"imscore:{scorer}"
        if scorer not in SCORERS:
            raise ConfigError(
                f"there is no reward {shown(self.name)}{did_you_mean(scorer, list(SCORERS))}; known scorers: "
                f"{', '.join(SCORERS)}"
            )
        if find_spec("imscore") is None:
            raise ConfigError(
                f"reward {self.name!r} needs the package imscore, which wants torchvision and transformers below 5: "
                "pip install imscore in an environment of its own, and serve it from there"
            )
        known, where = SCORERS[scorer], device_of(device, f"reward {self.name!r}")
        self.batch = 1 if known.alone else check_whole(self.name, "batch", batch)
        with reading(self.name, weights or known.weights):
            kind = vars(import_module(f"imscore.{known.module}.model"))[scorer]
            self.model: Any = frozen(kind.from_pretrained(weights or known.weights), where)
        self.device = where

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """The scorer's number for every picture, [B]; ValueError where it gives another count."""
        found = by_chunks(lambda part, chunk: self._score(part, prompts[chunk]), images.to(self.device), self.batch)
        return found.to(images.device, images.dtype)

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        scores = self.model.score(images, list(prompts))
        if scores.numel() != len(prompts):
            raise ValueError(f"{self.name} gave {scores.numel()} numbers for {len(prompts)} pictures: set batch to 1")
        return scores.reshape(-1)
