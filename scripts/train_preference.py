"""Train the learned judge of the shapes world on preference pairs, and measure how far it agrees with the verifier.

    python scripts/train_preference.py OUT_DIR [--steps 1200]

Writes config.json, model.safetensors and evaluation.json; about three minutes of one core. Which picture of a pair is
better follows from how it was made: the verifier reads no picture in training. evaluation.json has no wrong labels.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preference.learning import bradley_terry_loss, save_preference
from preference.pairs import SMUDGE, PairBatch, PairMix, Redraw, preference_pairs
from unigrpo import build, seeds
from unigrpo.evaluation.evaluator import evaluate
from unigrpo.files import write_json_atomic
from unigrpo.models.bagel.autoencoder import ConvAutoencoder
from unigrpo.models.bagel_files.checkpoint import load_autoencoder
from unigrpo.recipe import Model
from unigrpo.rollout.engine import Sampling
from unigrpo.trajectory import Prompt
from unigrpo.worlds.shapes.preference import (
    PreferenceConfig,
    PreferenceModel,
    prompt_words,
)
from unigrpo.worlds.shapes.prompts import CATEGORIES
from unigrpo.worlds.shapes.renderer import KINDS, TEMPLATES
from unigrpo.worlds.shapes.scenes import PLURALS, Kind, Object

BATCH, LEARNING_RATE, WARM_UP = 64, 2e-3, 100
EASY = 0.67
"""Share of the pairs that show another prompt's scene at step 0, beyond the mix's own share of the rest."""
CELL_WEIGHT, BACKGROUND_WEIGHT, SCORE_WEIGHT = 1.0, 0.1, 0.01
HELD_OUT_PAIRS, MODELS = 4000, ("builtin:shapes-sft", "builtin:shapes-pretrain")
SAMPLING, PROMPTS, SAMPLES, MARGIN = Sampling(num_points=9, shift=4.0), 120, 8, 0.05


def redrawer(autoencoder: ConvAutoencoder) -> Redraw:
    """Pictures as the autoencoder draws them from noisy latents."""

    @torch.no_grad()
    def redraw(pixels: Tensor, deviation: Tensor, noise: torch.Generator) -> Tensor:
        latents = autoencoder.encode(pixels * 2 - 1)
        latents = latents + deviation[:, None, None, None] * torch.randn(latents.shape, generator=noise)
        return (autoencoder.decode(latents) * 0.5 + 0.5).clamp(0, 1)

    return redraw


def learning_rate(step: int, steps: int) -> float:
    """Warm-up, then linear decay to zero over the last half."""
    return LEARNING_RATE * min(1.0, (step + 1) / WARM_UP, 2.0 * (steps - step) / steps)


class Heads(nn.Module):
    """The auxiliary heads: what a cell shows, and whether the prompt asks for it. They are not part of the judge.

    The logit of (shape, colour) is <cell, word(shape) + word(colour)> with the judge's own words (shapes as singular
    and as plural), so what a cell shows and what a prompt says come to lie in one space.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.background = nn.Parameter(torch.zeros(width))
        self.wanted = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def kinds(self, model: PreferenceModel, images: Tensor) -> Tensor:
        """Logits [2, B, 16, 43], with singular and with plural words for shapes."""
        colours = model.embeddings([colour for _, colour in KINDS])
        cells = self.norm(model.look(images))
        logits = []
        for names in ([shape for shape, _ in KINDS], [PLURALS[shape] for shape, _ in KINDS]):
            table = torch.cat([self.background[None], model.embeddings(names) + colours])
            logits.append(cells @ table.T)
        return torch.stack(logits)


def wanted_labels(prompts: Sequence[Prompt]) -> Tensor:
    """Which cell labels every prompt asks for: float32 [B, 43], 0 or 1."""
    objects = [Object(shape, colour, "a1") for shape, colour in KINDS]
    rows = []
    for prompt in prompts:
        wanted = [Kind(item["shape"], item["colour"]) for item in prompt.metadata["objects"]]
        rows.append([0.0, *(float(any(kind.matches(item) for kind in wanted)) for item in objects)])
    return torch.tensor(rows)


def mix_at(step: int, steps: int, mix: PairMix) -> PairMix:
    """Easy to hard: at first, most pairs show another prompt's scene; from a third of the steps on, the usual share."""
    easy = max(0.0, 1 - 3 * step / steps)
    kept = 1 - EASY * easy
    return replace(mix, other=mix.other * kept + EASY * easy, lesser=mix.lesser * kept, drawing=mix.drawing * kept)


def losses(model: PreferenceModel, heads: Heads, batch: PairBatch) -> dict[str, Tensor]:
    """Bradley-Terry on the scores, cross-entropies on the cells (the background weighs less), mean squared score."""
    images = torch.cat([batch.better, batch.worse])
    compared = model.compare(images, [prompt.text for prompt in batch.prompts] * 2)
    scores = model.judge(compared)
    better, worse = scores.chunk(2)
    weight = torch.ones(len(TEMPLATES))
    weight[0] = BACKGROUND_WEIGHT
    labels = torch.cat([batch.better_cells, batch.worse_cells])
    kinds = heads.kinds(model, images).flatten(0, 2)
    wanted = wanted_labels(batch.prompts).repeat(2, 1).gather(1, labels.clamp_min(0))
    weights = weight[labels] * (labels != SMUDGE)
    errors = F.binary_cross_entropy_with_logits(heads.wanted(compared).squeeze(-1), wanted, reduction="none")
    return {
        "preference": bradley_terry_loss(better, worse),
        "kinds": F.cross_entropy(kinds, labels.flatten().repeat(2), weight, ignore_index=SMUDGE),
        "wanted": (errors * weights).sum() / weights.sum(),
        "size": scores.square().mean(),
    }


def train(steps: int, seed: int, redraw: Redraw, mix: PairMix) -> PreferenceModel:
    """Train for ``steps`` batches of pairs of the train split."""
    torch.manual_seed(seeds.key(seed, 0, 0, 0, "preference init") % 2**63)
    model = PreferenceModel(PreferenceConfig(prompt_words()))
    heads = Heads(model.config.width)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    start = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        parts = losses(model, heads, preference_pairs("train", seed, step, BATCH, redraw, mix_at(step, steps, mix)))
        loss = parts["preference"] + CELL_WEIGHT * (parts["kinds"] + parts["wanted"]) + SCORE_WEIGHT * parts["size"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            shown = " ".join(f"{name} {value.item():.3f}" for name, value in parts.items())
            print(f"step {step} {shown} {time.perf_counter() - start:.0f} s", flush=True)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def pair_accuracy(model: PreferenceModel, redraw: Redraw, seed: int, mix: PairMix) -> dict[str, Any]:
    """Share of held-out pairs, without wrong labels, where the better picture scores higher; overall and by fault."""
    right: dict[str, list[bool]] = defaultdict(list)
    clean = PairMix(mix.other, mix.lesser, mix.drawing, mix.redrawn, flipped=0.0)
    size = 200
    for part in range(HELD_OUT_PAIRS // size):
        batch = preference_pairs("held-out", seed, part, size, redraw, clean)
        texts = [prompt.text for prompt in batch.prompts]
        for fault, wins in zip(batch.faults, model(batch.better, texts) > model(batch.worse, texts), strict=True):
            right[fault].append(bool(wins))
    every = [wins for values in right.values() for wins in values]
    by_fault = {name: {"accuracy": float(np.mean(values)), "pairs": len(values)} for name, values in right.items()}
    return {"accuracy": float(np.mean(every)), "pairs": len(every), "by_fault": dict(sorted(by_fault.items()))}


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties with their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores higher than a negative, ties counted half."""
    n = int(positive.sum())
    return float((ranks(scores)[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


def within_prompts(scores: np.ndarray, gold: np.ndarray, groups: np.ndarray, margin: float) -> dict[str, Any]:
    """Share of pairs of one prompt, ``margin`` or more apart in gold, that the score orders as gold does."""
    first, second = np.triu_indices(len(scores), 1)
    far = (groups[first] == groups[second]) & (np.abs(gold[first] - gold[second]) >= margin)
    first, second = first[far], second[far]
    same = np.sign(scores[first] - scores[second]) * np.sign(gold[first] - gold[second])
    return {"accuracy": float((same + 1).mean() / 2), "pairs": len(first)}


def agreement(model: PreferenceModel, name: str, split: str, seed: int) -> dict[str, Any]:
    """How the score agrees with the verifier on pictures that a shipped model draws with sampled thinking."""
    policy, suite = build.policy(Model(name)), build.suite(f"shapes:{split}")
    drawn = evaluate(policy, suite.prompts(PROMPTS), suite.judge, SAMPLING, samples=SAMPLES, seed=seed, think=True)
    images, texts = drawn.pictures.float() / 255, [record["prompt"] for record in drawn.records]
    with torch.no_grad():
        parts = [model(images[i : i + 192], texts[i : i + 192]) for i in range(0, len(texts), 192)]
    scores = torch.cat(parts).double().numpy()
    correct = np.array([record["correct"] for record in drawn.records])
    reward = np.array([record["reward"] for record in drawn.records])
    groups = np.array([record["position"] for record in drawn.records])
    categories = np.array([record["category"] for record in drawn.records])
    spreads = [scores[groups == group].std() for group in np.unique(groups)]
    return {
        "auc_correct": area_under_curve(scores, correct),
        "spearman_reward": float(np.corrcoef(ranks(scores), ranks(reward))[0, 1]),
        "within_prompt_reward": within_prompts(scores, reward, groups, MARGIN),
        "within_prompt_correct": within_prompts(scores, correct.astype(float), groups, 1.0),
        "within_prompt_reward_by_category": {
            name: within_prompts(scores[rows], reward[rows], groups[rows], MARGIN)["accuracy"]
            for name in CATEGORIES
            for rows in [categories == name]
        },
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
        "score_std_within_prompt": float(np.mean(spreads)),
        "pictures": len(scores),
        "gold_correct": float(correct.mean()),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    redraw, mix = redrawer(load_autoencoder(build.builtin_folder("shapes-autoencoder"))), PairMix()
    start, cpu = time.perf_counter(), time.process_time()
    model = train(args.steps, args.seed, redraw, mix)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    save_preference(model, args.out)
    figures = {
        "held_out_pairs": pair_accuracy(model, redraw, args.seed + 1, mix),
        "agreement_with_verifier": {
            name: {split: agreement(model, name, split, args.seed) for split in ("held-out", "train")}
            for name in MODELS
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_seconds": round(seconds),
        "training_cpu_seconds": round(cpu_seconds),
        "command": shlex.join(["python", *sys.argv]),
    }
    write_json_atomic(args.out / "evaluation.json", figures)
    print((args.out / "evaluation.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
