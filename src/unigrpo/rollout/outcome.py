"""What a reward, a judge or a person sees of a trajectory: its words, and its picture as a PNG would hold it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unigrpo.policy import Policy
from unigrpo.trajectory import Trajectory


def thinking_of(policy: Policy, trajectory: Trajectory) -> str | None:
    """What the model wrote before drawing, in words; None without thinking."""
    texts = trajectory.sampled_texts
    return " ".join(policy.decode_text(text.ids) for text in texts) if texts else None


@torch.no_grad()
def decode_pictures(policy: Policy, trajectories: Sequence[Trajectory]) -> Tensor:
    """The last picture of every trajectory, uint8 [B, 3, H, W] on the CPU, rounded as a PNG holds it.

    ValueError where a latent or a pixel is not finite: it would become a picture like any other.
    """
    latents = torch.stack([trajectory.images[-1].latents for trajectory in trajectories])
    if not bool(latents.isfinite().all()):
        raise ValueError(
            "the model drew numbers that are not finite: are its weights damaged, or did training diverge?"
        )
    pixels = policy.decode_image(latents)
    if not bool(pixels.isfinite().all()):
        raise ValueError("the autoencoder gave pixels that are not finite: its weights (ae.safetensors) are damaged")
    return (pixels * 255.0).round().clamp(0, 255).to(torch.uint8).cpu()
