"""The path of B pictures: what its steps share is made once, and a step is one forward over it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from unigrpo.models.bagel.blocks import NOISE, Block, Tokens
from unigrpo.models.bagel.cache import Cache
from unigrpo.models.bagel.config import BagelConfig
from unigrpo.models.bagel.layers import rope_tables
from unigrpo.models.bagel.slots import Slots
from unigrpo.models.bagel.transformer import BagelModel


def picture_block(rope: Tensor, places: Tensor, config: BagelConfig) -> Block:
    """[markers | latents] of a picture in each row, all at its row's rope position [B], in places [n] of the table.

    Latents [B, 0, P] and their times are still to come.
    """
    batch, n, device = rope.shape[0], places.shape[0], rope.device
    order = torch.tensor([0, n + 1, *range(1, n + 1)], device=device).expand(batch, n + 2)
    segment = torch.zeros_like(order)
    return Block(
        ids=torch.tensor([config.vision_start_id, config.vision_end_id], device=device).expand(batch, 2),
        latents=torch.zeros((batch, 0, config.latent_dim), device=device),
        t=torch.zeros((batch, 1), device=device),
        places=places.expand(batch, n),
        rope=rope[:, None].expand(batch, n + 2),
        tokens=Tokens(order, segment, segment + NOISE, torch.ones_like(order, dtype=torch.bool)),
        alike=True,
    )


def noisy(block: Block, x: Tensor, t: Tensor) -> Block:
    """The block with latents x [B, n, P] at times t [B]."""
    return replace(block, latents=x, t=t.to(torch.float32).reshape(-1, 1))


class Path:
    """All that the steps of B pictures have in common: their block, and room for their keys beside the context's.

    A picture stands at one rope position, so that in fp32 the context's keys are turned back by it once, in place of
    the picture's queries and keys at every step and layer. In less, keys would be rounded twice: there it is rotated.
    """

    def __init__(self, cache: Cache, places: Tensor, model: BagelModel) -> None:
        config, dtype = model.config, model.stream_dtype
        self.block = picture_block(cache.rope, places, config)
        self.slots = Slots(cache, self.block.rope.shape[1], dtype)
        if dtype == torch.float32:
            self.slots.turn_back(rope_tables(cache.rope[:, None], config.head_dim, config.rope_theta))
        else:
            self.slots.rope = rope_tables(self.block.rope, config.head_dim, config.rope_theta)
