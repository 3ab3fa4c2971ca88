"""Train the micro model's autoencoder on dense scenes of the shapes world (first step of ``make base``).

    python scripts/train_autoencoder.py OUT_DIR [--steps 5000]

Writes autoencoder.json and ae.safetensors, and prints what share of reconstructed pictures the verifier reads right.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch

from unigrpo import seeds
from unigrpo.models.bagel.autoencoder import (
    ConvAutoencoder,
    ConvAutoencoderConfig,
    autoencoder_loss,
    foreground_weight,
)
from unigrpo.models.bagel_files.checkpoint import write_weights
from unigrpo.worlds.shapes.renderer import BACKGROUND, GRID, TEMPLATES, draw

KL_WEIGHT, FOREGROUND, BATCH, LEARNING_RATE = 1e-4, 4.0, 12, 3e-3


def random_labels(draws: random.Random, count: int) -> torch.Tensor:
    """Cell labels [count, 16] of scenes with 1 to 14 objects, uniform in everything."""
    rows = []
    for _ in range(count):
        cells = set(draws.sample(range(GRID * GRID), draws.randint(1, 14)))
        rows.append([draws.randrange(1, len(TEMPLATES)) if cell in cells else 0 for cell in range(GRID * GRID)])
    return torch.tensor(rows)


def learning_rate(step: int, steps: int) -> float:
    """Warm-up over 100 steps, then linear decay to zero over the last half."""
    return LEARNING_RATE * min(1.0, (step + 1) / 100, 2.0 * (steps - step) / steps)


def train(steps: int, seed: int) -> ConvAutoencoder:
    """Train for ``steps`` batches, then measure the shift and scale of the latents."""
    torch.manual_seed(seeds.key(seed, 0, 0, 0, "autoencoder init") % 2**63)
    model = ConvAutoencoder(ConvAutoencoderConfig())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    draws = random.Random(seeds.key(seed, 0, 0, 0, "autoencoder scenes"))
    noise_source = seeds.generator(seed, 0, 0, 0, "autoencoder noise")
    background = torch.tensor(BACKGROUND) * 2 - 1
    start = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        pixels = draw(random_labels(draws, BATCH)) * 2 - 1
        noise = torch.randn((BATCH, 4, 8, 8), generator=noise_source)
        loss = autoencoder_loss(model, pixels, foreground_weight(pixels, background, FOREGROUND), KL_WEIGHT, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 500 == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.4f} {time.perf_counter() - start:.0f} s", flush=True)
    normalise(model, draws)
    return model


@torch.no_grad()
def normalise(model: ConvAutoencoder, draws: random.Random) -> None:
    """Store the mean and standard deviation of every latent channel over 512 scenes."""
    mean, _ = model.posterior(draw(random_labels(draws, 512)) * 2 - 1)
    model.shift.copy_(mean.mean((0, 2, 3)))
    model.scale.copy_(mean.std((0, 2, 3)))


@torch.no_grad()
def measure(model: ConvAutoencoder) -> dict[str, float]:
    """Peak signal-to-noise ratio, and the share of scenes whose cells all stay nearest to their own template."""
    labels = random_labels(random.Random(1), 1000)
    pixels = draw(labels)
    again = (model.decode(model.encode(pixels * 2 - 1)) * 0.5 + 0.5).clamp(0, 1)
    cells = again.reshape(-1, 3, GRID, 8, GRID, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, GRID * GRID, 192)
    nearest = torch.cdist(cells, TEMPLATES.reshape(1, -1, 192).expand(len(cells), -1, -1)).argmin(-1)
    psnr = -10 * torch.log10((again - pixels).square().mean())
    return {"psnr_db": float(psnr), "scenes_read_right": float((nearest == labels).all(1).float().mean())}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = train(args.steps, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "autoencoder.json").write_text(json.dumps(model.config.to_dict()) + "\n", encoding="utf-8")
    write_weights(args.out / "ae.safetensors", model.state_dict())
    print(json.dumps(measure(model)))


if __name__ == "__main__":
    main()
