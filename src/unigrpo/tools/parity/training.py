"""Parity of training: both packed samples, their masks, hidden states, losses, and the gradients of every parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unigrpo import flow
from unigrpo.models.bagel.autoencoder import patchify
from unigrpo.models.bagel.blocks import Tokens, allowed
from unigrpo.models.bagel.packing import Packed, pack
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.tools.parity.golden import TEXT_TOLERANCE, TOLERANCE, Check, Golden, difference
from unigrpo.tools.parity.seeing import view
from unigrpo.trajectory import Image, Text


def items(golden: Golden) -> list[ReplayItem]:
    """The two samples: [system prompt think NOISE] and [clean, view, prompt[:5], NOISE, its clean copy, view,
    system[:3], NOISE]."""
    images, noisy = _images(golden)
    system, prompt = golden.prompt
    think = golden.text("think", target=True)
    first = ReplayItem((system, prompt, think, images[0]), (VelocityQuery(3, *noisy[0]),))
    seen = view(golden, "train.vit_pixels")
    begin, again = Text(prompt.ids[:5]), Text(system.ids[:3], target=True)
    segments = (images[1], seen, begin, images[3], seen, again, images[4])
    return [first, ReplayItem(segments, (VelocityQuery(3, *noisy[2]), VelocityQuery(6, *noisy[4])))]


def _images(golden: Golden) -> tuple[list[Image], list[tuple[Tensor, Tensor]]]:
    """The five pictures of the packed batch, in order, each clean and as x_t at its own t."""
    start, images, noisy = 0, [], []
    for latents, grid in zip(_clean(golden), golden.image_grids, strict=True):
        end = start + latents.shape[0]
        t = golden["train.shifted_timesteps"][start : start + 1]
        x = flow.interpolate(latents[None], golden["train.noise"][None, start:end], t).float()
        images.append(Image(latents, grid))
        noisy.append((x, t))
        start = end
    return images, noisy


def _clean(golden: Golden) -> list[Tensor]:
    """The latents [n, d] of the five pictures, without the padding to the largest."""
    p, padded = golden.policy.config.latent_patch_size, golden["train.padded_latent"]
    return [patchify(padded[i : i + 1, :, : r * p, : c * p], p)[0] for i, (r, c) in enumerate(golden.image_grids)]


@dataclass(frozen=True)
class Sequence:
    """The tokens of one sample in their order: hidden states [L, H], rope [L], and the attention facts [1, L]."""

    hidden: Tensor
    rope: Tensor
    tokens: Tokens


def sequences(packed: Packed, streams: list[tuple[Tensor, Tensor]], count: int) -> list[Sequence]:
    """Put the blocks' tokens of every sample back into one sequence."""
    return [_sequence(packed, streams, sample) for sample in range(count)]


def _sequence(packed: Packed, streams: list[tuple[Tensor, Tensor]], sample: int) -> Sequence:
    hidden, facts = [], []
    for block, (und, gen) in zip(packed.blocks, streams, strict=True):
        owners = torch.arange(und.shape[0]) if block.rows is None else block.rows
        mine, tokens = owners == sample, block.tokens
        hidden.append(torch.cat([und, gen], dim=1)[mine].flatten(0, 1))
        columns = torch.stack([tokens.order, tokens.segment, tokens.mode, tokens.valid.long(), block.rope])
        facts.append(columns[:, mine].flatten(1))
    table = torch.cat(facts, dim=1)
    kept = table[0].argsort()[int((table[3] == 0).sum()) :]  # padding has order -1
    order, segment, mode, valid, rope = table[:, kept]
    tokens = Tokens(order[None], segment[None], mode[None], valid[None].bool())
    return Sequence(torch.cat(hidden)[kept], rope, tokens)


def training(golden: Golden) -> Iterator[Check]:
    """Positions, masks, hidden states, losses and gradients of the packed training forward."""
    policy = golden.policy
    model = policy.model.requires_grad_(True)
    for table in (model.latent_pos_embed, model.vit_pos_embed):
        table.requires_grad_(False)
    packed = pack(items(golden), policy.config, model.device)
    samples = sequences(packed, model(packed.blocks), len(golden.sample_lengths))
    yield Check(
        "train rope positions",
        difference(torch.cat([sample.rope for sample in samples]), golden["train.packed_position_ids"]),
        0,
    )
    for index, sample in enumerate(samples):
        wrong = allowed(sample.tokens, sample.tokens)[0] != golden[f"train.allowed_{index}"]
        yield Check(f"train mask {index} (wrong places)", float(wrong.sum()), 0)
    hidden = torch.cat([sample.hidden for sample in samples])
    yield Check("train hidden states", difference(hidden, golden["train.out.last_hidden_state"]), TOLERANCE)
    yield from _losses(golden, hidden)
    yield from _gradients(golden)


def _losses(golden: Golden, hidden: Tensor) -> Iterator[Check]:
    """CE and squared error, and the backward pass of their sum."""
    model = golden.policy.model
    logits = model.logits(hidden[golden["train.ce_loss_indexes"]])
    yield Check("train CE logits", difference(logits, golden["train.out.ce_logits"]), TEXT_TOLERANCE)
    ce = F.cross_entropy(logits, golden["train.packed_label_ids"], reduction="none")
    yield Check("train CE", difference(ce, golden["train.out.ce"]), TEXT_TOLERANCE)
    v = model.velocity_head(hidden[golden["train.mse_loss_indexes"]])
    yield Check("train velocities", difference(v, golden["train.out.velocity_pred"]), TOLERANCE)
    squared = (v - _targets(golden)).square()
    yield Check("train squared error", difference(squared, golden["train.out.mse"]), TOLERANCE)
    loss = ce.mean() + squared.mean(-1).mean()
    yield Check("train loss", difference(loss, golden["train.out.loss"]), TOLERANCE)
    model.zero_grad()
    loss.backward()


def _targets(golden: Golden) -> Tensor:
    """eps - x_0 of the noise tokens (those whose t is not 0), in order."""
    return (golden["train.noise"] - torch.cat(_clean(golden)))[golden["train.shifted_timesteps"] > 0]


def _gradients(golden: Golden) -> Iterator[Check]:
    """Errors relative to max(1, norm): the stored tensors element by element, and the norm of every parameter."""
    meta = golden.values["meta"]
    (norms,) = (value for key, value in meta.items() if key.startswith("train_grad_norms"))
    parameters = dict(golden.policy.model.named_parameters())
    stored = {name.removeprefix("train.grad."): g for name, g in golden.data.items() if name.startswith("train.grad.")}
    for name, theirs in stored.items():
        ours = parameters[name].grad
        scale = max(1.0, float(theirs.norm()))
        error = float("inf") if ours is None else difference(ours, theirs) / scale
        yield Check(f"train gradient {_short(name)}", error, TOLERANCE)
    worst = 0.0
    for name, norm in norms.items():
        gradient = parameters[name].grad
        ours = 0.0 if gradient is None else float(gradient.norm())
        worst = max(worst, abs(ours - norm) / max(1.0, norm))
    yield Check(f"train gradient norms ({len(norms)} tensors)", worst, TOLERANCE)
    touched = [n for n in meta["train_params_without_grad"] if parameters[n].grad is not None]
    yield Check("train frozen tensors with a gradient", float(len(touched)), 0)


def _short(name: str) -> str:
    return name.replace("language_model.model.", "").replace("self_attn.", "")
