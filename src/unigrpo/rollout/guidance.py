"""Classifier-free guidance while drawing: which contexts its branches have, and how they are mixed.

The paper guides evaluations only; a guided training rollout is replayed with the same branches (``training.replay``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from unigrpo import flow
from unigrpo.policy import Context, Policy
from unigrpo.trajectory import NO_GUIDANCE, Guidance, Segment, Text, without_prompt

__all__ = ["NO_GUIDANCE", "Guidance", "GuidanceContexts", "guided", "mix", "prepare", "words_alone"]


@dataclass(frozen=True)
class GuidanceContexts:
    """The contexts of the unconditional branches, one row per sample; ``image`` only where its scale asks for it."""

    text: Context
    image: Context | None

    def take(self, rows: Sequence[int]) -> GuidanceContexts:
        """The branches of some samples alone."""
        return GuidanceContexts(self.text.take(rows), None if self.image is None else self.image.take(rows))


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
    words = [words_alone(segments) for segments in given]
    return GuidanceContexts(text, policy.prefill(words).expand(group_size))


def words_alone(given: Sequence[Segment]) -> tuple[Segment, ...]:
    """The image-unconditional context: the given texts."""
    return tuple(segment for segment in given if isinstance(segment, Text))


def guided(policy: Policy, v: Tensor, contexts: GuidanceContexts, x: Tensor, t: Tensor, guidance: Guidance) -> Tensor:
    """Mix the conditional velocity v with the branches' (one or two more forwards)."""
    v_image = None if contexts.image is None else policy.velocity(contexts.image, x, t)
    return mix(v, policy.velocity(contexts.text, x, t), v_image, guidance)


def mix(v: Tensor, v_text: Tensor, v_image: Tensor | None, guidance: Guidance) -> Tensor:
    """The guided velocity of a conditional one and its branches; the sampler and the replay both mix by this."""
    return flow.guided_velocity(
        v,
        v_text,
        v_image,
        text_scale=guidance.text_scale,
        image_scale=guidance.image_scale,
        renorm=guidance.renorm,
        renorm_min=guidance.renorm_min,
    )
