"""Classifier-free guidance for evaluation (training rollouts have none): which contexts, when, and how it is mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from unigrpo import flow
from unigrpo.policy import Context, Policy
from unigrpo.trajectory import Segment, Text, without_prompt


@dataclass(frozen=True)
class Guidance:
    """Scales and renormalisation (spec/bagel.md, CFG); a text scale of 1 or less means none.

    Active where interval[0] < t <= interval[1].
    """

    text_scale: float = 1.0
    image_scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    renorm: Literal["global", "channel", "text_channel"] = "global"
    renorm_min: float = 0.0

    @property
    def on(self) -> bool:
        """Whether any step may be guided."""
        return self.text_scale > 1.0

    def active(self, t: float) -> bool:
        """Whether the step that starts at t is guided."""
        return self.on and self.interval[0] < t <= self.interval[1]


NO_GUIDANCE = Guidance()


@dataclass(frozen=True)
class GuidanceContexts:
    """The contexts of the unconditional branches, one row per sample; ``image`` only where its scale asks for it."""

    text: Context
    image: Context | None


def prepare(
    policy: Policy, given: Sequence[Sequence[Segment]], group_size: int, guidance: Guidance
) -> GuidanceContexts | None:
    """Prefill the branches of given contexts: without the last text (text), and without pictures (image)."""
    if not guidance.on:
        return None
    bare = [without_prompt(segments) for segments in given]
    alike = all(isinstance(segment, Text) for segments in bare for segment in segments)  # a system prompt, or nothing
    contexts, repeats = (bare[:1], len(given) * group_size) if alike else (bare, group_size)
    text = policy.prefill(contexts).expand(repeats)
    if guidance.image_scale <= 1.0:
        return GuidanceContexts(text, None)
    words = [[segment for segment in segments if isinstance(segment, Text)] for segments in given]
    return GuidanceContexts(text, policy.prefill(words).expand(group_size))


def guided(policy: Policy, v: Tensor, contexts: GuidanceContexts, x: Tensor, t: Tensor, guidance: Guidance) -> Tensor:
    """Mix the conditional velocity v with the branches' (one or two more forwards)."""
    v_image = None if contexts.image is None else policy.velocity(contexts.image, x, t)
    return flow.guided_velocity(
        v,
        policy.velocity(contexts.text, x, t),
        v_image,
        text_scale=guidance.text_scale,
        image_scale=guidance.image_scale,
        renorm=guidance.renorm,
        renorm_min=guidance.renorm_min,
    )
