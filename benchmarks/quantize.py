"""How far the gradient of LoRA adapters turns when the frozen base is held in 4 bits (model.quantize: nf4).

    OMP_NUM_THREADS=1 python benchmarks/quantize.py [--quick] [--hidden N] [--layers N] [--out FILE]

The same trajectories (drawn by the model as it is), the same advantages; old values and reference velocities are each
base's own, so that both are at the first update of a run. Measured on the shapes model, at the adapters' start (B = 0)
and with B drawn at random, for all matrices of the layers, for those of attention, and for those of the MLPs, which are
what model.quantize packs; and on a random BAGEL of --hidden and --layers, whose advantages are drawn, because nothing
judges its pictures. Needs bitsandbytes (the extra 4bit); without it the script says so and measures nothing.

    cosine   between the gradients of the whole and of the packed base, over all adapters of an expert
    size     norm of the gradient with the packed base over that with the whole one
    bytes    of all weights but the adapters, packed over whole
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unigrpo import build
from unigrpo.files import write_json_atomic
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files.checkpoint import load_autoencoder
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.micro import initialise, micro_config, micro_tokenizer
from unigrpo.objectives.method import targets_per_row
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Recipe, load_recipe
from unigrpo.training.annotating import annotate_reference, rescore
from unigrpo.training.clock import Clock
from unigrpo.training.gradients import Reached
from unigrpo.training.lora import Adapter, WithoutAdapter
from unigrpo.training.quantized import quantize, require
from unigrpo.training.replay import Batch
from unigrpo.training.update import accumulate
from unigrpo.trajectory import Trajectory
from unigrpo.worlds.shapes import vocabulary

RANK, MICRO = 16, 12
EXPERTS = ("reasoning", "denoising")
KINDS = {"all": "", "attention": "self_attn", "mlp": "mlp"}


def random_bagel(hidden: int, layers: int) -> Bagel:
    """A BAGEL with random weights, heads of 128 and the MLP's 5.3 times its width, as BAGEL-7B's."""
    autoencoder, words = load_autoencoder(build.builtin_folder("shapes-autoencoder")), vocabulary()
    tokenizer = micro_tokenizer(words)
    config = micro_config(tokenizer.inner.get_vocab_size(), autoencoder, hidden_size=hidden, num_layers=layers)
    inner, heads = round(hidden * 5.3 / 64) * 64, max(2, hidden // 128)
    model = BagelModel(replace(config, intermediate_size=inner, num_heads=heads, num_kv_heads=max(1, heads // 4)))
    initialise(model, 0)
    torch.nn.init.normal_(model.llm2vae.weight, std=hidden**-0.5, generator=torch.Generator().manual_seed(1))
    return Bagel(model, tokenizer, autoencoder)


def drawn(policy: Bagel, recipe: Recipe, judged: bool) -> list[Trajectory]:
    """Trajectories of the recipe's first prompts with their advantages, or with random ones."""
    found = build.source(recipe).collect(policy, 0, Clock()).trajectories
    if judged:
        return found
    values = torch.randn(len(found), generator=torch.Generator().manual_seed(2)).tolist()
    return [t.with_advantages(value, value) for t, value in zip(found, values, strict=True)]


def gradients(policy: Bagel, recipe: Recipe, found: Sequence[Trajectory], moved: float) -> dict[str, Tensor]:
    """The gradient of the first update by expert, as one vector, with adapters whose B is drawn with std ``moved``."""
    policy.module.requires_grad_(False)
    adapter = Adapter.create(
        policy.module, policy.adapter_targets(EXPERTS), rank=RANK, alpha=2 * RANK, seed=0, base_name=None
    )
    generator = torch.Generator().manual_seed(3)
    for name, parameter in adapter.parameters().items():
        if ".lora_B." in name and moved:
            parameter.data.normal_(0.0, moved, generator=generator)
    method, settings = recipe.method, {"micro_batch": MICRO, "temperature": recipe.rollout.temperature}
    queries = [method.queries(t, torch.Generator().manual_seed(4), shift=recipe.rollout.shift) for t in found]
    batch = annotate_reference(WithoutAdapter(policy, adapter), Batch(list(found), queries), **settings)
    batch, _ = rescore(policy, batch, **settings)
    rows = targets_per_row(batch.trajectories, batch.queries)
    for part in batch.pieces(MICRO):
        accumulate(
            policy, method, part, len(batch), temperature=settings["temperature"], per_row=rows, reached=Reached()
        )
    groups = policy.parameter_groups()
    return {
        expert: torch.cat([p.grad.flatten().double() for p in groups[expert].values() if p.grad is not None])
        for expert in EXPERTS
    }


def held(policy: Bagel) -> int:
    """Bytes of all weights."""
    return sum(tensor.nbytes for tensor in policy.module.state_dict().values())


def compared(policy: Bagel, recipe: Recipe, found: Sequence[Trajectory], kind: str, moved: float) -> dict[str, float]:
    """Cosine and size of the gradient by expert with some matrices packed, and the bytes that are left."""
    whole, packed = copy.deepcopy(policy), copy.deepcopy(policy)
    targets = [name for name in packed.adapter_targets(EXPERTS) if KINDS[kind] in name]
    quantize(packed.module, targets, torch.device("cpu"), packed.compute_dtype)
    figures = {"bytes": held(packed) / held(whole)}
    expected = gradients(whole, recipe, found, moved)
    del whole
    for expert, gradient in gradients(packed, recipe, found, moved).items():
        before = expected[expert]
        figures[f"cosine_{expert}"] = float(before @ gradient / before.norm() / gradient.norm())
        figures[f"size_{expert}"] = float(gradient.norm() / before.norm())
    return {name: round(value, 5) for name, value in figures.items()}


def measure(quick: bool, hidden: int, layers: int) -> dict[str, Any]:
    """All rows of the table."""
    groups, size, tokens = (1, 4, 8) if quick else (8, 12, 32)
    shrink = [f"--data.prompts_per_iteration={groups}", f"--data.group_size={size}"]
    shrink += [f"--rollout.max_think_tokens={tokens}", "--log=[]"]
    recipe = load_recipe("shapes/unigrpo", shrink)
    shapes, rows = build.policy(recipe.model), {}
    assert isinstance(shapes, Bagel)
    found = drawn(shapes, recipe, judged=True)
    for kind in ("mlp",) if quick else KINDS:
        for moved in (0.0, 0.02):
            label = f"shapes, {kind}, {'B = 0' if moved == 0 else f'B ~ {moved}'}"
            rows[label] = compared(shapes, recipe, found, kind, moved)
    recipe = load_recipe("shapes/unigrpo", [*shrink, "--data.prompts_per_iteration=1", "--data.group_size=4"])
    large = random_bagel(hidden, layers)
    found = drawn(large, recipe, judged=False)
    for kind in ("mlp",) if quick else KINDS:
        rows[f"random, hidden {hidden}, {layers} layers, {kind}, B = 0"] = compared(large, recipe, found, kind, 0.0)
    return rows


def main() -> None:
    """Measure, print a table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows of a small model")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    try:
        require()
    except ConfigError as error:
        print(error)
        return
    hidden, layers = (64, 1) if asked.quick else (asked.hidden, asked.layers)
    rows = measure(asked.quick, hidden, layers)
    for label, figures in rows.items():
        print(f"{label:<48}" + "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "peft", "bitsandbytes")}
    if asked.out is not None:
        write_json_atomic(asked.out, {"versions": versions, "threads": torch.get_num_threads(), "rows": rows})
        print(json.dumps(versions))


if __name__ == "__main__":
    main()
