"""What a look at a drawing gives a model to read, in tokens, and what it is held in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unigrpo.costs.counting import MARKERS
from unigrpo.costs.sizes import ModelSizes
from unigrpo.models.bagel.transforms import VAE_LIMITS, VIT_LIMITS, target_size
from unigrpo.models.bagel.turns import cut


@dataclass(frozen=True)
class LookSizes:
    """latents: tokens of the denoising expert; patches: of what is seen (0: no tower); pixels: that are encoded."""

    latents: int = 0
    patches: int = 0
    pixels: int = 0

    @property
    def und(self) -> int:
        """Tokens of the reasoning expert: markers, and what is seen."""
        return MARKERS * (self.latents > 0) + (self.patches + MARKERS) * (self.patches > 0)

    @property
    def tokens(self) -> int:
        """All tokens of a look."""
        return self.latents + self.und


NO_LOOK = LookSizes()


def look_sizes(sizes: ModelSizes, side: int | None) -> LookSizes:
    """Of a square picture of ``side`` pixels (None: the model's own size), resized as given pictures are."""
    return sizes_of(sizes, *((side, side) if side is not None else sizes.image_size))


def sizes_of(sizes: ModelSizes, height: int, width: int) -> LookSizes:
    """Of a picture of so many pixels, resized as given pictures are."""
    stride = sizes.pixels_per_token
    width, height = target_size(width, height, cut(VAE_LIMITS, stride, sizes.max_latent_size))
    latents, patches = (height // stride) * (width // stride), 0
    if sizes.vision is not None:
        patch, most = math.isqrt(sizes.vision.patch_dim // 3), math.isqrt(sizes.vision.connector_places)
        seen = target_size(width, height, cut(VIT_LIMITS, patch, most))
        patches = (seen[0] // patch) * (seen[1] // patch)
    return LookSizes(latents, patches, height * width)
