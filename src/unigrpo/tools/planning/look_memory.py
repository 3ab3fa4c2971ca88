"""Memory of looks and of given pictures, in bytes on one GPU: what is kept of them, and what reading them works with.

Source: docs/scaling.md.
"""

from __future__ import annotations

from unigrpo.tools.planning.looks import LookSizes
from unigrpo.tools.planning.workload import Workload

FP32 = 4


def looked_at(work: Workload) -> float:
    """What a row keeps of a look: the drawn pixels as bytes, the latents and the patches that it read."""
    return 3 * work.pixels + _read(work, work.look)


def given(work: Workload) -> float:
    """What a prompt with pictures keeps of them: their pixels as bytes, and for every part of a group that is drawn
    together the latents and the patches that it read."""
    return sum(3 * look.pixels + work.parts * _read(work, look) for look in work.given)


def _read(work: Workload, look: LookSizes) -> float:
    s = work.sizes
    patches = look.patches * s.vision.patch_dim if s.vision else 0
    return FP32 * (look.latents * s.latent_dim + patches)


def reading(work: Workload) -> float:
    """Working memory of reading prompts with pictures: each is encoded alone, with three tensors of the widest kind;
    then all tokens of the prompts that are drawn together go through a layer, as those of a look."""
    if not work.given or work.supervised:
        return 0.0
    s, c, own = work.sizes, work.compute, work.before
    rows = max(1, work.drawn // work.group)
    layer = own * (2 * s.intermediate + 6 * s.hidden + 2 * s.kv + own) + 2 * s.kv * own
    patches = rows * sum(look.patches for look in work.given)
    seen = patches * (2 * s.vision.intermediate + 6 * s.vision.hidden) if s.vision else 0
    widest = 3 * s.autoencoder.widest if s.autoencoder else 0.0
    return c * max(rows * layer, seen, widest * max(look.pixels for look in work.given))


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
