"""A BAGEL of the real (or a tiny) size with random weights, whose thinking ends where UniRL saw it end."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import unigrpo.models.bagel.thinking as bagel_thinking
from unigrpo import build
from unigrpo.costs.sizes import BAGEL_7B, ModelSizes
from unigrpo.models.bagel.config import BagelConfig
from unigrpo.models.bagel.sampling import log_distribution, sample
from unigrpo.models.bagel.transformer import BagelModel, PositionTable, sincos_table
from unigrpo.models.bagel_files.flux import FluxAutoencoder, FluxConfig
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.bagel_files.tokenizer import special_ids, train_tiny_tokenizer
from unigrpo.policy import Context
from unigrpo.recipe import Recipe, load_recipe
from unigrpo.training.lora import Adapter, WithoutAdapter
from unigrpo.training.trainer import RunComponents, Trainer
from unigrpo.trajectory import Text

RECIPE = "bagel/unigrpo-lora-1gpu"
MEAN, P99, LONGEST = 217, 577, 1024  # tokens of a thinking, by UniRL on BAGEL
TINY = ModelSizes(576, 64, 160, 3, 4, 2, 16, latent_dim=64, pixels_per_token=16, max_latent_size=64)


@dataclass
class Scale:
    """What differs between the real model on a GPU and the tiny one on a CPU."""

    sizes: ModelSizes
    flux: FluxConfig
    sides: tuple[int, int]
    batches: tuple[int, int]
    drawn: tuple[int, int]  # pictures of one forward, by side
    rank: int
    prompts: int
    group: int
    shorter: int  # thinking is so many times shorter
    repeats: int


REAL = Scale(replace(BAGEL_7B, vision=None), FluxConfig(), (512, 1024), (24, 96), (24, 8), 64, 2, 12, 1, 3)
SMALL = Scale(TINY, FluxConfig(ch=32, multipliers=(1, 1, 1, 1)), (64, 128), (2, 4), (2, 1), 4, 1, 2, 64, 1)


def lengths(count: int, shorter: int = 1) -> list[int]:
    """``count`` lengths at even quantiles of a log-normal with UniRL's mean and p99, long and short ones mixed."""
    z = statistics.NormalDist().inv_cdf(0.99)
    spread = z - math.sqrt(z * z - 2 * math.log(P99 / MEAN))
    centre = math.log(MEAN) - spread**2 / 2
    quantiles = [statistics.NormalDist(centre, spread).inv_cdf((i + 0.5) / count) for i in range(count)]
    found = [max(2, min(LONGEST, round(math.exp(q))) // shorter) for q in quantiles]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return [found[i] for i in order]


class Ending(Bagel):
    """A BAGEL whose thinkings end after given lengths; log-probs stay the model's own, as a replay gives them."""

    shorter = 1

    def think(self, context: Context, *, uniforms: Tensor, temperature: float) -> tuple[list[Text], Any]:
        """Think; row i ends after the i-th of so many lengths."""
        eos, ends = self.config.eos_token_id, torch.tensor(lengths(len(uniforms), self.shorter))
        ends, step = ends.clamp(max=uniforms.shape[1]).to(self.model.device), 0

        def ended(logits: Tensor, drawn: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
            nonlocal step
            # rows that have ended leave, and others take their places: a row is known by what it draws with
            rows = (drawn[:, None] == uniforms[:, step].to(drawn.device)).int().argmax(1)
            step += 1
            ids, _ = sample(logits, drawn, temperature)
            ids = torch.where(ids == eos, (eos + 1) % logits.shape[-1], ids)
            ids = torch.where(ends[rows] <= step, eos, ids)
            return ids, log_distribution(logits, temperature).gather(1, ids[:, None])[:, 0]

        with mock.patch.object(bagel_thinking, "sample", ended):
            return super().think(context, uniforms=uniforms, temperature=temperature)


def random_bagel(scale: Scale, device: torch.device) -> Ending:
    """A BAGEL of these sizes without a vision tower, its weights drawn on the device in bfloat16."""
    tokenizer, sizes, flux, dtype = train_tiny_tokenizer(), scale.sizes, scale.flux, torch.bfloat16
    ids = special_ids(tokenizer)
    values = BagelConfig(
        vocab_size=sizes.vocab,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        num_kv_heads=sizes.kv_heads,
        latent_channels=flux.latent_channels,
        max_latent_size=sizes.max_latent_size,
        bos_token_id=ids.bos,
        eos_token_id=ids.eos,
        vision_start_id=ids.vision_start,
        vision_end_id=ids.vision_end,
        image_size=(scale.sides[0], scale.sides[0]),
        vae_downsample=flux.downsample,
        system_prompt="think about the picture, then draw it",
    )
    with torch.device("meta"):
        model, autoencoder = BagelModel(values), FluxAutoencoder(flux, "sliced")
    fill(model.to(dtype).to_empty(device=device), device)
    fill(autoencoder.to_empty(device=device), device)
    for table in (m for m in model.modules() if isinstance(m, PositionTable)):
        table.pos_embed.data.copy_(sincos_table(values.max_latent_size, values.hidden_size))
    policy = Ending(
        model.requires_grad_(False), tokenizer, autoencoder.requires_grad_(False).eval(), compute_dtype=dtype
    )
    policy.shorter = scale.shorter
    return policy


@torch.no_grad()
def fill(module: nn.Module, device: torch.device) -> None:
    """N(0, 1 / fan in) matrices, ones for norms, zeros for biases."""
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)


def recipe_of(scale: Scale) -> Recipe:
    """The LoRA recipe for one GPU, with fewer samples an iteration."""
    overrides = {
        "rollout.image_size": scale.sides[0],
        "rollout.max_think_tokens": max(4, LONGEST // scale.shorter),
        "rollout.batch": scale.prompts * scale.group,
        "data.prompts_per_iteration": scale.prompts,
        "data.group_size": scale.group,
        "model.lora.rank": scale.rank,
    }
    return load_recipe(RECIPE, [f"--{key}={value}" for key, value in overrides.items()])


def trainer_of(recipe: Recipe, policy: Bagel, folder: Path) -> Trainer:
    """The trainer of a recipe with adapters, around a model that is already there."""
    lora = recipe.model.lora
    assert lora is not None
    targets = policy.adapter_targets(lora.experts)
    adapter = Adapter.create(policy.model, targets, rank=lora.rank, alpha=lora.alpha, seed=0, base_name=None)
    policy.model.activation_checkpointing = recipe.model.activation_checkpointing
    suite, reward = build.suite(recipe.eval.prompts), build.reward(recipe.reward.validation)
    parts = RunComponents(
        policy=policy,
        reference=WithoutAdapter(policy, adapter),
        method=recipe.method,
        source=build.source(recipe),
        evaluator=build.RecipeEvaluator(recipe, suite, reward),
        snapshot=adapter.snapshot,
        load_model=adapter.load_weights,
        compute_dtype=policy.compute_dtype,
    )
    return Trainer(recipe, parts, folder)
