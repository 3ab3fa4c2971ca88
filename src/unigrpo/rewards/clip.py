"""CLIP and what was trained from it: CLIP score, PickScore, HPSv2, the LAION aesthetic predictor; all differentiable.

One tower sees the picture, one reads the prompt (cut to 77 tokens); both are frozen, and gradients reach the pixels.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unigrpo.ranges import ConfigError
from unigrpo.rewards.clip_model import FrozenClip, load_clip
from unigrpo.rewards.frozen import find_file, read_tensors
from unigrpo.rewards.protocol import DifferentiableReward

CLIP_L, CLIP_H = "openai/clip-vit-large-patch14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PICKSCORE = "yuvalkirstain/PickScore_v1"
HPSV21 = "xswu/HPSv2:HPS_v2.1_compressed.pt"
AESTHETIC = "trl-lib/ddpo-aesthetic-predictor:aesthetic-model.pth"


class ClipScore(DifferentiableReward):
    """clip/score: exp(logit scale) cos(picture, prompt); about 15 to 35 with OpenAI's models, whose scale is 100.

    Source: CLIPScore (arXiv 2104.08718) without its cut at 0, which would have no gradient.
    """

    name = "clip/score"

    def __init__(self, *, model: str = CLIP_L, batch: int = 8, device: str | None = None) -> None:
        self.clip = load_clip(self.name, model, batch, device)

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """The scaled cosine of every picture and its prompt, [B]."""
        return (self.clip.scale * self.clip.cosine(images, prompts)).to(images.device, images.dtype)


class PickScore(ClipScore):
    """clip/pickscore: the same of a CLIP-H that was trained on which of two pictures people picked (2305.01569).

    About 18 to 24. Its own folder has no preprocessing, so that of the model it began from is taken (``processor``).
    """

    name = "clip/pickscore"

    def __init__(
        self, *, model: str = PICKSCORE, processor: str | None = None, batch: int = 8, device: str | None = None
    ) -> None:
        beside = CLIP_H if processor is None and model == PICKSCORE else processor or ""
        self.clip = load_clip(self.name, model, batch, device, processor=beside)


class HpsV2(DifferentiableReward):
    """clip/hpsv2: cos(picture, prompt) of a CLIP-H trained on people's rankings (HPSv2, 2306.09341); about 0.2 to 0.35.

    ``weights`` is a file in the layout of open_clip, as HPS v2 and v2.1 are published, and ``model`` then only gives
    the sizes, the tokenizer and the preprocessing; with ``weights`` "" the weights are the model's own. A picture that
    is not square is not cut: its longer side is resized to what the model sees, and the rest is black.
    """

    name = "clip/hpsv2"

    def __init__(
        self, *, model: str = CLIP_H, weights: str = HPSV21, batch: int = 8, device: str | None = None
    ) -> None:
        clip = load_clip(self.name, model, batch, device, weights=weights)
        self.clip = replace(clip, preprocessing=replace(clip.preprocessing, shortest=None))

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """The cosine of every picture and its prompt, [B]."""
        return self.clip.cosine(images, prompts).to(images.device, images.dtype)


class Aesthetic(DifferentiableReward):
    """clip/aesthetic: linear layers on the unit CLIP features of a picture, about 1 to 10; the prompt plays no part.

    ``head`` is a file of linear layers without activations between them, applied in the order of their numbers: LAION's
    predictor has five (v2), or one (v1). The first must take what ``model`` gives (768 numbers for ViT-L/14).
    """

    name = "clip/aesthetic"

    def __init__(
        self, *, model: str = CLIP_L, head: str = AESTHETIC, batch: int = 8, device: str | None = None
    ) -> None:
        layers = read_head(self.name, head)
        self.clip: FrozenClip = load_clip(self.name, model, batch, device)
        width = self.clip.model.config.projection_dim
        if layers[0][0].shape[1] != width:
            raise ConfigError(
                f"reward {self.name!r}: head = {head} takes {layers[0][0].shape[1]} numbers, but the model {model} "
                f"gives {width}: name the CLIP that the head was trained on"
            )
        self.layers = [(weight.to(self.clip.model.device), bias.to(self.clip.model.device)) for weight, bias in layers]

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """How much people would like each picture, [B]."""
        hidden = self.clip.of_pictures(images)
        for weight, bias in self.layers:
            hidden = functional.linear(hidden, weight.to(hidden.dtype), bias.to(hidden.dtype))
        return hidden[:, 0].to(images.device, images.dtype)


def read_head(name: str, head: str) -> list[tuple[Tensor, Tensor]]:
    """(weight [out, in], bias [out]) of every linear layer of a file, in order; ConfigError where they do not chain."""
    tensors = read_tensors(name, "head", find_file(name, "head", head))
    keys = sorted((key for key in tensors if key.endswith("weight")), key=_numbers)
    pairs = [(tensors[key].float(), tensors.get(f"{key.removesuffix('weight')}bias", torch.zeros(0))) for key in keys]
    sizes = [tuple(weight.shape) for weight, _ in pairs]
    chained = all(after[1:] == before[:1] for before, after in itertools.pairwise(sizes))
    whole = len(tensors) == 2 * len(pairs) and all(bias.shape == weight.shape[:1] for weight, bias in pairs)
    if not pairs or any(len(size) != 2 for size in sizes) or not chained or sizes[-1][0] != 1 or not whole:
        raise ConfigError(
            f"reward {name!r}: head = {head} has {', '.join(sorted(tensors))[:120]}, which are no linear layers that "
            "follow each other and end in one number: give an aesthetic head such as LAION's"
        )
    return [(weight, bias.float()) for weight, bias in pairs]


def _numbers(key: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", key)]
