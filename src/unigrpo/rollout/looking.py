"""Looking at a drawing: decoded, rounded as a PNG holds it, and encoded again by the model (docs/math.md#rounds)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unigrpo import suspects
from unigrpo.policy import Policy
from unigrpo.ranges import NotFiniteError
from unigrpo.rollout.episode import Look
from unigrpo.trajectory import Segment, Trajectory

GREY = 128
"""Of 255: every pixel of a grey picture."""


@torch.no_grad()
def decoded(policy: Policy, trajectories: Sequence[Trajectory], latents: Sequence[Tensor]) -> Tensor:
    """Latents [n, d] that some trajectories drew, as pictures uint8 [B, 3, H, W] on the CPU: as a PNG holds them.

    NotFiniteError where a latent or a pixel is not finite: it would become a picture like any other.
    """
    whole = torch.stack(list(latents))
    _check(
        whole, trajectories, "the model drew numbers that are not finite: are its weights damaged, or did training "
        "diverge?"
    )  # fmt: skip
    pixels = policy.decode_image(whole)
    _check(
        pixels,
        trajectories,
        "the autoencoder gave pixels that are not finite: its weights (ae.safetensors) are damaged",
    )
    return (pixels * 255.0).round().clamp(0, 255).to(torch.uint8).cpu()


def _check(numbers: Tensor, trajectories: Sequence[Trajectory], why: str) -> None:
    """NotFiniteError where a row [B, ...] is not finite, after its trajectory has been named."""
    if bool(numbers.isfinite().all()):
        return
    whole = numbers.flatten(1).isfinite().all(1).tolist()
    suspects.note("rollout", why, [t for t, fine in zip(trajectories, whole, strict=True) if not fine])
    raise NotFiniteError(why)


def shown_to(
    policy: Policy, trajectories: Sequence[Trajectory], look: Look
) -> tuple[Tensor, list[tuple[Segment, ...]]]:
    """The last drawings of some trajectories, uint8 [B, 3, H, W], and by what segments each sees what a look shows."""
    pictures = decoded(policy, trajectories, [t.drawings[-1].latents for t in trajectories])
    if look == "grey":
        return pictures, policy.look_segments(torch.full_like(pictures, GREY))
    if look == "other":
        return pictures, policy.look_segments(pictures[others([t.prompt.position for t in trajectories])])
    return pictures, policy.look_segments(pictures)


def others(positions: Sequence[int]) -> list[int]:
    """For every row one of the next prompt's (after the last comes the first), the same place in its group.

    ValueError where all rows are of one prompt.
    """
    groups: dict[int, list[int]] = {}
    for row, position in enumerate(positions):
        groups.setdefault(position, []).append(row)
    if len(groups) < 2:
        raise ValueError(
            "look: other shows the picture of another prompt, and all that are drawn together are of one: raise "
            "rollout.batch (eval: --batch) to two groups or more"
        )
    names = list(groups)
    after = {name: groups[names[(place + 1) % len(names)]] for place, name in enumerate(names)}
    return [after[p][groups[p].index(row) % len(after[p])] for row, p in enumerate(positions)]
