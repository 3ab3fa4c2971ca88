"""Memory by part, in bytes on one GPU (docs/scaling.md derives every formula and says what it was measured against)."""

from __future__ import annotations

from collections.abc import Callable

from unigrpo.costs.sizes import EXPERTS, FREQUENCIES, Expert
from unigrpo.models.bagel.config import AT_ONCE
from unigrpo.tools.planning.look_memory import given, looked_at
from unigrpo.tools.planning.workload import Block, Training, Workload

FP32, INT64 = 4, 8
FOUR_BITS = 0.5 + 1 / 64 + FP32 / (64 * 256)
"""Bytes of a weight in NF4: blocks of 64 share a scale of 8 bits, and 256 scales one of their own."""
EIGHT_BIT_BLOCK = 256  # numbers that share one scale in an 8-bit moment
TILE = 512  # pixels of a side that a tiled autoencoder decodes at once
GATHERED_LAYERS = 2  # FSDP2: the one that runs and the one that is fetched


# What is there all the time


def _of_expert(work: Workload, expert: Expert, whole: Callable[[Expert], int]) -> int:
    training = work.training(expert)
    if training == "frozen":
        return 0
    return whole(expert) if training == "full" else work.sizes.adapter(work.rank)


def _of_experts(work: Workload, whole: Callable[[Expert], int]) -> int:
    return sum(_of_expert(work, expert, whole) for expert in EXPERTS)


def trained(work: Workload) -> int:
    """Numbers that are trained: whole experts, or their adapters (and the vision tower where a recipe asks for it)."""
    sizes = work.sizes
    seeing = sizes.vision_parameters + sizes.connector if work.train_vision else 0
    return _of_experts(work, sizes.expert) + seeing


def trained_outside(work: Workload) -> int:
    """Those of them that are in no layer: of whole experts embeddings, last norms, heads, and the vision tower."""
    sizes = work.sizes
    seeing = sizes.vision_parameters + sizes.connector if work.train_vision else 0
    layers = sizes.layers * sizes.layer_parameters
    return seeing + sum(sizes.expert(expert) - layers for expert in EXPERTS if work.training(expert) == "full")


def frozen(work: Workload) -> int:
    """Numbers that stay as they are, the autoencoder's included."""
    sizes = work.sizes
    adapters = sum(sizes.adapter(work.rank) for expert in EXPERTS if work.training(expert) == "lora")
    return sizes.model_parameters + sizes.autoencoder_parameters + adapters - trained(work)


def packed(work: Workload) -> int:
    """Frozen weights that are held in 4 bits: the matrices of both experts' MLPs."""
    return len(EXPERTS) * work.sizes.layers * work.sizes.mlp_matrices if work.quantized else 0


def unpacked(work: Workload) -> float:
    """The largest of those matrices, made anew in the computation's dtype for one product."""
    return work.compute * work.sizes.hidden * work.sizes.intermediate if work.quantized else 0.0


def weights(work: Workload) -> float:
    """What is trained in fp32, what is frozen in the computation's dtype or in 4 bits.

    Shared out, but for the autoencoder's.

    With ``offload`` the shares are in the CPU's memory.
    """
    whole = work.compute * work.sizes.autoencoder_parameters
    shared = FP32 * trained(work) + work.compute * (frozen(work) - packed(work)) + FOUR_BITS * packed(work) - whole
    return whole + (0.0 if work.layout.offload else shared / work.shards)


def on_device(work: Workload, total: float) -> float:
    """A GPU's share of what follows the trained weights; none with ``offload``."""
    return 0.0 if work.layout.offload else total / work.shards


def copied(work: Workload) -> float:
    """A frozen copy of a model: in the computation's dtype, norms and text head that are trained in fp32."""
    s, c = work.sizes, work.compute
    norms = s.layers * 2 * (s.hidden + s.head_dim) + s.hidden
    wide = sum(norms for expert in EXPERTS if work.training(expert) == "full")
    wide += s.vocab * s.hidden * (work.reasoning == "full")
    return c * s.model_parameters + (FP32 - c) * wide


def replica(work: Workload) -> float:
    """What a rollout draws with where weights are shared out: the whole model on every GPU, parked after it.

    Its layers are in the computation's dtype, as those that a replay gathers; what is outside of them is as it is held.
    """
    if not work.layout.has_replica or work.supervised:
        return 0.0
    c, everything = work.compute, trained(work) + frozen(work) - work.sizes.autoencoder_parameters
    return c * everything + (FP32 - c) * trained_outside(work)


def reference(work: Workload) -> float:
    """A frozen copy in the computation's dtype, trained norms and text head in fp32; none with adapters.

    Adapters are switched off instead.
    """
    if not work.reference or "full" not in (work.reasoning, work.denoising):
        return 0.0
    return work.compute * work.sizes.autoencoder_parameters + on_device(work, copied(work))


def gradients(work: Workload) -> float:
    """fp32, from the first backward pass to the next iteration's update."""
    return on_device(work, FP32 * trained(work))


def moments(work: Workload, kind: str) -> float:
    """AdamW's two moments: fp32, or one byte each and a scale for every 256 numbers."""
    each = FP32 if kind == "adamw" else 1 + FP32 / EIGHT_BIT_BLOCK
    return on_device(work, 2 * each * trained(work))


def step_working(work: Workload, kind: str) -> float:
    """One more fp32 tensor for every trained one of an expert while the optimizer steps (AdamW's square roots)."""
    if kind != "adamw":
        return 0.0
    return on_device(work, FP32 * max(_of_expert(work, expert, work.sizes.expert) for expert in EXPERTS))


# The packed replay


def token_bytes(work: Workload, training: Training) -> float:
    """What one layer keeps of one token for its backward pass, but keys and values (docs/scaling.md lists the tensors).

    5c H + c kv + 2c I + 4 (2 + 2 heads + kv heads), and where weights are learned what their products saw:
    full  3c H + c I;  lora  3c H + c I + 7c r.
    """
    s, c = work.sizes, work.compute
    h, inner = s.hidden, s.intermediate
    flow = c * (5 * h + s.kv + 2 * inner) + FP32 * (2 + 2 * s.heads + s.kv_heads)
    if training == "frozen":
        return flow
    return flow + c * (3 * h + inner + (7 * work.rank if training == "lora" else 0))


def layer_bytes(work: Workload, block: Block) -> float:
    """What one layer keeps of a block: its tokens by expert, and the keys and values that its attention saw.

    Noisy copies keep their own keys and values alone, unless the layer is computed again as a whole; so does a text
    that continues a shared prompt and has no noisy copies after it.
    """
    if not block.flows:
        return 0.0
    und, gen = token_bytes(work, work.reasoning), token_bytes(work, work.denoising)
    noisy = block.gen and not block.clean and not work.checkpointing
    keys = block.tokens if noisy or not work.images else block.keys
    return block.und * und + block.gen * gen + 2 * work.compute * work.sizes.kv * keys


def continued_bytes(work: Workload) -> float:
    """The keys and values of a layer that noisy copies continue, where no block keeps them for itself."""
    *before, last = work.blocks()
    kept = not before or not last.gen or (before[-1].flows and work.compute < FP32)
    return 0.0 if kept else 2 * work.compute * work.sizes.kv * before[-1].keys


def ends(work: Workload) -> float:
    """Kept once: masks, rope tables, ids, embedded times, and the final norms with what the heads saw."""
    s, c = work.sizes, work.compute
    flowing = [block for block in work.blocks() if block.flows]
    total = sum(
        c * (b.keys if b.gen and not b.clean else b.pairs) + FP32 * 2 * s.head_dim * b.tokens + INT64 * b.und
        for b in flowing
    )
    images = work.images
    latents = images * work.image_tokens
    total += latents * c * s.hidden + latents * FP32 * s.latent_dim
    if work.denoising == "full":
        total += latents * c * (s.hidden + s.latent_dim) + images * c * (FREQUENCIES + 2 * s.hidden)
        # of what is looked at every token has a time of its own
        total += work.looked * c * (s.latent_dim + FREQUENCIES + 2 * s.hidden)
        if work.checkpointing and c < FP32:  # the casts outside the layers stay
            total += c * (s.cast("denoising") - s.layers * s.layer_matrices)
    if work.text_flows:
        own = work.context_tokens - work.looks * work.look.latents - (work.before if work.shared else work.shown)
        total += work.replayed_texts * own * s.hidden * c
        total += work.scored * FP32 * s.hidden * (work.reasoning == "full")
    return total


def activations(work: Workload) -> float:
    """Kept between the forward and the backward pass of one micro-batch, but casts and logits."""
    blocks, s = work.blocks(), work.sizes
    if work.checkpointing:
        streams = s.hidden * sum(b.tokens for b in blocks if b.flows)
        handed_on = 2 * s.kv * sum(b.keys for b in blocks[:-1])
        return s.layers * work.compute * (streams + handed_on) + ends(work)
    kept = s.layers * (sum(layer_bytes(work, b) for b in blocks) + continued_bytes(work)) + ends(work)
    return kept - unused(work)


def unused(work: Workload) -> float:
    """What the last layer makes of pictures that were looked at, and nobody asks for: all but keys and values.

    Of a shared beginning with pictures so are its words.
    """
    s, c = work.sizes, work.compute
    und, gen = (token_bytes(work, how) - c * (2 * s.hidden + 2 * s.kv) for how in (work.reasoning, work.denoising))
    return sum(b.gen * gen + b.und * und * b.given for b in work.blocks() if b.clean and b.flows)


def casts(work: Workload) -> float:
    """Copies of fp32 weights in the computation's dtype, which autocast makes once a forward and the graph keeps.

    Where weights are shared out instead what FSDP2 gathers: two layers, and what belongs to no layer.
    """
    s, c = work.sizes, work.compute
    if work.shards > 1:
        rest = s.model_parameters - 2 * s.layers * s.layer_parameters
        full = sum(s.expert(e) - s.layers * s.layer_parameters for e in EXPERTS if work.training(e) == "full")
        return c * GATHERED_LAYERS * 2 * s.layer_parameters + FP32 * full + c * (rest - full)
    return autocast(work) + unpacked(work)


def autocast(work: Workload) -> float:
    """The casts of whole weights, where a forward meets them (one process, ``replicate``)."""
    return 0.0 if work.compute == FP32 else work.compute * _of_experts(work, work.sizes.cast)


def drawn_casts(work: Workload) -> float:
    """The casts while samples are drawn: a replica's layers need none, for they are held in the computation's dtype."""
    if not work.layout.has_replica:
        return casts(work)
    s = work.sizes
    ends = sum(s.cast(expert) - s.layers * s.layer_matrices for expert in EXPERTS if work.training(expert) == "full")
    return 0.0 if work.compute == FP32 else work.compute * ends


def scored_numbers(work: Workload) -> float:
    """Logits of one micro-batch: words that are scored times the vocabulary."""
    return work.sizes.vocab * work.scored


def logits(work: Workload) -> float:
    """fp32 log-probs over the vocabulary that are kept: none where the words are scored in pieces."""
    if not (work.actions and work.text_flows) or scored_numbers(work) > AT_ONCE:
        return 0.0
    return FP32 * scored_numbers(work)


def logits_working(work: Workload) -> float:
    """Two more tensors of the logits' size while they are made, and again in their backward pass; three in pieces.

    Beside them a piece of the text head in fp32, where it is frozen below fp32.
    """
    copied = work.reasoning != "full" and work.compute < FP32
    piece = min(AT_ONCE, work.sizes.vocab * work.sizes.hidden) * copied
    if scored_numbers(work) <= AT_ONCE:
        return FP32 * (2 * scored_numbers(work) + piece)
    return FP32 * (3 * AT_ONCE + piece)


def backward_working(work: Workload) -> float:
    """At most at once in the backward pass: a layer computed again and two tensors of I numbers a token, or the logits.

    The text's end also has one new gradient of the embeddings' (and the head's) size.
    """
    s, c, blocks = work.sizes, work.compute, work.blocks()
    again = work.checkpointing
    layer = max(layer_bytes(work, b) * again + 2 * c * s.intermediate * b.tokens * b.flows for b in blocks)
    layer += _of_experts(work, s.cast) / s.layers * c * (c < FP32) * again + unpacked(work)
    return max(layer, logits_working(work) + FP32 * s.vocab * s.hidden * (work.reasoning == "full"))


def update_peak(work: Workload) -> float:
    """Gradients, and the most that one micro-batch needs beside them: at the end of its forward or in its backward."""
    kept = activations(work) + logits(work)
    made = kept + casts(work) + logits_working(work)
    undone = kept + (0.0 if work.checkpointing and work.shards == 1 else casts(work)) + backward_working(work)
    return gradients(work) + max(made, undone)


# The rollout


def cache(work: Workload) -> float:
    """Keys and values of the rows drawn together: prompt, bos, as many tokens as thinking may take, eos."""
    s = work.sizes
    if work.supervised:
        return 0.0
    return work.drawn * work.context_tokens * (2 * work.compute * s.kv * s.layers + 1)


def trajectories(work: Workload) -> float:
    """What a rollout keeps: ids and log-probs, the latents, and of the K window steps x, x_next and the mean.

    Also what annotating adds: v_ref and the reference's log-probs; below fp32 a second mean and second log-probs.
    """
    latent = FP32 * work.image_tokens * work.sizes.latent_dim
    again, known = work.compute < FP32, work.reference
    if work.supervised:
        return work.rows * (INT64 * (work.prompt_tokens + work.actions) + latent * (1 + 2 * work.copies))
    per_step = latent * (3 + again + known) + 2 * INT64 + 2 * FP32
    text = work.actions * (INT64 + FP32 * (1 + again + known))
    each = work.rounds * (text + latent + work.copies * per_step) + work.looks * looked_at(work)
    return work.rows * each + work.prompts * (INT64 * work.prompt_tokens + given(work))


def drawing(work: Workload) -> float:
    """Working memory of one denoising forward: c ((2 I + 6 H) tokens + 2 kv (L keys + 2 tokens)) for every row.

    The path of a picture has room for all keys and values of all layers beside the cache.

    Adapters on the denoising expert hold two more tensors of I numbers.
    """
    if work.supervised:
        return 0.0
    s, own = work.sizes, work.image_tokens + 2
    keys, wide = work.context_tokens + own, 4 if work.denoising == "lora" else 2
    numbers = own * (wide * s.intermediate + 6 * s.hidden) + 2 * s.kv * (s.layers * keys + 2 * own)
    return work.drawn * work.compute * numbers


def decoding(work: Workload, mode: str) -> float:
    """Working memory of turning latents into pixels: three of the widest tensors, of all rows drawn or of one.

    Beside them two fp32 copies of the pixels of all rows drawn.
    """
    if work.sizes.autoencoder is None or work.supervised:
        return 0.0
    rows = work.drawn if mode == "whole" else 1
    pixels = min(work.pixels, TILE**2) if mode == "tiled" else work.pixels
    return rows * pixels * 3 * work.compute * work.sizes.autoencoder.widest + work.drawn * work.pixels * 3 * 2 * FP32
