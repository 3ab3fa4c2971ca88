"""How often the shapes verifier is right, and how fast it is. Prints JSON; exits with 1 where a limit is missed.

    OMP_NUM_THREADS=1 python benchmarks/verifier.py [--pictures 6000] [--seed 0] [--quick]

right: rendered scenes that satisfy their prompt, judged correct and read object for object; right_noise_0.02: the same
under Gaussian pixel noise (sigma 0.02, clamped, rounded to bytes); false_accepts: scenes with exactly one thing wrong,
judged correct; slips_followed: pictures with one object changed that still count as following the plan.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unigrpo import seeds
from unigrpo.worlds.shapes import Scene, corrupt_scene, follows, render, sample_scene, slip, verify
from unigrpo.worlds.shapes.prompts import SPLITS, PromptStream

BATCH = 96
LIMITS = {
    "right": 0.995,
    "right_noise_0.02": 0.995,
    "false_accepts": 0.005,
    "slips_followed": 0.005,
    "ms_per_image": 1.0,
}


def noisy(images: Tensor, sigma: float, seed: int) -> Tensor:
    """The pictures with Gaussian noise, as a PNG would store them."""
    noise = torch.randn(images.shape, generator=seeds.generator(seed, 0, 0, 0, "verifier benchmark"))
    return (images + sigma * noise).clamp(0, 1).mul(255).round() / 255


def rates(images: Tensor, metadata: Sequence[Mapping[str, Any]], scenes: Sequence[Scene]) -> tuple[float, float]:
    """Shares of pictures judged correct, and judged correct and read exactly as drawn."""
    verdicts = verify(images, metadata)
    correct = [verdict.correct for verdict in verdicts]
    exact = [v.correct and follows(v.reading, scene) for v, scene in zip(verdicts, scenes, strict=True)]
    return statistics.fmean(correct), statistics.fmean(exact)


def milliseconds(images: Tensor, metadata: Sequence[Mapping[str, Any]]) -> float:
    """Median over batches of the time for one picture."""
    times = []
    for start in range(0, len(images) - BATCH + 1, BATCH):
        began = time.perf_counter()
        verify(images[start : start + BATCH], metadata[start : start + BATCH])
        times.append((time.perf_counter() - began) / BATCH * 1e3)
    return statistics.median(times)


def measure(pictures: int, seed: int) -> dict[str, float]:
    """All figures over ``pictures`` prompts of both splits."""
    prompts = [prompt for split in SPLITS for prompt in PromptStream(split, seed).batch(0, pictures // len(SPLITS))]
    metadata = [prompt.metadata for prompt in prompts]
    draws = random.Random(seeds.key(seed, 0, 0, 0, "verifier benchmark"))
    scenes = [sample_scene(item, draws) for item in metadata]
    wrong = [corrupt_scene(scene, item, draws) for scene, item in zip(scenes, metadata, strict=True)]
    missed = render([slip(scene, draws) for scene in scenes])
    images = render(scenes)
    followed = [follows(v.reading, scene) for v, scene in zip(verify(missed, metadata), scenes, strict=True)]
    return {
        "right": rates(images, metadata, scenes)[1],
        "right_noise_0.02": rates(noisy(images, 0.02, seed), metadata, scenes)[1],
        "right_noise_0.05": rates(noisy(images, 0.05, seed), metadata, scenes)[1],
        "false_accepts": rates(render(wrong), metadata, wrong)[0],
        "false_accepts_noise_0.02": rates(noisy(render(wrong), 0.02, seed), metadata, wrong)[0],
        "slips_followed": statistics.fmean(followed),
        "ms_per_image": milliseconds(images, metadata),
    }


def main() -> int:
    """Measure, print, and compare with the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two batches, in seconds, and no limits to miss")
    arguments = parser.parse_args()
    if arguments.pictures < 2 * BATCH:
        parser.error(f"--pictures {arguments.pictures} does not fill two batches of {BATCH}: give at least {2 * BATCH}")
    pictures = 2 * BATCH if arguments.quick else arguments.pictures
    figures = measure(pictures, arguments.seed)
    sign = {name: 1 if name.startswith("right") else -1 for name in LIMITS}
    missed = [name for name, limit in LIMITS.items() if sign[name] * (figures[name] - limit) < 0]
    print(json.dumps({"pictures": pictures, "batch": BATCH, **figures, "limits": LIMITS, "missed": missed}))
    return 1 if missed and not arguments.quick else 0


if __name__ == "__main__":
    raise SystemExit(main())
