"""Writing texts word by word: rows that have ended leave the batch, so that a word costs what its own row costs."""

from __future__ import annotations

import torch
from torch import Tensor

from unigrpo.models.bagel.blocks import CAUSAL, Block
from unigrpo.models.bagel.cache import Cache
from unigrpo.models.bagel.layers import attends_wide, rope_tables
from unigrpo.models.bagel.sampling import sample
from unigrpo.models.bagel.slots import Slots, swap_rows
from unigrpo.models.bagel.transformer import BagelModel, plain_tokens
from unigrpo.trajectory import Text


def one_token(ids: Tensor, rope: Tensor, latent_dim: int) -> Block:
    """The block of one token a row, ids [B] at rope positions [B]."""
    batch, device = ids.shape[0], ids.device
    return Block(
        ids=ids[:, None],
        latents=torch.zeros((batch, 0, latent_dim), device=device),
        t=torch.zeros((batch, 0), device=device),
        places=ids.new_zeros((batch, 0)),
        rope=rope[:, None],
        tokens=plain_tokens(batch, 1, CAUSAL, device),
    )


def think(model: BagelModel, cache: Cache, uniforms: Tensor, temperature: float) -> list[Text]:
    """One text per row by inverse-CDF sampling with uniforms [B, cap]; the cache then holds ``bos ids eos`` too.

    eos is always fed, and is an action only where sampled. A row that has read its eos changes places with the last
    that writes on, and the batch becomes one shorter.
    """
    (batch, cap), config, device = uniforms.shape, model.config, model.device
    dtype = model.stream_dtype
    slots = Slots(cache, cap + 2, torch.float64 if attends_wide(dtype, device) else dtype)
    uniforms, rope = uniforms.to(device, copy=True), cache.rope.clone()
    token = torch.full((batch,), config.bos_token_id, device=device)
    ids = torch.zeros((batch, cap), dtype=torch.int64, device=device)
    scores = torch.zeros((batch, cap), dtype=torch.float32, device=device)
    order, fed, live = list(range(batch)), [0] * batch, batch
    for step in range(cap + 2):
        block = one_token(token, rope[:live] + step, config.latent_dim)
        slots.rope = rope_tables(block.rope, config.head_dim, config.rope_theta)
        hidden = model([block], slots)[0][0][:, 0]
        slots.length += 1
        ending = [row for row, end in enumerate((token == config.eos_token_id).tolist()) if end] if step else []
        for row in ending:
            fed[order[row]] = step + 1
        live -= len(ending)
        if not live:
            break
        gaps, last = [row for row in ending if row < live], set(ending)
        movers = [row for row in range(live, live + len(ending)) if row not in last]
        if gaps:
            slots.swap(gaps, movers)
            for rows in (uniforms, rope, ids, scores, hidden):
                swap_rows(rows, gaps, movers)
            for one, other in zip(gaps, movers, strict=True):
                order[one], order[other] = order[other], order[one]
        if step < cap:
            token, score = sample(model.logits(hidden[:live]), uniforms[:live, step], temperature)
            ids[:live, step], scores[:live, step] = token, score
        else:
            token = torch.full((live,), config.eos_token_id, device=device)
    slots.settle(cache, order, torch.tensor(fed, device=device))
    return _texts(ids.cpu(), scores.cpu(), order, fed, config.eos_token_id)


def _texts(ids: Tensor, scores: Tensor, order: list[int], fed: list[int], eos: int) -> list[Text]:
    """The texts in the order of the cache; ids and scores [B, cap] lie in that of the slots."""
    texts = {}
    for row, original in enumerate(order):
        count = min(fed[original] - 1, ids.shape[1])
        ended = bool(ids[row, count - 1] == eos)
        texts[original] = Text(ids[row, : count - ended].clone(), ended, scores[row, :count].clone())
    return [texts[original] for original in range(len(order))]
