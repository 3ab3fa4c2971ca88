"""One GPU, BAGEL at its real size: memory, seconds per phase, images per second and MFU of LoRA training at 512 px.

    python benchmarks/bagel_7b.py                       # 7B sizes, random weights made on the GPU (30 GB in bfloat16)
    python benchmarks/bagel_7b.py --tiny                # the same code on a CPU in seconds, at the tiny model's sizes

Speed does not depend on the values of weights, so none are loaded: a random model never ends its thinking, which makes
every thinking as long as --think-tokens (the longest that the recipe allows would be the worst case). One iteration
warms up, the next --iterations are timed; results go to --out as JSON, beside the estimates of `train --dry-run`.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unigrpo import build
from unigrpo.models.bagel.config import BagelConfig
from unigrpo.models.bagel.transformer import BagelModel, PositionTable, sincos_table
from unigrpo.models.bagel_files.flux import FluxAutoencoder, FluxConfig
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.bagel_files.tokenizer import special_ids, train_tiny_tokenizer
from unigrpo.recipe import PromptData, Recipe, load_recipe
from unigrpo.reports.curves import ASIDE
from unigrpo.tools.planning.scaling import estimate
from unigrpo.tools.planning.sizes import BAGEL_7B, ModelSizes
from unigrpo.training.clock import Clock
from unigrpo.training.lora import Adapter, WithoutAdapter
from unigrpo.training.trainer import RunComponents, Trainer

RECIPE, PEAK_TFLOPS = "bagel/unigrpo-lora-1gpu", 989.0  # an H100's or H200's, dense bfloat16


class SyncedClock(Clock):
    """A clock that waits for the GPU at both ends of a phase, and notes the most memory that it took."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.peak: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block, with all the work that it started."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        with super().phase(name):
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize()
        taken = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else max_rss()
        self.peak[name] = max(self.peak.get(name, 0), taken)


def max_rss() -> int:
    """The most memory that this process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def random_bagel(sizes: ModelSizes, flux: FluxConfig, side: int, device: torch.device, dtype: torch.dtype) -> Bagel:
    """A BAGEL of these sizes without a vision tower, its weights drawn on the device."""
    tokenizer = train_tiny_tokenizer()
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
        image_size=(side, side),
        vae_downsample=flux.downsample,
        system_prompt="think about the picture, then draw it",
    )
    with torch.device("meta"):
        model, autoencoder = BagelModel(values), FluxAutoencoder(flux, "sliced")
    fill(model.to(dtype).to_empty(device=device), device)
    fill(autoencoder.to_empty(device=device), device)
    for table in (m for m in model.modules() if isinstance(m, PositionTable)):
        table.pos_embed.data.copy_(sincos_table(values.max_latent_size, values.hidden_size))
    return Bagel(model.requires_grad_(False), tokenizer, autoencoder.requires_grad_(False).eval(), compute_dtype=dtype)


@torch.no_grad()
def fill(module: nn.Module, device: torch.device) -> None:
    """N(0, 1 / fan in) matrices, ones for norms, zeros for biases."""
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)


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
        save_model=adapter.save,
        load_model=adapter.load_weights,
        compute_dtype=policy.compute_dtype,
    )
    return Trainer(recipe, parts, folder)


def iterate(trainer: Trainer, iteration: int, clock: SyncedClock) -> None:
    """One iteration as ``Trainer.iterate`` does it, with a clock that waits."""
    collected = trainer.parts.source.collect(trainer.parts.policy, iteration, clock)
    with clock.phase("annotate"):
        batch, _ = trainer.annotate(collected, iteration)
    with clock.phase("update"):
        trainer.update(batch)


def measure(recipe: Recipe, sizes: ModelSizes, policy: Bagel, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time some iterations, and put the estimates beside them."""
    device, runs = policy.model.device, []
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(recipe, policy, Path(folder))
        for iteration in range(arguments.iterations + 1):
            clock = SyncedClock(device)
            iterate(trainer, iteration, clock)
            runs.append(clock)
    timed = runs[1:]
    seconds = {name: statistics.median(run.seconds[name] for run in timed) for name in timed[0].seconds}
    total = sum(spent for name, spent in seconds.items() if name not in ASIDE)
    expected = estimate(recipe, sizes, actions=arguments.think_tokens)
    assert isinstance(recipe.data, PromptData)
    images = recipe.data.prompts_per_iteration * recipe.data.group_size
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU ({platform.machine()})",
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "trained": sum(p.numel() for p in policy.model.parameters() if p.requires_grad),
        "think_tokens": arguments.think_tokens,
        "images": images,
        "seconds": seconds,
        "seconds_all": [run.seconds for run in timed],
        "images_per_second": images / total,
        "memory_gb": {name: max(run.peak[name] for run in timed) / 1e9 for name in timed[0].peak},
        "estimated_memory_gb": expected.memory.peak / 1e9,
        "tflop": expected.compute.total / 1e12,
        "floor_seconds": expected.seconds(tflops=arguments.tflops, mfu=1.0),
        "mfu": expected.compute.total / 1e12 / total / arguments.tflops,
        "tflops_peak": arguments.tflops,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", "--quick", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=2, help="prompts per iteration")
    parser.add_argument("--think-tokens", type=int, default=None, help="default 256, tiny 8")
    parser.add_argument("--side", type=int, default=None, help="pixels of a side; default 512, tiny 64")
    parser.add_argument("--tflops", type=float, default=PEAK_TFLOPS, help="of the GPU at its best")
    parser.add_argument("--out", type=Path, default=None, help="default benchmarks/results/bagel_7b.json; tiny: none")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("the 7B model needs a GPU (about 60 GB): give --tiny to try the script on a CPU")
    arguments.think_tokens = arguments.think_tokens or (8 if arguments.tiny else 256)
    side = arguments.side or (64 if arguments.tiny else 512)
    small = {"rank": 4, "group_size": 4, "batch": 4} if arguments.tiny else {"rank": 64, "group_size": 12, "batch": 24}
    overrides = {
        "rollout.image_size": side,
        "rollout.max_think_tokens": arguments.think_tokens,
        "rollout.batch": small["batch"],
        "data.prompts_per_iteration": arguments.prompts,
        "data.group_size": small["group_size"],
        "model.lora.rank": small["rank"],
    }
    recipe = load_recipe(RECIPE, [f"--{key}={value}" for key, value in overrides.items()])
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.tiny else "cpu")
    sizes, flux = (TINY, FluxConfig(ch=32, multipliers=(1, 1, 1, 1))) if arguments.tiny else (BAGEL_7B, FluxConfig())
    policy = random_bagel(sizes, flux, side, device, torch.bfloat16)
    result = {"command": " ".join(["benchmarks/bagel_7b.py", *_words(arguments)]), "overrides": overrides}
    result |= measure(recipe, sizes, policy, arguments)
    text = json.dumps(result, indent=1)
    print(text)
    out = arguments.out or (None if arguments.tiny else Path(__file__).parent / "results" / "bagel_7b.json")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")


def _words(arguments: argparse.Namespace) -> list[str]:
    given = {k: v for k, v in vars(arguments).items() if v not in (None, False)}
    return [f"--{k.replace('_', '-')}" + ("" if v is True else f" {v}") for k, v in given.items()]


TINY = ModelSizes(
    vocab=576,
    hidden=64,
    intermediate=160,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=16,
    latent_dim=64,
    pixels_per_token=16,
    max_latent_size=64,
)

if __name__ == "__main__":
    main()
