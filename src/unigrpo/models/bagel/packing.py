"""From segments to rectangular blocks of tokens, and the one attention rule (spec/bagel.md, section 3).

A block is [B, U + G] tokens: first U tokens of the understanding expert (text and image markers), then G latent tokens
of the generation expert, so that routing is a static slice. The order of the tokens inside a block is free: what a
token may see follows from its ``order``, ``segment`` and ``mode``, and its place from ``rope``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unigrpo.models.bagel.config import BagelConfig
from unigrpo.policy import ReplayItem
from unigrpo.trajectory import Segment, Text

CAUSAL, FULL, NOISE = 0, 1, 2


@dataclass(frozen=True)
class Tokens:
    """What the attention rule needs of [B, L] tokens: order, segment and mode (int64), valid (bool)."""

    order: Tensor
    segment: Tensor
    mode: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Block:
    """One block's inputs: ids [B, U]; latents [B, G, P], their times t and table rows places [B, G]; rope [B, L]."""

    ids: Tensor
    latents: Tensor
    t: Tensor
    places: Tensor
    rope: Tensor
    tokens: Tokens

    @property
    def num_und(self) -> int:
        """U, where the generation expert's slice begins."""
        return self.ids.shape[1]


@dataclass
class _Half:
    """One row's tokens of one expert, as python lists (und: ids; gen: places and times, the latents apart)."""

    rope: list[int] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    segment: list[int] = field(default_factory=list)
    mode: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def add(self, count: int, rope: Sequence[int], order: Sequence[int], segment: int, mode: int) -> None:
        self.rope.extend(rope)
        self.order.extend(order)
        self.segment.extend([segment] * count)
        self.mode.extend([mode] * count)


@dataclass
class RowBuilder:
    """Lays the segments of one row into und and gen tokens, keeping the rope counter and the order."""

    config: BagelConfig
    rope: int = 0
    order: int = 0
    segment: int = 0
    und: _Half = field(default_factory=_Half)
    gen: _Half = field(default_factory=_Half)
    latents: list[Tensor] = field(default_factory=list)
    times: list[Tensor] = field(default_factory=list)

    def text(self, ids: Sequence[int]) -> int:
        """Append ``bos ids eos`` (causal); return the index of bos among the und tokens."""
        start, n = len(self.und.ids), len(ids) + 2
        self.und.ids.extend([self.config.bos_token_id, *ids, self.config.eos_token_id])
        self.und.add(n, range(self.rope, self.rope + n), range(self.order, self.order + n), self.segment, CAUSAL)
        self._advance(n, n)
        return start

    def clean_image(self, latents: Tensor, grid: tuple[int, int]) -> None:
        """Append a finished image [n, P] (t = 0, full attention); the rope counter advances by one."""
        self._image(latents, torch.zeros((), dtype=torch.float32, device=latents.device), grid, FULL)
        self._advance(1, latents.shape[0] + 2)

    def noisy_images(self, x: Tensor, t: Tensor, grid: tuple[int, int]) -> int:
        """Append K noisy copies x [K, n, P] at t [K], each visible to itself alone; return the first gen index."""
        start = len(self.gen.places)
        for copy in range(x.shape[0]):
            self._image(x[copy], t[copy], grid, NOISE)
            self._advance(0, 0)
        return start

    def _image(self, latents: Tensor, t: Tensor, grid: tuple[int, int], mode: int) -> None:
        n, (rows, columns), base = latents.shape[0], grid, self.order
        if n != rows * columns:
            raise ValueError(f"an image of {n} latent tokens cannot have a grid of {rows} x {columns}")
        self.und.ids.extend([self.config.vision_start_id, self.config.vision_end_id])
        self.und.add(2, [self.rope] * 2, [base, base + n + 1], self.segment, mode)
        self.gen.add(n, [self.rope] * n, range(base + 1, base + n + 1), self.segment, mode)
        self.gen.places.extend(r * self.config.max_latent_size + c for r in range(rows) for c in range(columns))
        self.latents.append(latents)
        self.times.append(t.reshape(1).expand(n))

    def _advance(self, rope: int, order: int) -> None:
        self.rope += rope
        self.order += order
        self.segment += 1


def _padded(rows: Sequence[Sequence[int]], width: int, fill: int, device: torch.device) -> Tensor:
    filled = [list(row) + [fill] * (width - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.int64, device=device).reshape(len(rows), width)


def _padded_tensors(
    rows: Sequence[Sequence[Tensor]], width: int, tail: tuple[int, ...], device: torch.device
) -> Tensor:
    """Concatenate each row's tensors and pad with zeros to [B, width, *tail] (fp32)."""
    out = []
    for row in rows:
        flat = (
            torch.cat([part.to(device, torch.float32) for part in row])
            if row
            else torch.zeros((0, *tail), device=device)
        )
        out.append(torch.cat([flat, torch.zeros((width - flat.shape[0], *tail), device=device)]))
    return torch.stack(out)


def build_block(rows: Sequence[RowBuilder], latent_dim: int, device: torch.device) -> Block:
    """Pad the rows to one rectangular block: [und of the longest row | gen of the longest row]."""
    num_und = max(len(row.und.ids) for row in rows)
    num_gen = max(len(row.gen.places) for row in rows)

    def both(name: str, fill: int) -> Tensor:
        halves = [
            _padded([getattr(half, name) for half in column], width, fill, device)
            for column, width in (([r.und for r in rows], num_und), ([r.gen for r in rows], num_gen))
        ]
        return torch.cat(halves, dim=1)

    order = both("order", -1)
    return Block(
        ids=_padded([row.und.ids for row in rows], num_und, 0, device),
        latents=_padded_tensors([row.latents for row in rows], num_gen, (latent_dim,), device),
        t=_padded_tensors([row.times for row in rows], num_gen, (), device),
        places=_padded([row.gen.places for row in rows], num_gen, 0, device),
        rope=both("rope", 0),
        tokens=Tokens(order, both("segment", -1), both("mode", CAUSAL), order >= 0),
    )


def allowed(query: Tokens, key: Tokens) -> Tensor:
    """The attention rule, bool [B, Lq, Lk]: (key not later, and not noise) or same non-causal segment; padding unseen.

    Source: spec/bagel.md section 3. Every key must come from the same row of the batch as its query.
    """
    same = query.segment[:, :, None] == key.segment[:, None, :]
    together = same & (query.mode != CAUSAL)[:, :, None]
    earlier = (key.order[:, None, :] <= query.order[:, :, None]) & (key.mode != NOISE)[:, None, :]
    return (together | earlier) & key.valid[:, None, :]


@dataclass(frozen=True)
class TextSpan:
    """Where a scored text lies: the und index of its bos, and its actions (ids, then eos if ended)."""

    start: int
    text: Text


@dataclass(frozen=True)
class NoiseSpan:
    """Where the velocities of a query lie: the first gen index, K copies of n tokens."""

    start: int
    copies: int
    num_tokens: int


@dataclass(frozen=True)
class Packed:
    """A batch of replay items: the context block, the noise block (None without queries), and where answers lie."""

    context: Block
    noise: Block | None
    texts: tuple[tuple[TextSpan, ...], ...]
    images: tuple[tuple[NoiseSpan, ...], ...]


def lay_context(builder: RowBuilder, segment: Segment) -> int:
    """Append a segment that later tokens will see; return the und index at which it starts."""
    if isinstance(segment, Text):
        return builder.text(segment.ids.tolist())
    start = len(builder.und.ids)
    builder.clean_image(segment.latents, segment.grid)
    return start


def pack(items: Sequence[ReplayItem], config: BagelConfig, device: torch.device) -> Packed:
    """Lay every item into [context | noisy images]; an image enters the context only if something after it needs it."""
    contexts, noises, texts, images = [], [], [], []
    for item in items:
        context, noise = RowBuilder(config), RowBuilder(config)
        spans, noise_spans = [], {}
        last = max([i for i, s in enumerate(item.segments) if isinstance(s, Text)], default=-1)
        last = max([last, *(q.segment - 1 for q in item.queries)])
        for index, segment in enumerate(item.segments):
            for number, query in enumerate(item.queries):
                if query.segment == index:
                    noise.rope, noise.order = context.rope, context.order
                    noise.segment = max(noise.segment, 1_000_000)
                    if isinstance(segment, Text):
                        raise ValueError(f"velocities were asked for segment {index}, which is a text")
                    start = noise.noisy_images(query.x, query.t, segment.grid)
                    context.order = noise.order + query.x.shape[1] + 2  # the clean copy comes after its noisy ones
                    noise_spans[number] = NoiseSpan(start, query.x.shape[0], query.x.shape[1])
            if index <= last:
                start = lay_context(context, segment)
                if isinstance(segment, Text) and segment.scored:
                    spans.append(TextSpan(start, segment))
        contexts.append(context)
        noises.append(noise)
        texts.append(tuple(spans))
        images.append(tuple(noise_spans[number] for number in range(len(item.queries))))
    has_noise = any(noise.gen.places for noise in noises)
    return Packed(
        context=build_block(contexts, config.latent_dim, device),
        noise=build_block(noises, config.latent_dim, device) if has_noise else None,
        texts=tuple(texts),
        images=tuple(images),
    )
