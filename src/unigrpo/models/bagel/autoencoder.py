"""Pixels to latents and back. The policy takes any autoencoder with these four things; the micro model's is here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unigrpo.models.bagel import limits


class Autoencoder(Protocol):
    """Latents [B, channels, H / downsample, W / downsample] of pixels [B, 3, H, W] in [-1, 1]."""

    downsample: int
    channels: int

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels -> latents of about unit variance."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pixels (not clamped)."""
        ...


@dataclass(frozen=True)
class ConvAutoencoderConfig:
    """Sizes of the small convolutional autoencoder; two halvings, so it downsamples by 4."""

    channels: int = 4
    width: int = 20
    groups: int = 4

    def __post_init__(self) -> None:
        limits.check(vars(self), limits.AUTOENCODER)
        if self.width % self.groups:
            raise ValueError(f"width {self.width} is not a multiple of groups {self.groups}")

    def to_dict(self) -> dict[str, int]:
        """Plain values for ``autoencoder.json``."""
        return asdict(self)


def _stage(width: int, groups: int) -> nn.Sequential:
    return nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))


class ConvAutoencoder(nn.Module):
    """A small variational autoencoder for small pictures; latents are scaled to zero mean and unit variance.

    ``shift`` and ``scale`` [channels] are measured on training pictures and stored with the weights. Encoding is
    deterministic (the posterior mean): the same picture always has the same latents.
    """

    def __init__(self, config: ConvAutoencoderConfig) -> None:
        super().__init__()
        self.config, width, groups = config, config.width, config.groups
        self.downsample, self.channels = 4, config.channels
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            _stage(width, groups),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            _stage(width, groups),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            _stage(width, groups),
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * config.channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(config.channels, width, 3, padding=1),
            _stage(width, groups),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
            _stage(width, groups),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
            _stage(width, groups),
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv2d(width, 3, 3, padding=1),
        )
        self.register_buffer("shift", torch.zeros(config.channels))
        self.register_buffer("scale", torch.ones(config.channels))
        self.shift: Tensor
        self.scale: Tensor

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, channels, h, w] before normalisation (for training the autoencoder)."""
        mean, log_variance = self.encoder(pixels).chunk(2, dim=1)
        return mean, log_variance.clamp(-20.0, 10.0)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels in [-1, 1] -> normalised latents."""
        mean, _ = self.posterior(_channels_last(pixels))
        return ((mean - self.shift[:, None, None]) / self.scale[:, None, None]).contiguous()

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Latents before normalisation -> pixels."""
        return self.decoder(latents)

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents -> pixels."""
        raw = latents * self.scale[:, None, None] + self.shift[:, None, None]
        return self.decode_raw(_channels_last(raw)).contiguous()


def _channels_last(maps: Tensor) -> Tensor:
    """The same [B, C, H, W], laid out as convolutions on CPUs are fastest: decoding 96 pictures takes .6 (LOG.md)."""
    return maps.contiguous(memory_format=torch.channels_last)


def patchify(latents: Tensor, patch: int) -> Tensor:
    """[B, z, h p, w p] -> tokens [B, h w, p p z], row-major, inner order (row, column, channel).

    Source: docs/bagel-architecture.md.
    """
    b, z, height, width = latents.shape
    tiles = latents.reshape(b, z, height // patch, patch, width // patch, patch)
    return tiles.permute(0, 2, 4, 3, 5, 1).reshape(b, (height // patch) * (width // patch), patch * patch * z)


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """The inverse of :func:`patchify`: [B, h w, p p z] -> [B, z, h p, w p]."""
    b, (rows, columns) = tokens.shape[0], grid
    tiles = tokens.reshape(b, rows, columns, patch, patch, -1)
    return tiles.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, rows * patch, columns * patch)


def to_unit_range(pixels: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped, fp32."""
    return (pixels.float() * 0.5 + 0.5).clamp(0.0, 1.0)


def foreground_weight(pixels: Tensor, background: Tensor, weight: float) -> Tensor:
    """1 on the background colour [3], ``weight`` elsewhere: [B, 1, H, W] (small pictures are mostly background)."""
    away = (pixels - background[:, None, None]).abs().amax(1, keepdim=True) > 0.05
    return torch.where(away, torch.full_like(pixels[:, :1], weight), torch.ones_like(pixels[:, :1]))


def autoencoder_loss(model: ConvAutoencoder, pixels: Tensor, weight: Tensor, kl_weight: float, noise: Tensor) -> Tensor:
    """Weighted L2 + L1 of the reconstruction, plus kl_weight times the mean KL to N(0, 1)."""
    mean, log_variance = model.posterior(pixels)
    out = model.decode_raw(mean + (0.5 * log_variance).exp() * noise)
    errors = F.mse_loss(out, pixels, reduction="none") + F.l1_loss(out, pixels, reduction="none")
    kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
    return (errors * weight).sum() / (weight.sum() * 3) + kl_weight * kl.mean()
