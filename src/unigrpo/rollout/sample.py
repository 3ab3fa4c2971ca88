"""Cut, think, draw, decode: prompts to trajectories with pictures and words, for training, evaluation and drawing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from unigrpo import suspects
from unigrpo.policy import Policy
from unigrpo.ranges import NotFiniteError
from unigrpo.rollout.engine import RandomKeys, Sampling, rollout
from unigrpo.rollout.episode import Episode
from unigrpo.trajectory import Prompt, Trajectory


@dataclass(frozen=True)
class Drawn:
    """Trajectories that were drawn together, groups adjacent, and what a reward, a judge or a person sees of them.

    pictures: uint8 [B, 3, H, W] on the CPU, as a PNG holds them; thinking: in words, None without.
    """

    trajectories: list[Trajectory]
    pictures: Tensor
    thinking: list[str | None]


def sample(
    policy: Policy,
    episode: Episode,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    keys: RandomKeys,
    *,
    samples: int,
    batch: int | None,
    first_sample: int = 0,
    timed: Callable[[str], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Drawn]:
    """Draw ``samples`` pictures of every prompt, at most ``batch`` at a time (None: all), groups in order.

    ``first_sample`` numbers the samples. ``timed`` is entered with "rollout" and "decode" around the two.
    """
    each = sampling.images_per_thinking if episode.think else 1
    for some, first, count in portions(prompts, samples, batch, each):
        with timed("rollout"):
            made = rollout(
                policy, episode, some, sampling, group_size=count, keys=keys, first_sample=first_sample + first
            )
        with timed("decode"):
            pictures = decode_pictures(policy, made)
        yield Drawn(made, pictures, [thinking_of(policy, trajectory) for trajectory in made])


def portions(
    prompts: Sequence[Prompt], samples: int, batch: int | None, together: int = 1
) -> Iterator[tuple[Sequence[Prompt], int, int]]:
    """Cut prompts x samples into parts of at most ``batch``: (prompts, first sample, samples of each), in order.

    Whole groups together where they fit; a group that does not fit is cut by itself, but not the ``together``
    neighbours that share a thinking.
    """
    whole = len(prompts) if batch is None else max(1, batch // samples)
    most = samples if batch is None else max(together, batch // together * together)
    for start in range(0, len(prompts), max(1, whole)):
        for first in range(0, samples, most):
            yield prompts[start : start + whole], first, min(most, samples - first)


def thinking_of(policy: Policy, trajectory: Trajectory) -> str | None:
    """What the model wrote before drawing, in words; None without thinking."""
    texts = trajectory.sampled_texts
    return " ".join(policy.decode_text(text.ids) for text in texts) if texts else None


@torch.no_grad()
def decode_pictures(policy: Policy, trajectories: Sequence[Trajectory]) -> Tensor:
    """The last picture of every trajectory, uint8 [B, 3, H, W] on the CPU, rounded as a PNG holds it.

    NotFiniteError where a latent or a pixel is not finite: it would become a picture like any other.
    """
    latents = torch.stack([trajectory.images[-1].latents for trajectory in trajectories])
    _check(
        latents, trajectories, "the model drew numbers that are not finite: are its weights damaged, or did training "
        "diverge?"
    )  # fmt: skip
    pixels = policy.decode_image(latents)
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
