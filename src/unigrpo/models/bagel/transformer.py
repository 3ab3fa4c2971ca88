"""The BAGEL transformer: blocks of tokens in, hidden states out, with or without a cache (docs/bagel-architecture.md).

Rollout and replay use this one forward: prefill is ``forward([context], cache, write=True)``, a denoising step is
``forward([noisy image], cache)``, and a replay is ``forward([context, noisy images])``, where the second block sees the
keys of the first. Because the blocks are separate streams, the text's backward pass never enters the image's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unigrpo.models.bagel.blocks import Block, Compact, Picture, Tokens, Views, allowed
from unigrpo.models.bagel.cache import Cache
from unigrpo.models.bagel.config import AT_ONCE, BagelConfig
from unigrpo.models.bagel.layers import MoTLayer, Place, RMSNorm, Stream, rope_tables
from unigrpo.models.bagel.sampling import WordScores, score
from unigrpo.models.bagel.slots import Slots
from unigrpo.models.bagel.vision import Connector, VisionTower, positions

FREQUENCIES = 256


def sincos_table(side: int, hidden: int) -> Tensor:
    """Position table [side * side, H]: [sin(col w), cos(col w), sin(row w), cos(row w)], w_j = 1e4^(-j / (H/4)).

    Column first; row index = row * side + column (docs/bagel-architecture.md). fp64 angles, fp32 out.
    """
    omega = 1e4 ** (-torch.arange(hidden // 4, dtype=torch.float64) / (hidden / 4))
    place = torch.arange(side, dtype=torch.float64)[:, None] * omega
    one = torch.cat([place.sin(), place.cos()], dim=-1)
    columns = one[None, :, :].expand(side, side, -1)
    rows = one[:, None, :].expand(side, side, -1)
    return torch.cat([columns, rows], dim=-1).reshape(side * side, hidden).float()


class PositionTable(nn.Module):
    """A frozen table of positions; stored in the checkpoint as ``pos_embed``."""

    def __init__(self, side: int, hidden: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(sincos_table(side, hidden), requires_grad=False)

    def forward(self, places: Tensor) -> Tensor:
        """Table rows [B, G] -> [B, G, H]."""
        return self.pos_embed[places]


class TimeEmbedder(nn.Module):
    """t in [0, 1] (not times 1000) -> MLP([cos(t f), sin(t f)]), f_j = exp(-ln(1e4) j / 128), fp32 angles."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        first = nn.Linear(FREQUENCIES, hidden)
        self.mlp = nn.Sequential(first, nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, t: Tensor) -> Tensor:
        """t [...] -> [..., H]."""
        half = FREQUENCIES // 2
        f = torch.exp(-math.log(1e4) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angles = t.float()[..., None] * f
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(waves.to(next(self.mlp.parameters()).dtype))


class MoTModel(nn.Module):
    """Embeddings, layers and the two final norms."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MoTLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_moe_gen = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Widened(torch.autograd.Function):
    """x W^T in fp32 of frozen weights [V, H] below fp32, which are widened piece by piece, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """[..., H] -> [..., V]."""
        ctx.save_for_backward(weight)
        return torch.cat([F.linear(x, piece.float()) for piece in pieces_of(weight)], dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """[..., V] -> [..., H]."""
        pieces = pieces_of(ctx.saved_tensors[0])
        parts = zip(grads[0].split([len(piece) for piece in pieces], dim=-1), pieces, strict=True)
        first, *others = (part @ piece.float() for part, piece in parts)
        for other in others:
            first += other
        return first, None


def pieces_of(weight: Tensor) -> tuple[Tensor, ...]:
    """Rows of a weight [V, H], at most ``AT_ONCE`` numbers together."""
    return weight.split(max(1, AT_ONCE // weight.shape[1]))


class LanguageModel(nn.Module):
    """The decoder and its untied text head."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        self.model = MoTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


def additive(mask: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Bool [B, Lq, Lk] -> additive [B, 1, Lq, Lk]; a padded query (not ``valid`` [B, Lq]) sees all, and is not read."""
    blocked = ~mask & valid[:, :, None]
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(blocked, float("-inf"))[:, None]


class BagelModel(nn.Module):
    """Thinks with one expert and draws with the other; parameter names are those of the public checkpoint.

    The vision tower and its connector, where the config has them, start frozen. ``activation_checkpointing``: under
    gradients without a cache, layers are computed again in the backward pass.
    """

    FRONT_DOORS = ("forward", "logits", "word_scores", "velocity_head")
    """All methods by which a policy computes with the weights: what gathers a sharded model hangs here, nowhere else
    (FSDP2: ``register_fsdp_forward_method`` for those besides forward)."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        self.config = config
        self.language_model = LanguageModel(config)
        self.time_embedder = TimeEmbedder(config.hidden_size)
        self.vae2llm = nn.Linear(config.latent_dim, config.hidden_size)
        self.llm2vae = nn.Linear(config.hidden_size, config.latent_dim)
        self.latent_pos_embed = PositionTable(config.max_latent_size, config.hidden_size)
        self.activation_checkpointing = False
        if config.vision is not None:
            self.vit_model = VisionTower(config.vision).requires_grad_(False)
            self.connector = Connector(config.vision.hidden_size, config.hidden_size).requires_grad_(False)
            self.vit_pos_embed = PositionTable(config.vision.max_patches_per_side, config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vae2llm.weight.device

    @property
    def stream_dtype(self) -> torch.dtype:
        """The dtype of the hidden states: autocast's where it is on, whatever the weights are kept in."""
        kind = self.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.vae2llm.weight.dtype

    def embed(self, block: Block) -> Stream:
        """Token embeddings (and pictures as seen) for und; vae2llm(x) + time + place for gen."""
        ids, dtype = block.ids if block.compact is None else block.compact.tokens(block.ids), self.stream_dtype
        und = self.language_model.model.embed_tokens(ids).to(dtype)
        if block.views is not None:
            und = self._put_views(und, block.views, block.compact)
        if not block.latents.shape[1]:
            return und, und.new_zeros((block.ids.shape[0], 0, und.shape[2]))
        latents = self.vae2llm(block.latents.to(self.vae2llm.weight.dtype)).to(dtype)
        return und, latents + self.time_embedder(block.t).to(dtype) + self.latent_pos_embed(block.places).to(dtype)

    def _put_views(self, und: Tensor, views: Views, compact: Compact | None) -> Tensor:
        slots = views.slots if compact is None else compact.spread[views.slots]
        return und.flatten(0, 1).index_copy(0, slots, self.see(views.pictures).to(und.dtype)).view_as(und)

    def see(self, pictures: Sequence[Picture]) -> Tensor:
        """What the language model reads of pictures: connector(tower(patches)) + place, [sum of n, H]."""
        if self.config.vision is None:
            raise ValueError("this model cannot see pictures: it has no vision tower (vit_config.json and vit_model.*)")
        stride = self.config.vision.max_patches_per_side
        features = torch.cat(self.vit_model(pictures))
        places = torch.cat([positions(grid, stride, features.device) for _, grid in pictures])
        return self.connector(features) + self.vit_pos_embed(places).to(features.dtype)

    def masks(self, blocks: Sequence[Block], cache: Cache | None, dtype: torch.dtype) -> list[Tensor]:
        """For each block, what it may see of [cache | earlier blocks | itself], additive (see :class:`Place`)."""
        out, read, keys = [], None if cache is None else cache.valid, None
        for block in blocks:
            if block.rows is not None:
                read = None if read is None else read[block.rows]
                keys = None if keys is None else keys.take(block.rows)
            keys = block.tokens if keys is None else keys.then(block.tokens)
            asking = block.tokens.first() if block.alike else block.tokens
            mask = allowed(asking, keys)
            if read is not None:
                mask = torch.cat([read[:, None, :].expand(-1, mask.shape[1], -1), mask], dim=-1)
            out.append(additive(mask, asking.valid, dtype))
        return out

    def forward(
        self, blocks: Sequence[Block], cache: Cache | Slots | None = None, *, write: bool = False
    ) -> list[Stream]:
        """Hidden states (after the final norms) of every block: (und [B, U, H], gen [B, G, H]).

        Block i sees the cache, blocks[:i] and itself, in the rows that it continues, by the rule of ``blocks.allowed``.
        With ``write`` the keys and values of the (single) block are appended to the cache. Into ``Slots`` they are
        always written, and the block sees all that is there.
        """
        if isinstance(cache, Slots):
            return [self._fill(blocks[0], cache)]
        if write and (cache is None or len(blocks) != 1):
            raise ValueError("write=True appends exactly one block to a cache")
        streams = [self.embed(block) for block in blocks]
        ropes = [rope_tables(block.rope, self.config.head_dim, self.config.rope_theta) for block in blocks]
        masks = self.masks(blocks, cache, streams[0][0].dtype)
        places = [Place(*parts) for parts in zip(blocks, ropes, masks, strict=True)]
        again = self.activation_checkpointing and torch.is_grad_enabled()
        for index, layer in enumerate(self.language_model.model.layers):
            past = cache.layer(index) if cache is not None else None
            append = partial(cache.append, index) if write and cache is not None else None
            streams = layer(streams, places, past, append, again=again and append is None)
        return [self.final_norm(stream, block.compact) for stream, block in zip(streams, blocks, strict=True)]

    def _fill(self, block: Block, slots: Slots) -> Stream:
        stream, place = self.embed(block), slots.place(block)
        for index, layer in enumerate(self.language_model.model.layers):
            (stream,) = layer([stream], [place], None, partial(slots.append, index))
        return self.final_norm(stream, block.compact)

    def final_norm(self, stream: Stream, compact: Compact | None) -> Stream:
        """``norm`` for und tokens (then padded again), ``norm_moe_gen`` for gen tokens."""
        und, gen = stream
        model = self.language_model.model
        und = model.norm(und) if und.shape[1] else und
        return und if compact is None else compact.padded(und), model.norm_moe_gen(gen) if gen.shape[1] else gen

    def logits(self, hidden: Tensor) -> Tensor:
        """Text logits, fp32, also where everything else runs in less (docs/bagel-architecture.md)."""
        return self.head(hidden)

    def head(self, hidden: Tensor) -> Tensor:
        """What is behind :meth:`logits`; weights below fp32 are widened piece by piece, never all at once."""
        weight = self.language_model.lm_head.weight
        with torch.autocast(hidden.device.type, enabled=False):
            if weight.dtype == torch.float32:
                return F.linear(hidden.float(), weight)
            if weight.requires_grad:
                return F.linear(hidden.float(), weight.float())
            return Widened.apply(hidden.float(), weight)

    def word_scores(self, hidden: Tensor, ids: Tensor, temperature: float) -> WordScores:
        """Log-probs of words ids [N] from hidden [N, H], with the entropies and spreads of their distributions.

        Where N V numbers are many, the logits are made for some tokens after the others, and again in the backward
        pass, so that those of all tokens are never kept.
        """
        tokens = max(1, AT_ONCE // self.config.vocab_size)
        if ids.shape[0] <= tokens:
            return self._scored(hidden, ids, temperature)
        parts = [
            checkpoint(self._scored, *part, temperature, use_reentrant=False, preserve_rng_state=False)
            for part in zip(hidden.split(tokens), ids.split(tokens), strict=True)
        ]
        log_probs, entropies, spreads = (torch.cat(values) for values in zip(*parts, strict=True))
        return log_probs, entropies, spreads

    def _scored(self, hidden: Tensor, ids: Tensor, temperature: float) -> WordScores:
        return score(self.head(hidden), ids, temperature)

    def velocity_head(self, hidden: Tensor) -> Tensor:
        """llm2vae at latent tokens, fp32 [..., P]."""
        return self.llm2vae(hidden).float()


def plain_tokens(batch: int, length: int, mode: int, device: torch.device) -> Tokens:
    """Attention facts of a block without padding that is one segment."""
    order = torch.arange(length, device=device).expand(batch, length)
    return Tokens(
        order=order,
        segment=torch.zeros_like(order),
        mode=torch.full_like(order, mode),
        valid=torch.ones((batch, length), dtype=torch.bool, device=device),
    )
