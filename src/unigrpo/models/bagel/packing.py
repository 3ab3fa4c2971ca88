"""From replay items to blocks: shared prompts and thoughts, what follows them, and one row per noisy copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from unigrpo.models.bagel.blocks import (
    NOISE,
    Block,
    RowBuilder,
    Tokens,
    build_block,
    lay_context,
    lay_rows,
    require_grid,
)
from unigrpo.models.bagel.config import BagelConfig
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.trajectory import Image, Segment, Text, in_context


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

    prompt: the distinct beginnings that several items share (None: nothing is shared); context: the rest of what is
    read or scored, a row an item, but one for items that share a thinking (``rows``: the row of every item); noise: one
    row per noisy copy (None without queries), in the order of ``images``. texts: by context row; images: by item.
    """

    prompt: Block | None
    context: Block
    noise: Block | None
    rows: tuple[int, ...]
    texts: tuple[tuple[TextSpan, ...], ...]
    images: tuple[tuple[NoiseSpan, ...], ...]

    @property
    def blocks(self) -> list[Block]:
        """The blocks that there are, in the order in which they see each other."""
        return [block for block in (self.prompt, self.context, self.noise) if block is not None]


def needed(item: ReplayItem) -> int:
    """How many leading segments enter the context: up to the last text, and all before a query."""
    last_text = next((i for i in range(len(item.segments), 0, -1) if isinstance(item.segments[i - 1], Text)), 0)
    return max([last_text, *(query.segment for query in item.queries)])


def given(item: ReplayItem) -> tuple[Segment, ...]:
    """The leading segments of the context that are only read: before the first scored text and the first query."""
    end = min([needed(item), *(query.segment for query in item.queries)])
    read = item.segments[:end]
    return read[: next((i for i, s in enumerate(read) if isinstance(s, Text) and s.scored), end)]


def shared_beginnings(items: Sequence[ReplayItem]) -> tuple[list[tuple[Segment, ...]], list[int]]:
    """The distinct beginnings (see ``given``), and for every item which one is its own; ([], []) if none is shared.

    Texts are the same where their ids are (the members of a group hold one object), pictures where they are one object.
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
    read_again = any(distinct[owner] and times > 1 for owner, times in Counter(owners).items())
    return (distinct, owners) if read_again else ([], [])


def shared_thinking(item: ReplayItem, first: int) -> tuple[int, ...] | None:
    """What tells the context of an item from ``first`` on, if it scores a text that others may hold too.

    None otherwise. A thinking is the same where its ids are one object (several pictures were drawn on it).
    """
    rest = item.segments[first : needed(item)]
    if not any(isinstance(segment, Text) and segment.scored for segment in rest):
        return None
    return tuple(id(segment.ids) if isinstance(segment, Text) else id(segment) for segment in rest)


def _lay_item(
    row: int, item: ReplayItem, builder: RowBuilder, first: int
) -> tuple[tuple[TextSpan, ...], tuple[NoiseSpan, ...]]:
    """Lay the segments from ``first`` on into the context, and note where the queries' noisy copies belong."""
    texts, images, end = [], {}, needed(item)
    if any(not 0 <= query.segment < len(item.segments) for query in item.queries):
        asked = ", ".join(str(query.segment) for query in item.queries)
        raise ValueError(
            f"velocities were asked for segments {asked} of an item that has {len(item.segments)} segments"
        )
    for index, segment in enumerate(item.segments[first:], first):
        for number, query in enumerate(item.queries):
            if query.segment == index:
                if not isinstance(segment, Image):
                    kind = type(segment).__name__.lower()
                    raise ValueError(f"velocities were asked for segment {index}, which is a {kind} and no image")
                images[number] = NoiseSpan(row, query, segment.grid, builder.rope, builder.order, builder.segment)
                builder.leave_room(query.x.shape[1])  # the clean copy comes after its noisy ones
        if index < end and in_context(segment):
            start = lay_context(builder, segment)
            if isinstance(segment, Text) and segment.scored:
                texts.append(TextSpan(start, segment))
    return tuple(texts), tuple(images[number] for number in range(len(item.queries)))


def noise_block(spans: Sequence[NoiseSpan], config: BagelConfig, device: torch.device) -> Block:
    """One row per noisy copy: its two markers and its n latents, at one rope position, visible to itself alone."""
    for span in spans:
        require_grid(span.num_tokens, span.grid)
    facts = torch.tensor([(s.row, s.rope, s.order, s.segment, s.num_tokens, s.grid[1], s.copies) for s in spans])
    row, rope, order, segment, n, columns = facts[:, :-1].repeat_interleave(facts[:, -1], 0).to(device).T[:, :, None]
    width, copies = max(span.num_tokens for span in spans), row.shape[0]
    j = torch.arange(width, device=device)
    latent_order = torch.where(j < n, order + 1 + j, -1)
    orders = torch.cat([order, order + n + 1, latent_order], dim=1)
    x = [s.query.x if s.num_tokens == width else F.pad(s.query.x, (0, 0, 0, width - s.num_tokens)) for s in spans]
    return Block(
        ids=torch.tensor([config.vision_start_id, config.vision_end_id], device=device).expand(copies, 2),
        latents=torch.cat(x).to(device, torch.float32),
        t=torch.cat([s.query.t for s in spans]).to(device, torch.float32)[:, None],
        places=torch.where(j < n, j // columns * config.max_latent_size + j % columns, 0),
        rope=rope.expand(copies, width + 2),
        tokens=Tokens(orders, segment.expand_as(orders), torch.full_like(orders, NOISE), orders >= 0),
        rows=row[:, 0],
        alike=True,
    )


def pack(items: Sequence[ReplayItem], config: BagelConfig, device: torch.device, *, plain: bool = False) -> Packed:
    """Lay items into [shared prompts | rest of the context | noisy images], with the padding of words left out.

    An image enters the context only if something after it needs it. ``plain``: nothing is shared, and padding stays.
    """
    beginnings, owners = ([], []) if plain else shared_beginnings(items)
    prompts = lay_rows(beginnings, config)
    contexts, texts, images, continued, rows = [], [], [], [], []
    found: dict[tuple[int, tuple[int, ...]], int] = {}
    for number, item in enumerate(items):
        context, first, thinking = RowBuilder(config), 0, None
        if prompts:
            prompt, first = prompts[owners[number]], len(beginnings[owners[number]])
            context = RowBuilder(config, prompt.rope, prompt.order, prompt.segment)
            thinking = shared_thinking(item, first)
        row = len(contexts) if thinking is None else found.setdefault((owners[number], thinking), len(contexts))
        spans = _lay_item(row, item, context, first)
        if row == len(contexts):
            contexts.append(context)
            texts.append(spans[0])
            continued.append(owners[number] if prompts else 0)
        rows.append(row)
        images.append(spans[1])
    queries = [span for spans in images for span in spans]
    begun = torch.tensor(continued, device=device) if prompts else None
    return Packed(
        prompt=build_block(prompts, config.latent_dim, device, compact=True) if prompts else None,
        context=build_block(contexts, config.latent_dim, device, continues=begun, compact=not plain),
        noise=noise_block(queries, config, device) if queries else None,
        rows=tuple(rows),
        texts=tuple(texts),
        images=tuple(images),
    )
