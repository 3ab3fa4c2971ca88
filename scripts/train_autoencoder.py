"""Train the micro model's autoencoder on dense pictures of an embedded world (first step of ``make base``).

    python scripts/train_autoencoder.py OUT_DIR [--world shapes|words] [--steps 5000]

Writes autoencoder.json and ae.safetensors, and prints what share of reconstructed pictures still shows the same.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unigrpo import seeds
from unigrpo.models.bagel.autoencoder import (
    ConvAutoencoder,
    ConvAutoencoderConfig,
    autoencoder_loss,
    foreground_weight,
)
from unigrpo.models.bagel_files.checkpoint import write_weights
from unigrpo.worlds.shapes import renderer as shapes
from unigrpo.worlds.words import renderer as words
from unigrpo.worlds.words.signs import COLUMNS

KL_WEIGHT, FOREGROUND, BATCH, LEARNING_RATE = 1e-4, 4.0, 12, 3e-3


@dataclass(frozen=True)
class Pictures:
    """Pictures made of cells: templates [T, 3, h, w] (0 is the background), ``grid`` of cells, how many are filled."""

    templates: Tensor
    grid: tuple[int, int]
    draw: Callable[[Tensor], Tensor]
    background: tuple[float, float, float]
    filled: tuple[int, int]

    def labels(self, draws: random.Random, count: int) -> Tensor:
        """What the cells of ``count`` pictures show [count, cells], uniform in everything."""
        rows, every = [], self.grid[0] * self.grid[1]
        for _ in range(count):
            cells = set(draws.sample(range(every), draws.randint(*self.filled)))
            rows.append([draws.randrange(1, len(self.templates)) if cell in cells else 0 for cell in range(every)])
        return torch.tensor(rows)

    def nearest(self, pictures: Tensor) -> Tensor:
        """The nearest template of every cell [B, cells]."""
        (rows, columns), (height, width) = self.grid, self.templates.shape[2:]
        cells = pictures.reshape(-1, 3, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        flat = cells.reshape(-1, rows * columns, 3 * height * width)
        return torch.cdist(flat, self.templates.reshape(1, -1, flat.shape[-1]).expand(len(flat), -1, -1)).argmin(-1)


WORLDS = {
    "shapes": Pictures(shapes.TEMPLATES, (shapes.GRID, shapes.GRID), shapes.draw, shapes.BACKGROUND, (1, 14)),
    "words": Pictures(words.TEMPLATES, (1, len(COLUMNS)), words.draw, words.BACKGROUND, (1, len(COLUMNS))),
}


def learning_rate(step: int, steps: int) -> float:
    """Warm-up over 100 steps, then linear decay to zero over the last half."""
    return LEARNING_RATE * min(1.0, (step + 1) / 100, 2.0 * (steps - step) / steps)


def train(made: Pictures, steps: int, seed: int) -> ConvAutoencoder:
    """Train for ``steps`` batches, then measure the shift and scale of the latents."""
    torch.manual_seed(seeds.key(seed, 0, 0, 0, "autoencoder init") % 2**63)
    model = ConvAutoencoder(ConvAutoencoderConfig())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    draws = random.Random(seeds.key(seed, 0, 0, 0, "autoencoder scenes"))
    noise_source = seeds.generator(seed, 0, 0, 0, "autoencoder noise")
    background = torch.tensor(made.background) * 2 - 1
    start = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        pixels = made.draw(made.labels(draws, BATCH)) * 2 - 1
        shape = (BATCH, model.channels, *(side // model.downsample for side in pixels.shape[2:]))
        noise = torch.randn(shape, generator=noise_source)
        loss = autoencoder_loss(model, pixels, foreground_weight(pixels, background, FOREGROUND), KL_WEIGHT, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 500 == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.4f} {time.perf_counter() - start:.0f} s", flush=True)
    normalise(model, made, draws)
    return model


@torch.no_grad()
def normalise(model: ConvAutoencoder, made: Pictures, draws: random.Random) -> None:
    """Store the mean and standard deviation of every latent channel over 512 pictures."""
    mean, _ = model.posterior(made.draw(made.labels(draws, 512)) * 2 - 1)
    model.shift.copy_(mean.mean((0, 2, 3)))
    model.scale.copy_(mean.std((0, 2, 3)))


@torch.no_grad()
def measure(model: ConvAutoencoder, made: Pictures) -> dict[str, float]:
    """Peak signal-to-noise ratio, and the share of pictures whose cells all stay nearest to their own template."""
    labels = made.labels(random.Random(1), 1000)
    pixels = made.draw(labels)
    again = (model.decode(model.encode(pixels * 2 - 1)) * 0.5 + 0.5).clamp(0, 1)
    psnr = -10 * torch.log10((again - pixels).square().mean())
    read_right = (made.nearest(again) == labels).all(1).float().mean()
    return {"psnr_db": float(psnr), "scenes_read_right": float(read_right)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--world", choices=list(WORLDS), default="shapes")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    made = WORLDS[args.world]
    model = train(made, args.steps, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "autoencoder.json").write_text(json.dumps(model.config.to_dict()) + "\n", encoding="utf-8")
    write_weights(args.out / "ae.safetensors", model.state_dict())
    print(json.dumps(measure(model, made)))


if __name__ == "__main__":
    main()
