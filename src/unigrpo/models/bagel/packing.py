"""From segments to rectangular blocks of tokens, and the one attention rule (spec/bagel.md, section 3).

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
import torch.nn.functional as F
from torch import Tensor

from unigrpo.models.bagel.config import BagelConfig
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.trajectory import Segment, Text

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

    def then(self, later: Tokens) -> Tokens:
        """These tokens and, in the same rows, later ones."""
        pairs = ((self.order, later.order), (self.segment, later.segment), (self.mode, later.mode))
        order, segment, mode = (torch.cat(pair, dim=1) for pair in pairs)
        return Tokens(order, segment, mode, torch.cat([self.valid, later.valid], dim=1))


@dataclass(frozen=True)
class Block:
    """One block's inputs: ids [B, U]; latents [B, G, P], their times t and table rows places [B, G]; rope [B, L].

    rows int64 [B]: which row of the block before each row continues; None: row i continues row i.
    """

    ids: Tensor
    latents: Tensor
    t: Tensor
    places: Tensor
    rope: Tensor
    tokens: Tokens
    rows: Tensor | None = None

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

    def leave_room(self, n: int) -> None:
        """Skip the order of an image of n tokens that another block holds: what follows is later than it."""
        self._advance(0, n + 2)

    def _advance(self, rope: int, order: int) -> None:
        self.rope += rope
        self.order += order
        self.segment += 1


def require_grid(n: int, grid: tuple[int, int]) -> None:
    """ValueError unless n latent tokens fill the grid (rows, columns)."""
    if n != grid[0] * grid[1]:
        raise ValueError(f"an image of {n} latent tokens cannot have a grid of {grid[0]} x {grid[1]}")


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


def build_block(
    rows: Sequence[RowBuilder], latent_dim: int, device: torch.device, *, continues: Tensor | None = None
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
    return Block(
        ids=_padded([row.und.ids for row in rows], num_und, 0, device),
        latents=_padded_tensors([row.latents for row in rows], num_gen, (latent_dim,), device),
        t=_padded_tensors([row.times for row in rows], num_gen, (), device),
        places=_padded([row.gen.places for row in rows], num_gen, 0, device),
        rope=both("rope", 0),
        tokens=Tokens(order, both("segment", -1), both("mode", CAUSAL), order >= 0),
        rows=continues,
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
    """Where a scored text lies: the und index of its bos in the context block, and its actions."""

    start: int
    text: Text


@dataclass(frozen=True)
class NoiseSpan:
    """A query's rows in the noise block: K copies of n tokens that continue context row ``row`` at a place in it."""

    row: int
    query: VelocityQuery
    grid: tuple[int, int]
    rope: int
    order: int
    segment: int

    @property
    def copies(self) -> int:
        """K."""
        return self.query.x.shape[0]

    @property
    def num_tokens(self) -> int:
        """n."""
        return self.query.x.shape[1]


@dataclass(frozen=True)
class Packed:
    """A batch of B replay items as up to three blocks, and where their answers lie.

    prompt: the distinct beginnings that several items share (None: nothing is shared); context [B rows]: the rest of
    what is read or scored; noise: one row per noisy copy (None without queries), in the order of ``images``.
    """

    prompt: Block | None
    context: Block
    noise: Block | None
    texts: tuple[tuple[TextSpan, ...], ...]
    images: tuple[tuple[NoiseSpan, ...], ...]

    @property
    def blocks(self) -> list[Block]:
        """The blocks that there are, in the order in which they see each other."""
        return [block for block in (self.prompt, self.context, self.noise) if block is not None]


def lay_context(builder: RowBuilder, segment: Segment) -> int:
    """Append a segment that later tokens will see; return the und index at which it starts."""
    if isinstance(segment, Text):
        return builder.text(segment.ids.tolist())
    start = len(builder.und.ids)
    builder.clean_image(segment.latents, segment.grid)
    return start


def needed(item: ReplayItem) -> int:
    """How many leading segments enter the context: up to the last text, and all before a query."""
    last_text = max([i + 1 for i, s in enumerate(item.segments) if isinstance(s, Text)], default=0)
    return max([last_text, *(query.segment for query in item.queries)])


def given(item: ReplayItem) -> tuple[Segment, ...]:
    """The leading segments of the context that are only read: before the first scored text and the first query."""
    end = min([needed(item), *(query.segment for query in item.queries)])
    scored = [i for i, s in enumerate(item.segments[:end]) if isinstance(s, Text) and s.scored]
    return item.segments[: min([end, *scored])]


def shared_beginnings(items: Sequence[ReplayItem]) -> tuple[list[tuple[Segment, ...]], list[int]]:
    """The distinct beginnings (see ``given``), and for every item which one is its own; ([], []) if none is shared.

    Texts are the same where their ids are (the members of a group hold one object), images where they are one object.
    """
    keys: dict[int, object] = {}
    found: dict[tuple[object, ...], int] = {}
    distinct, owners = [], []
    for item in items:
        beginning = given(item)
        for segment in beginning:
            if id(segment) not in keys:
                keys[id(segment)] = tuple(segment.ids.tolist()) if isinstance(segment, Text) else id(segment)
        key = tuple(keys[id(segment)] for segment in beginning)
        if key not in found:
            found[key] = len(distinct)
            distinct.append(beginning)
        owners.append(found[key])
    read_again = any(distinct[owner] and owner in owners[:index] for index, owner in enumerate(owners))
    return (distinct, owners) if read_again else ([], [])


def _lay_item(
    row: int, item: ReplayItem, builder: RowBuilder, first: int
) -> tuple[tuple[TextSpan, ...], tuple[NoiseSpan, ...]]:
    """Lay the segments from ``first`` on into the context, and note where the queries' noisy copies belong."""
    texts, images, end = [], {}, needed(item)
    for index, segment in enumerate(item.segments[first:], first):
        for number, query in enumerate(item.queries):
            if query.segment == index:
                if isinstance(segment, Text):
                    raise ValueError(f"velocities were asked for segment {index}, which is a text")
                images[number] = NoiseSpan(row, query, segment.grid, builder.rope, builder.order, builder.segment)
                builder.leave_room(query.x.shape[1])  # the clean copy comes after its noisy ones
        if index < end:
            start = lay_context(builder, segment)
            if isinstance(segment, Text) and segment.scored:
                texts.append(TextSpan(start, segment))
    return tuple(texts), tuple(images[number] for number in range(len(item.queries)))


def noise_block(spans: Sequence[NoiseSpan], config: BagelConfig, device: torch.device) -> Block:
    """One row per noisy copy: its two markers and its n latents, at one rope position, visible to itself alone."""
    for span in spans:
        require_grid(span.num_tokens, span.grid)
    places = [(s.row, s.rope, s.order, s.segment, s.num_tokens, s.grid[1]) for s in spans for _ in range(s.copies)]
    row, rope, order, segment, n, columns = torch.tensor(places, device=device).T[:, :, None]
    width, copies = max(span.num_tokens for span in spans), len(places)
    j = torch.arange(width, device=device)
    latent_order = torch.where(j < n, order + 1 + j, -1)
    orders = torch.cat([order, order + n + 1, latent_order], dim=1)
    x = [F.pad(s.query.x.to(device, torch.float32), (0, 0, 0, width - s.num_tokens)) for s in spans]
    return Block(
        ids=torch.tensor([config.vision_start_id, config.vision_end_id], device=device).expand(copies, 2),
        latents=torch.cat(x),
        t=torch.cat([s.query.t.to(device, torch.float32) for s in spans])[:, None].expand(copies, width),
        places=torch.where(j < n, j // columns * config.max_latent_size + j % columns, 0),
        rope=rope.expand(copies, width + 2),
        tokens=Tokens(orders, segment.expand_as(orders), torch.full_like(orders, NOISE), orders >= 0),
        rows=row[:, 0],
    )


def pack(items: Sequence[ReplayItem], config: BagelConfig, device: torch.device, *, share: bool = True) -> Packed:
    """Lay items into [shared prompts | rest of the context | noisy images]; without ``share`` every item has its own.

    An image enters the context only if something after it needs it.
    """
    beginnings, owners = shared_beginnings(items) if share else ([], [])
    prompts = [RowBuilder(config) for _ in beginnings]
    for prompt, segments in zip(prompts, beginnings, strict=True):
        for segment in segments:
            lay_context(prompt, segment)
    contexts, texts, images = [], [], []
    for row, item in enumerate(items):
        context, first = RowBuilder(config), 0
        if prompts:
            prompt, first = prompts[owners[row]], len(beginnings[owners[row]])
            context = RowBuilder(config, prompt.rope, prompt.order, prompt.segment)
        spans = _lay_item(row, item, context, first)
        contexts.append(context)
        texts.append(spans[0])
        images.append(spans[1])
    queries = [span for spans in images for span in spans]
    rows = torch.tensor(owners, device=device) if prompts else None
    return Packed(
        prompt=build_block(prompts, config.latent_dim, device) if prompts else None,
        context=build_block(contexts, config.latent_dim, device, continues=rows),
        noise=noise_block(queries, config, device) if queries else None,
        texts=tuple(texts),
        images=tuple(images),
    )
