"""Forwards, FLOPs and bytes of one iteration on one GPU (docs/scaling.md derives every formula)."""

from __future__ import annotations

from dataclasses import dataclass

from unigrpo.costs.counting import Counting, Packed
from unigrpo.tools.planning.memory import FOUR_BITS
from unigrpo.tools.planning.workload import Workload


@dataclass(frozen=True)
class Compute:
    """FLOPs of an iteration on one GPU by phase, how many forwards that is, and what a decoded step reads.

    prefill, think, draw, look, decode: the rollout, in ``portions`` of rows that are drawn together; score: replays
    without gradients (the reference's, and below fp32 the old values); update: forward and backward.
    """

    prefill: float
    think: float
    draw: float
    look: float
    decode: float
    score: float
    update: float
    think_steps: int
    draw_steps: int
    replays: int
    scored: int
    updates: int
    portions: int
    bytes_per_step: float

    @property
    def total(self) -> float:
        """All FLOPs."""
        return self.prefill + self.think + self.draw + self.look + self.decode + self.score + self.update


def counting(work: Workload) -> Counting:
    """The FLOPs of the recipe's model, trained as it says."""
    return Counting(
        work.sizes,
        work.reasoning,
        work.denoising,
        rank=work.rank,
        checkpointing=work.checkpointing,
        through_context=work.through_context,
    )


def _packed(work: Workload) -> Packed:
    """The packed replay of one micro-batch: its blocks, the scored tokens, the noisy images."""
    return Packed(work.blocks(), work.scored, work.images, work.image_tokens, work.looked, work.views)


def replay_forward(work: Workload) -> float:
    """The packed replay of one micro-batch."""
    return counting(work).replay(_packed(work))


def replay_backward(work: Workload) -> float:
    """The backward pass of one micro-batch, and the layers once more with activation checkpointing."""
    return counting(work).replay_backward(_packed(work))


def prefill(work: Workload) -> float:
    """Every prompt once per group, or once per part of a group that is drawn together; its pictures are encoded and
    seen. A guided prompt's branch without its words reads them too."""
    und, views = work.before - work.shown, tuple(look.patches for look in work.given if look.patches)
    read, s = counting(work).look(0, und, work.shown, views), work.sizes
    if work.given and work.branches > 1:
        read += counting(work).look(0, und - work.prompt_tokens, work.shown, views)
    encoded = sum(s.autoencoder.encode(look.pixels) for look in work.given) if s.autoencoder else 0.0
    return work.prompts * work.parts * (read + encoded)


def think_steps(work: Workload) -> int:
    """Forwards of one token per row: bos, the sampled tokens, eos; in every round."""
    return work.think_tokens * work.rounds


def think(work: Workload) -> float:
    """All rows decode together and each leaves when it has ended; every sampled word takes logits."""
    return sum(work.thinking(turn) * thinking(work, turn) for turn in range(1, work.rounds + 1))


def thinking(work: Workload, turn: int) -> float:
    """One thinking of a round."""
    own = work.think_tokens
    return counting(work).think(1, work.context_of(turn) - own, own, work.actions)


def velocity(work: Workload, turn: int = 1) -> float:
    """One denoising forward of one picture of a round: its tokens and two markers over the cached context."""
    return counting(work).velocity(work.context_of(turn), work.image_tokens)


def velocities(work: Workload) -> float:
    """One denoising forward of one row in every round."""
    return sum(velocity(work, turn) for turn in range(1, work.rounds + 1))


def look(work: Workload) -> float:
    """All looks of one row: the picture is encoded, seen by the tower, and read into the cache; a guided row's branch
    without the prompt reads it too (its context is left out)."""
    if work.rounds == 1:
        return 0.0
    views = (work.look.patches,) if work.look.patches else ()
    counts, und, autoencoder = counting(work), work.look.und, work.sizes.autoencoder
    read = sum(counts.look(work.context_of(turn), und, work.look.latents, views) for turn in range(1, work.rounds))
    encoded = autoencoder.encode(work.look.pixels) if autoencoder else 0.0
    return read * work.branches + work.looks * encoded


def bytes_per_step(work: Workload) -> float:
    """What one decoded step reads and writes: the reasoning weights, the text head, and half-full caches.

    A weight in the computation's dtype is read; one that is gathered for it is written and read. A trained one is fp32:
    below fp32, autocast reads it, writes a copy and reads that, 8 bytes for 2. The text head runs in fp32,
    so that a bf16 one is widened: 10 bytes for 2.
    """
    s, c = work.sizes, work.compute
    per_weight = c if work.reasoning != "full" or c == 4 else 4 + c + c
    if work.quantized:
        per_weight = c + (FOUR_BITS - c) * s.mlp_matrices / s.layer_parameters
    if work.shards > 1 and not work.layout.has_replica:
        per_weight = 2 * c
    head = 4 if work.reasoning == "full" or c == 4 else c + 4 + 4
    adapters = s.adapter(work.rank) * (4 + 2 * c if c < 4 else 4) if work.reasoning == "lora" else 0
    read = [work.thinking(n) * (work.context_of(n) - work.think_tokens / 2) for n in range(1, work.rounds + 1)]
    keys = work.drawn / work.rows * sum(read) / work.rounds * 2 * c * s.kv * s.layers
    return s.layers * s.layer_parameters * per_weight + s.vocab * s.hidden * head + adapters + keys


def compute(work: Workload) -> Compute:
    """All of an iteration on one GPU, as ``trainer.iterate`` does it."""
    forward, backward = replay_forward(work), replay_backward(work)
    replays = -(-work.rows // work.micro)
    autoencoder = work.sizes.autoencoder
    rl = not work.supervised
    annotating = work.reference + work.rescored
    decode = work.rows * work.rounds * autoencoder.flops(work.pixels) if autoencoder and rl else 0.0
    # the decoder is frozen: forward, and backward into the latents alone
    through_decoder = 2 * decode * work.passes if work.through_decoder else 0.0
    return Compute(
        prefill=prefill(work) if rl else 0.0,
        think=think(work) if rl and work.actions else 0.0,
        draw=work.rows * work.steps * work.branches * velocities(work),
        look=work.rows * look(work),
        decode=decode,
        score=annotating * replays * forward,
        update=work.passes * replays * (forward + backward) + through_decoder,
        think_steps=think_steps(work) if rl else 0,
        draw_steps=work.steps * work.rounds,
        replays=replays,
        scored=annotating * replays,
        updates=work.passes * work.minibatches,
        portions=work.portions,
        bytes_per_step=bytes_per_step(work) if rl and work.actions else 0.0,
    )
