"""Mask2Former as GenEval's detector: what mmdet 2.28.2 does to a picture before the network, and to masks after it.

Before: OpenCV's bilinear resize of bytes to within 1333 x 800 pixels (the ratio kept), grey 128 below and at the right
up to multiples of 32, then ImageNet's mean and std. After: softmax over classes and "no object", the 100 most probable
pairs of query and class; mask logits to the padded size, cropped, to the picture's size (bilinear both times), > 0;
score = p(class) * mean of sigmoid(logit) inside the mask; box = extent of the mask, its lower right corner exclusive.
Source: mmdet 2.28.2 (its config mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco, MaskFormerHead and
MaskFormerFusionHead), compared with it in tests/golden/mask2former_mmdet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from unigrpo.evaluation.coco_classes import CLASSES
from unigrpo.evaluation.opencv_resize import bilinear
from unigrpo.ranges import ConfigError, did_you_mean, shown

COLOURED_ABOVE = 0.3
"""Only objects with a higher score get a colour: GenEval's rules look at no others."""
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, RGB, in levels of a byte
GREY = 128  # of the padding, in a byte: it is normalised with the picture
Raw = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Pixels [1, 3, H, W] -> class logits [Q, C + 1] (the last one: no object), mask logits [Q, H / 4, W / 4]."""


class Colours(Protocol):
    """Names the colours of the objects of one class."""

    def __call__(
        self, picture: Tensor, boxes: Sequence[Sequence[float]], masks: Sequence[Tensor], name: str
    ) -> list[str]:
        """One word for each mask bool [H, W] and its box, in pixels."""
        ...


@dataclass(frozen=True)
class Processing:
    """The sizes of GenEval's detector; the official ones are the defaults."""

    short: int = 800
    long: int = 1333
    multiple: int = 32
    top: int = 100
    masks_at_once: int = 8  # not mmdet's: no result hangs on it, but the memory does

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """The size that a picture is resized to: as large as its shorter and its longer side allow."""
        scale = min(self.long / max(height, width), self.short / min(height, width))
        return int(height * scale + 0.5), int(width * scale + 0.5)

    def pixels(self, picture: Tensor) -> Tensor:
        """A picture uint8 [3, H, W], RGB, as the network takes it: float32 [1, 3, h, w], multiples of 32."""
        size = self.scaled(*picture.shape[1:])
        below, beside = (-length % self.multiple for length in size)
        padded = functional.pad(bilinear(picture, size), (0, beside, 0, below), value=GREY).double()
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
        return ((padded - mean) * (1 / std)).float()[None]


@dataclass(frozen=True)
class Found:
    """One pair of a query and a class; ``mask`` bool [H, W] of those that were asked for."""

    name: str
    score: float
    box: list[float]
    mask: Tensor | None


def instances(
    class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int], processing: Processing, masks_of: Sequence[str]
) -> list[Found]:
    """What a network's outputs [Q, 81] and [Q, h / 4, w / 4] show in a picture of (height, width), best score first.

    Masks are kept of the classes ``masks_of`` where a score above ``COLOURED_ABOVE`` is possible.
    """
    probabilities = class_logits.softmax(-1)[:, :-1]
    best, places = probabilities.flatten().topk(min(processing.top, probabilities.numel()))
    queries = (places // probabilities.shape[1]).tolist()
    names = [CLASSES[index] for index in (places % probabilities.shape[1]).tolist()]
    pairs = list(zip(queries, names, best.cpu(), strict=True))
    kept = {query for query, name, p in pairs if name in masks_of and p > COLOURED_ABOVE}  # no score exceeds its p
    shapes = _shapes(mask_logits, size, processing, sorted(set(queries)), kept)
    found = [Found(name, float(p * shapes[q].inside), shapes[q].box, shapes[q].mask) for q, name, p in pairs]
    return sorted(found, key=lambda one: -one.score)


@dataclass(frozen=True)
class _Shape:
    inside: Tensor  # mean of sigmoid(logit) where the mask is; 0 of an empty mask
    box: list[float]
    mask: Tensor | None


def _shapes(
    logits: Tensor, size: tuple[int, int], processing: Processing, queries: list[int], kept: set[int]
) -> dict[int, _Shape]:
    """Mean probability, box and (of those ``kept``) mask of each query, a few masks at a time."""
    height, width = processing.scaled(*size)
    padded = [length + -length % processing.multiple for length in (height, width)]
    found = {}
    for start in range(0, len(queries), processing.masks_at_once):
        chunk = queries[start : start + processing.masks_at_once]
        large = functional.interpolate(logits[None, chunk], size=padded, mode="bilinear", align_corners=False)
        large = large[:, :, :height, :width]
        large = functional.interpolate(large, size=size, mode="bilinear", align_corners=False)[0]
        masks = large > 0
        inside = (large.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
        for query, mean, mask in zip(chunk, inside.cpu(), masks, strict=True):
            found[query] = _Shape(mean, _box(mask), mask.cpu() if query in kept else None)
    return found


def _box(mask: Tensor) -> list[float]:
    """The extent [x0, y0, x1, y1] of a mask [H, W], x1 and y1 exclusive; zeros where it is empty."""
    columns, rows = mask.any(0).nonzero(), mask.any(1).nonzero()
    if not len(columns):
        return [0.0, 0.0, 0.0, 0.0]
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


class Mask2FormerDetector:
    """A detector of COCO's 80 classes that names colours too: one picture at a time, in bounded memory."""

    def __init__(
        self,
        *,
        raw: Raw,
        colours: Colours,
        about: Mapping[str, Any],
        device: torch.device,
        processing: Processing = Processing(),
    ) -> None:
        self.raw, self.colours, self.processing, self.device = raw, colours, processing, device
        self.about = about

    @torch.no_grad()
    def __call__(self, picture: Tensor, wanted: Sequence[str]) -> list[dict[str, Any]]:
        """All 100 detections in a picture uint8 [3, H, W], unfiltered, best score first.

        ``color`` is worked out where the class is ``wanted`` and the score above ``COLOURED_ABOVE``; elsewhere None.
        ConfigError where a wanted class is none of GenEval's, or the network gives NaN.
        """
        _check_wanted(wanted)
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3:
            raise ValueError(f"a picture is uint8 [3, H, W], but this one is {picture.dtype} {list(picture.shape)}")
        classes, masks = self.raw(self.processing.pixels(picture).to(self.device))
        if not (bool(classes.isfinite().all()) and bool(masks.isfinite().all())):
            raise ConfigError(
                f"the detector {self.about['name']} gives NaN or infinity for a picture of {picture.shape[2]} x "
                f"{picture.shape[1]} pixels: its weights are damaged, so download them again"
            )
        size = picture.shape[1], picture.shape[2]
        found = instances(classes.float(), masks.float(), size, self.processing, wanted)
        colours = self._colours(picture, found, wanted)
        return [
            {"class": one.name, "box": one.box, "score": one.score, "color": colours.get(place)}
            for place, one in enumerate(found)
        ]

    def _colours(self, picture: Tensor, found: Sequence[Found], wanted: Sequence[str]) -> dict[int, str]:
        """Colours by the place of the detection."""
        named: dict[int, str] = {}
        for name in dict.fromkeys(wanted):
            places = [place for place, one in enumerate(found) if one.name == name and one.score > COLOURED_ABOVE]
            masks = [mask for place in places if (mask := found[place].mask) is not None]
            if places:
                words = self.colours(picture, [found[place].box for place in places], masks, name)
                named |= dict(zip(places, words, strict=True))
        return named


def _check_wanted(wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in CLASSES:
            raise ConfigError(
                f"the prompt asks for {shown(name)}{did_you_mean(name, CLASSES)}, which is none of the 80 classes that "
                "the detector knows: correct the prompt's metadata"
            )
