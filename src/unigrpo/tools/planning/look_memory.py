"""Memory of looks, in bytes on one GPU: what a row keeps of them, and what a look works with (docs/scaling.md)."""

from __future__ import annotations

from unigrpo.tools.planning.workload import Workload

FP32 = 4


def looked_at(work: Workload) -> float:
    """What a row keeps of a look: the drawn pixels as bytes, the latents and the patches that it read."""
    s = work.sizes
    patches = work.look.patches * s.vision.patch_dim if s.vision else 0
    return 3 * work.pixels + FP32 * (work.look.latents * s.latent_dim + patches)


def looking(work: Workload, decoding: float) -> float:
    """Working memory of a look: the rooms of the path are still there, and beside them first the pixels are decoded
    and encoded, then the look's tokens go through a layer: c ((2 I + 6 H + 2 kv) tokens + keys tokens) for every row,
    and all layers' new keys and values of the cache, one layer of old ones."""
    if work.rounds == 1:
        return 0.0
    s, c, own = work.sizes, work.compute, work.look.tokens
    rooms = work.drawn * c * 2 * s.kv * s.layers * (work.context_of(work.looks) + work.image_tokens + 2)
    keys = work.context_of(work.looks) + own
    layer = own * (2 * s.intermediate + 6 * s.hidden + 2 * s.kv + keys) + 2 * s.kv * keys
    seen = work.look.patches * (2 * s.vision.intermediate + 6 * s.vision.hidden) if s.vision else 0
    return rooms + max(decoding, work.drawn * c * max(layer, seen))
