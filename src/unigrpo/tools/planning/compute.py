"""Forwards, FLOPs and bytes of one iteration on one GPU (docs/scaling.md derives every formula)."""

from __future__ import annotations

from dataclasses import dataclass

from unigrpo.tools.planning.sizes import FREQUENCIES, Expert
from unigrpo.tools.planning.workload import Block, Workload

FUSED_BACKWARD = 2.5  # a fused attention computes the scores again: five products for the forward's two


@dataclass(frozen=True)
class Compute:
    """FLOPs of an iteration on one GPU by phase, how many forwards that is, and what a decoded step reads.

    prefill, think, draw, decode: the rollout, in ``portions`` of rows that are drawn together; score: replays without
    gradients (the reference's, and below fp32 the old values); update: forward and backward.
    """

    prefill: float
    think: float
    draw: float
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
        return self.prefill + self.think + self.draw + self.decode + self.score + self.update


def _linear(work: Workload, expert: Expert) -> float:
    """FLOPs of one token in one layer's matrices, 2 per weight; adapters add theirs."""
    adapters = work.rank * work.sizes.adapter_sides() if work.training(expert) == "lora" else 0
    return 2 * (work.sizes.layer_matrices + adapters)


def _attention(work: Workload, pairs: float) -> float:
    """4 H per query and key in one layer: scores and weighted sum (masked pairs are computed too)."""
    return 4 * work.sizes.hidden * pairs


def _head(work: Workload, tokens: float) -> float:
    """2 H V per token whose next one is scored."""
    return 2 * work.sizes.hidden * work.sizes.vocab * tokens


def _latent_ends(work: Workload, images: float) -> float:
    """vae2llm and llm2vae per latent token, the time embedder once per image."""
    s = work.sizes
    return images * (4 * s.hidden * s.latent_dim * work.image_tokens + 2 * s.hidden * (FREQUENCIES + s.hidden))


def layers_forward(work: Workload, block: Block) -> float:
    """One block through all layers."""
    tokens = block.und * _linear(work, "reasoning") + block.gen * _linear(work, "denoising")
    return work.sizes.layers * (tokens + _attention(work, block.pairs))


def replay_forward(work: Workload) -> float:
    """The packed replay of one micro-batch: its blocks, the scored tokens, the noisy images."""
    layers = sum(layers_forward(work, block) for block in work.blocks())
    return layers + _head(work, work.replayed_texts * work.actions) + _latent_ends(work, work.micro * work.copies)


def _layers_backward(work: Workload, block: Block) -> float:
    """Through all layers: 1 forward for the inputs' gradients, 1 more for the weights' where they are trained.

    The markers of noisy images are und tokens of the image's loss, which sees reasoning weights as constants unless
    ``image_grad_through_context``.
    """
    if not block.flows:
        return 0.0
    total = FUSED_BACKWARD * _attention(work, block.pairs)
    experts: tuple[tuple[Expert, int], ...] = (("reasoning", block.und), ("denoising", block.gen))
    for expert, tokens in experts:
        training = work.training(expert)
        base = 2 * work.sizes.layer_matrices
        learned = {"full": base, "lora": _linear(work, expert) - base, "frozen": 0.0}[training]
        if expert == "reasoning" and block.gen and not work.through_context:
            learned = 0.0
        total += tokens * (_linear(work, expert) + learned)
    return work.sizes.layers * total


def _again(work: Workload, block: Block) -> float:
    """The layers computed again up to the last tensor that is asked for: without adapters, down's product is not."""
    s = work.sizes
    experts: tuple[tuple[Expert, int], ...] = (("reasoning", block.und), ("denoising", block.gen))
    tokens = sum(count for expert, count in experts if work.training(expert) != "lora")
    return layers_forward(work, block) - s.layers * 2 * s.hidden * s.intermediate * tokens


def replay_backward(work: Workload) -> float:
    """The backward pass of one micro-batch, and the layers once more with activation checkpointing."""
    blocks = work.blocks()
    layers = sum(_layers_backward(work, block) for block in blocks)
    if work.checkpointing:
        layers += sum(_again(work, block) for block in blocks if block.flows)
    head = _head(work, work.replayed_texts * work.actions) * work.text_trains * (1 + (work.reasoning == "full"))
    latents = work.micro * work.copies
    out = 2 * work.sizes.hidden * work.sizes.latent_dim * work.image_tokens * latents
    ends = {"full": 1.5 * _latent_ends(work, latents), "lora": out, "frozen": out}[work.denoising]
    return layers + head + ends


def prefill(work: Workload) -> float:
    """Every prompt once per group, or once per part of a group that is drawn together."""
    tokens = work.prompts * -(-work.group // work.drawn) * work.prompt_tokens
    return layers_forward(work, Block(tokens, 0, tokens * work.prompt_tokens, tokens, False))


def think_steps(work: Workload) -> int:
    """Forwards of one token per row: bos, the sampled tokens, eos."""
    return work.think_tokens


def think(work: Workload) -> float:
    """All rows decode together and each leaves when it has ended; every sampled word takes logits."""
    steps = think_steps(work)
    seen = steps * work.prompt_tokens + steps * (steps + 1) / 2
    tokens = work.thoughts * steps
    block = Block(tokens, 0, round(work.thoughts * seen), 0, False)
    return layers_forward(work, block) + _head(work, work.thoughts * work.actions)


def velocity(work: Workload) -> float:
    """One denoising forward of one picture: its tokens and two markers over the cached context."""
    own = work.image_tokens + 2
    block = Block(2, work.image_tokens, own * (work.context_tokens + own), 0, False)
    return layers_forward(work, block) + _latent_ends(work, 1)


def bytes_per_step(work: Workload) -> float:
    """What one decoded step reads and writes: the reasoning weights, the text head, and half-full caches.

    A weight in the computation's dtype is read; one that is gathered for it is written and read. A trained one is fp32:
    below fp32, autocast reads it, writes a copy and reads that, 8 bytes for 2. The text head runs in fp32,
    so that a bf16 one is widened: 10 bytes for 2.
    """
    s, c = work.sizes, work.compute
    per_weight = c if work.reasoning != "full" or c == 4 else 4 + c + c
    if work.shards > 1 and not work.layout.has_replica:
        per_weight = 2 * c
    head = 4 if work.reasoning == "full" or c == 4 else c + 4 + 4
    adapters = s.adapter(work.rank) * (4 + 2 * c if c < 4 else 4) if work.reasoning == "lora" else 0
    length = work.prompt_tokens + think_steps(work) / 2
    keys = work.drawn / work.each * length * 2 * c * s.kv * s.layers
    return s.layers * s.layer_parameters * per_weight + s.vocab * s.hidden * head + adapters + keys


def compute(work: Workload) -> Compute:
    """All of an iteration on one GPU, as ``trainer.iterate`` does it."""
    forward, backward = replay_forward(work), replay_backward(work)
    replays = -(-work.rows // work.micro)
    autoencoder = work.sizes.autoencoder
    rl = not work.supervised
    annotating = work.reference + work.rescored
    decode = work.rows * autoencoder.flops(work.pixels) if autoencoder and rl else 0.0
    # the decoder is frozen: forward, and backward into the latents alone
    through_decoder = 2 * decode * work.passes if work.through_decoder else 0.0
    return Compute(
        prefill=prefill(work) if rl else 0.0,
        think=think(work) if rl and work.actions else 0.0,
        draw=work.rows * work.steps * work.branches * velocity(work),
        decode=decode,
        score=annotating * replays * forward,
        update=work.passes * replays * (forward + backward) + through_decoder,
        think_steps=think_steps(work) if rl else 0,
        draw_steps=work.steps,
        replays=replays,
        scored=annotating * replays,
        updates=work.passes * work.minibatches,
        portions=-(-work.rows // work.drawn),
        bytes_per_step=bytes_per_step(work) if rl and work.actions else 0.0,
    )
