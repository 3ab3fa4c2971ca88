"""A user's turn as segments: words, and pictures resized as BAGEL resizes them (docs/bagel-architecture.md#drawing)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from unigrpo.models.bagel.config import BagelConfig
from unigrpo.models.bagel.transforms import VAE_LIMITS, VIT_LIMITS, Limits, resize, to_signed
from unigrpo.models.bagel.vision import grid_of, patches_of
from unigrpo.plurals import counted
from unigrpo.trajectory import Image, Segment, Text, View

IMAGE_PLACE = "<image>"


def interleave(text: str, shown: Sequence[Sequence[Segment]], encode: Callable[[str], Tensor]) -> tuple[Segment, ...]:
    """Pictures (each its segments) where the text says ``<image>``, each piece of text a turn; else before the text."""
    if not shown or IMAGE_PLACE not in text:
        return (*chain(*shown), Text(encode(text)))
    pieces = [piece.strip() for piece in text.split(IMAGE_PLACE)]
    if len(pieces) - 1 != len(shown):
        raise ValueError(
            f"{text!r} has {counted(len(pieces) - 1, 'place')} {IMAGE_PLACE}, but {counted(len(shown), 'picture')} "
            "to put there: give one picture for each place, or write no places (the pictures then come first)"
        )
    segments: list[Segment] = []
    for piece, picture in zip(pieces, [*shown, ()], strict=True):
        segments += [Text(encode(piece))] if piece else []
        segments += picture
    return tuple(segments)


def fitted(picture: Tensor, config: BagelConfig) -> Tensor:
    """A picture uint8 [3, H, W], resized to what the latent grid takes."""
    return resize(picture, cut(VAE_LIMITS, config.pixels_per_token, config.max_latent_size))


def view_of(picture: Tensor, config: BagelConfig) -> View:
    """What the vision tower sees of a picture uint8 [3, H, W] that was already fitted."""
    vision = config.vision
    if vision is None:
        raise ValueError("this model cannot see pictures: it has no vision tower (vit_config.json and vit_model.*)")
    small = resize(picture, cut(VIT_LIMITS, vision.patch_size, vision.max_patches_per_side))
    return View(patches_of(to_signed(small), vision), grid_of(small.shape[1], small.shape[2], vision))


def looked_at(pictures: Tensor, config: BagelConfig, encode: Callable[[Tensor], Tensor]) -> list[tuple[Segment, ...]]:
    """Pictures uint8 [B, 3, H, W] of the model's own as [latents] [view, where there is a tower], one tuple each.

    They are resized as given ones are, which leaves BAGEL's own sizes as they are. ``encode``: all of them at once,
    uint8 [B, 3, H', W'] -> latents [B, n, P].
    """
    resized = torch.stack([fitted(picture, config) for picture in pictures])
    grid = config.grid_of((resized.shape[2], resized.shape[3]))
    given: list[tuple[Segment, ...]] = [(Image(latents, grid),) for latents in encode(resized)]
    if config.vision is None:
        return given
    return [(*one, view_of(picture, config)) for one, picture in zip(given, resized, strict=True)]


def cut(limits: Limits, stride: int, most: int) -> Limits:
    """BAGEL's limits, cut down to what a model's tables hold."""
    longest = min(limits.max_side // stride, most) * stride
    return replace(limits, max_side=longest, min_side=min(limits.min_side, longest), stride=stride)
