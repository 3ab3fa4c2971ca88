"""Rectangular blocks of tokens, how segments are laid into them, and the one attention rule.

Source: docs/bagel-architecture.md#tokens-positions-masks.

A block is [B, U + G] tokens: first U tokens of the understanding expert (text and image markers), then G latent tokens
of the generation expert, so that routing is a static slice. The order of the tokens inside a block is free: what a
token may see follows from its ``order``, ``segment`` and ``mode``, and its place from ``rope``. A block continues the
rows of the block before it, possibly several of its rows the same one: a prompt is read once for the whole group, and
the thinking before K noisy copies of an image once for all copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unigrpo.models.bagel.config import BagelConfig
from unigrpo.trajectory import Segment, Text, View

CAUSAL, FULL, NOISE = 0, 1, 2


@dataclass(frozen=True)
class Tokens:
    """What the attention rule needs of [B, L] tokens: order, segment and mode (int64), valid (bool)."""

    order: Tensor
    segment: Tensor
    mode: Tensor
    valid: Tensor

    def take(self, rows: Tensor) -> Tokens:
        """The tokens of the given rows (int64 [N]), which may repeat."""
        return Tokens(self.order[rows], self.segment[rows], self.mode[rows], self.valid[rows])

    def first(self) -> Tokens:
        """The first token of every row."""
        return Tokens(self.order[:, :1], self.segment[:, :1], self.mode[:, :1], self.valid[:, :1])

    def then(self, later: Tokens) -> Tokens:
        """These tokens and, in the same rows, later ones."""
        pairs = ((self.order, later.order), (self.segment, later.segment), (self.mode, later.mode))
        order, segment, mode = (torch.cat(pair, dim=1) for pair in pairs)
        return Tokens(order, segment, mode, torch.cat([self.valid, later.valid], dim=1))


@dataclass(frozen=True)
class Compact:
    """The T real tokens of a half padded to [B, U]: slots [T] of theirs in B * U, and spread [B * U] the way back.

    All but attention runs on the T tokens alone. A padded slot is spread from token 0: it is never seen nor read.
    """

    slots: Tensor
    spread: Tensor
    batch: int

    @classmethod
    def of(cls, valid: Tensor) -> Compact:
        """From which slots hold a token, bool [B, U]."""
        flat = valid.flatten()
        return cls(flat.nonzero()[:, 0], (flat.cumsum(0) - 1).clamp(min=0).where(flat, 0), valid.shape[0])

    def tokens(self, padded: Tensor) -> Tensor:
        """[B, U, ...] -> [1, T, ...]."""
        return padded.flatten(0, 1).index_select(0, self.slots)[None]

    def padded(self, tokens: Tensor) -> Tensor:
        """[1, T, ...] -> [B, U, ...]."""
        return tokens[0].index_select(0, self.spread).unflatten(0, (self.batch, -1))


Picture = tuple[Tensor, tuple[int, int]]  # patches [n, 3 p p] and their grid (rows, columns)


@dataclass(frozen=True)
class Views:
    """Pictures that the vision tower reads, and the slots [sum of n] in B * U where their tokens belong."""

    pictures: tuple[Picture, ...]
    slots: Tensor


@dataclass(frozen=True)
class Block:
    """One block's inputs: ids [B, U]; latents [B, G, P], their table rows places [B, G]; rope [B, L].

    t: the times of the latents, [B, G], or [B, 1] where a row has one time (its embedding is then computed once).
    rows int64 [B]: which row of the block before each row continues; None: row i continues row i.
    compact: how to leave out the padding of the und half; None: it is computed like tokens.
    views: pictures whose tokens stand among the und tokens (the ids there say nothing).
    alike: whether all tokens of a row see the same, as those of one noisy image do.
    """

    ids: Tensor
    latents: Tensor
    t: Tensor
    places: Tensor
    rope: Tensor
    tokens: Tokens
    rows: Tensor | None = None
    compact: Compact | None = None
    views: Views | None = None
    alike: bool = False

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
    views: list[tuple[int, Picture]] = field(default_factory=list)  # und index of the first patch, picture

    def text(self, ids: Sequence[int]) -> int:
        """Append ``bos ids eos`` (causal); return the index of bos among the und tokens."""
        start, n = len(self.und.ids), len(ids) + 2
        self.und.ids.extend([self.config.bos_token_id, *ids, self.config.eos_token_id])
        self.und.add(n, range(self.rope, self.rope + n), range(self.order, self.order + n), self.segment, CAUSAL)
        self._advance(n, n)
        return start

    def clean_image(self, latents: Tensor, grid: tuple[int, int]) -> None:
        """Append a finished image [n, P] (t = 0, full attention); the rope counter advances by one."""
        n, base = latents.shape[0], self.order
        require_grid(n, grid)
        self.und.ids.extend([self.config.vision_start_id, self.config.vision_end_id])
        self.und.add(2, [self.rope] * 2, [base, base + n + 1], self.segment, FULL)
        self.gen.add(n, [self.rope] * n, range(base + 1, base + n + 1), self.segment, FULL)
        rows, columns = grid
        self.gen.places.extend(r * self.config.max_latent_size + c for r in range(rows) for c in range(columns))
        self.latents.append(latents)
        self.times.append(torch.zeros(n, dtype=torch.float32, device=latents.device))
        self._advance(1, n + 2)

    def view(self, patches: Tensor, grid: tuple[int, int]) -> None:
        """Append a picture as seen, und tokens alone (full attention); the rope counter advances by one."""
        n = patches.shape[0]
        require_grid(n, grid)
        self.views.append((len(self.und.ids) + 1, (patches, grid)))
        self.und.ids.extend([self.config.vision_start_id, *[0] * n, self.config.vision_end_id])
        order = range(self.order, self.order + n + 2)
        self.und.add(n + 2, [self.rope] * (n + 2), order, self.segment, FULL)
        self._advance(1, n + 2)

    def leave_room(self, n: int) -> None:
        """Skip the order of an image of n tokens that another block holds: what follows is later than it."""
        self._advance(0, n + 2)

    def _advance(self, rope: int, order: int) -> None:
        self.rope += rope
        self.order += order
        self.segment += 1


def require_grid(n: int, grid: tuple[int, int]) -> None:
    """ValueError unless n tokens fill the grid (rows, columns)."""
    if n != grid[0] * grid[1]:
        raise ValueError(f"an image of {n} tokens cannot have a grid of {grid[0]} x {grid[1]}")


def _views(rows: Sequence[RowBuilder], width: int, device: torch.device) -> Views | None:
    """All pictures of the rows, and their slots in the padded und half."""
    found = [(row * width + start, picture) for row, built in enumerate(rows) for start, picture in built.views]
    if not found:
        return None
    slots = [torch.arange(start, start + picture[0].shape[0], device=device) for start, picture in found]
    pictures = tuple((patches.to(device), grid) for _, (patches, grid) in found)
    return Views(pictures, torch.cat(slots))


def _padded(rows: Sequence[Sequence[int]], width: int, fill: int, device: torch.device) -> Tensor:
    filled = [list(row) + [fill] * (width - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.int64, device=device).reshape(len(rows), width)


def _padded_tensors(
    rows: Sequence[Sequence[Tensor]], width: int, tail: tuple[int, ...], device: torch.device
) -> Tensor:
    """Concatenate each row's tensors and pad with zeros to [B, width, *tail] (fp32)."""
    if not width:
        return torch.zeros((len(rows), 0, *tail), device=device)
    out = []
    for row in rows:
        flat = (
            torch.cat([part.to(device, torch.float32) for part in row])
            if row
            else torch.zeros((0, *tail), device=device)
        )
        out.append(torch.cat([flat, torch.zeros((width - flat.shape[0], *tail), device=device)]))
    return torch.stack(out)


def build_block(
    rows: Sequence[RowBuilder],
    latent_dim: int,
    device: torch.device,
    *,
    continues: Tensor | None = None,
    compact: bool = False,
) -> Block:
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
    valid = order >= 0
    padding = compact and any(len(row.und.ids) < num_und for row in rows)
    return Block(
        ids=_padded([row.und.ids for row in rows], num_und, 0, device),
        latents=_padded_tensors([row.latents for row in rows], num_gen, (latent_dim,), device),
        t=_padded_tensors([row.times for row in rows], num_gen, (), device),
        places=_padded([row.gen.places for row in rows], num_gen, 0, device),
        rope=both("rope", 0),
        tokens=Tokens(order, both("segment", -1), both("mode", CAUSAL), valid),
        rows=continues,
        compact=Compact.of(valid[:, :num_und]) if padding else None,
        views=_views(rows, num_und, device),
    )


def allowed(query: Tokens, key: Tokens) -> Tensor:
    """The attention rule, bool [B, Lq, Lk]: (key not later, and not noise) or same non-causal segment; padding unseen.

    Source: docs/bagel-architecture.md#tokens-positions-masks. Every key must come from the same row of the batch as its
    query.
    """
    same = query.segment[:, :, None] == key.segment[:, None, :]
    together = same & (query.mode != CAUSAL)[:, :, None]
    earlier = (key.order[:, None, :] <= query.order[:, :, None]) & (key.mode != NOISE)[:, None, :]
    return (together | earlier) & key.valid[:, None, :]


def lay_context(builder: RowBuilder, segment: Segment) -> int:
    """Append a segment that later tokens will see; return the und index at which it starts."""
    if isinstance(segment, Text):
        return builder.text(segment.ids.tolist())
    start = len(builder.und.ids)
    if isinstance(segment, View):
        builder.view(segment.patches, segment.grid)
    else:
        builder.clean_image(segment.latents, segment.grid)
    return start


def lay_rows(contexts: Sequence[Sequence[Segment]], config: BagelConfig) -> list[RowBuilder]:
    """Lay every context into a row of its own."""
    rows = [RowBuilder(config) for _ in contexts]
    for row, segments in zip(rows, contexts, strict=True):
        for segment in segments:
            lay_context(row, segment)
    return rows
