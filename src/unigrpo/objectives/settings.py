"""The terms of a method as data: what a recipe sets, and how a term reads trajectories and pictures.

A method has a text term or none, and an image term or none; the image terms are interchangeable (:class:`ImageTerm`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from unigrpo.objectives.diffusion_nft import diffusion_nft
from unigrpo.objectives.flow_grpo import GradReweight, flow_grpo
from unigrpo.objectives.fpo import fpo
from unigrpo.objectives.pictures import (
    Answers,
    Draw,
    Pictures,
    behaviour_log_probs,
    behaviour_velocities,
    present,
)
from unigrpo.objectives.refl import PixelReward, refl
from unigrpo.objectives.regularizers import latent_kl, velocity_mse
from unigrpo.objectives.supervised import Times, noised, sample_times
from unigrpo.objectives.terms import Term
from unigrpo.objectives.text_grpo import text_grpo
from unigrpo.rewards.protocol import metadata_of
from unigrpo.trajectory import Image, Trajectory


@dataclass(frozen=True)
class AdvantageSettings:
    """A = (R - mean) / (std + epsilon), clamped to [-clip, clip]; the paper gives neither number (spec b.8)."""

    epsilon: float = 1e-4
    clip: float = 5.0


@dataclass(frozen=True)
class TextSettings:
    """The text term; the paper gives KL weight 0 and no clip range (spec d.4)."""

    clip_range: float = 0.2
    kl_weight: float = 0.0

    def term(self, trajectories: Sequence[Trajectory], answers: Sequence[Answers], advantages: Tensor) -> Term:
        """Return -J_Text per trajectory."""
        references = [t.reference.log_probs if t.reference else None for t in trajectories]
        known = self.kl_weight > 0.0 or all(r is not None for r in references)  # then the KL is at least logged
        return text_grpo(
            [a.log_probs for a in answers],
            [behaviour_log_probs(t) for t in trajectories],
            advantages,
            clip_range=self.clip_range,
            kl_weight=self.kl_weight,
            reference=present(references, "reference log-probs") if known else None,
        )


class ImageTerm(Protocol):
    """What the image half of a method is: where it wants velocities, and its loss of them."""

    @property
    def needs_behaviour_velocity(self) -> bool:
        """Whether trajectories must carry ``behaviour``, the velocities of the weights before the update."""
        ...

    @property
    def needs_sde(self) -> bool:
        """Whether the term (and so a latent KL beside it) is about the SDE steps of a rollout."""
        ...

    @property
    def uses_advantages(self) -> bool:
        """Whether the term is weighted by the advantages."""
        ...

    def draw(self, segment: int, image: Image, generator: torch.Generator) -> Draw | None:
        """Where velocities are wanted for a picture that the policy drew; None: nowhere."""
        ...

    def term(self, pictures: Pictures, advantages: Tensor) -> Term:
        """Return the loss per picture."""
        ...


@dataclass(frozen=True)
class FlowSettings:
    """Flow GRPO: clip range (a number, or auto = 5.12e-4 / sqrt(D)), RatioNorm, and the weights of the steps."""

    clip_range: float | Literal["auto"] = "auto"
    ratio_norm: bool = True
    grad_reweight: GradReweight = "none"
    needs_behaviour_velocity = False
    needs_sde = True
    uses_advantages = True

    def draw(self, segment: int, image: Image, generator: torch.Generator) -> Draw | None:
        """Return the stored SDE steps; nothing is drawn."""
        path = image.path
        return None if path is None else Draw(segment, path.x, path.t, guidance=path.guidance, guided=path.guided)

    def term(self, pictures: Pictures, advantages: Tensor) -> Term:
        """Return -J_Flow per picture."""
        return flow_grpo(
            pictures.velocities,
            pictures.paths,
            advantages,
            clip_range=self.clip_range,
            ratio_norm=self.ratio_norm,
            grad_reweight=self.grad_reweight,
        )


@dataclass(frozen=True)
class ForwardNoise:
    """What FPO and DiffusionNFT share: ``pairs`` of (t, eps), drawn once per picture and kept over epochs.

    t is drawn as in supervised training (``supervised.sample_times``) and shifted as the sampler's grid is (spec f.2,
    f.6).
    """

    pairs: int = 8
    shift: float = 1.0
    times: Times = "uniform"
    needs_behaviour_velocity = True
    needs_sde = False
    uses_advantages = True

    def draw(self, segment: int, image: Image, generator: torch.Generator) -> Draw | None:
        """Noise a picture that the policy drew."""
        if not image.drawn:
            return None
        t = sample_times(self.pairs, self.shift, generator=generator, times=self.times)
        x, target = noised(image.latents, t, generator=generator)
        return Draw(segment, x, t, target)


@dataclass(frozen=True)
class FPOSettings(ForwardNoise):
    """FPO: a ratio of flow-matching losses at fixed noise; ``per_pair``: one ratio for every pair."""

    clip_range: float = 0.05
    per_pair: bool = False

    def term(self, pictures: Pictures, advantages: Tensor) -> Term:
        """Return -J_FPO per picture."""
        return fpo(
            pictures.velocities,
            behaviour_velocities(pictures),
            present([draw.target for draw in pictures.draws], "a target velocity"),
            advantages,
            clip_range=self.clip_range,
            per_pair=self.per_pair,
        )


@dataclass(frozen=True)
class DiffusionNFTSettings(ForwardNoise):
    """DiffusionNFT: ``beta`` is how far the implicit good and bad velocities lie from the old one."""

    beta: float = 1.0
    max_advantage: float = 5.0

    def term(self, pictures: Pictures, advantages: Tensor) -> Term:
        """Return the loss per picture."""
        return diffusion_nft(
            pictures.velocities,
            behaviour_velocities(pictures),
            [draw.x for draw in pictures.draws],
            [draw.t for draw in pictures.draws],
            [image.latents for image in pictures.images],
            advantages,
            beta=self.beta,
            max_advantage=self.max_advantage,
        )


@dataclass(frozen=True)
class ReFLSettings:
    """ReFL: ``decode`` turns latents [B, n, d] into pictures, ``reward`` judges them, both with gradients."""

    decode: Callable[[Tensor], Tensor]
    reward: PixelReward
    needs_behaviour_velocity = False
    needs_sde = False
    uses_advantages = False

    def draw(self, segment: int, image: Image, generator: torch.Generator) -> Draw | None:
        """Return the late state that the sampler kept; nothing is drawn."""
        if image.visit is None:
            return None
        return Draw(segment, image.visit.x[None], torch.tensor([image.visit.t], dtype=torch.float64))

    def term(self, pictures: Pictures, advantages: Tensor) -> Term:
        """Return -R per picture; advantages play no part."""
        asked = [pictures.trajectories[owner].prompt for owner in pictures.owners]
        return refl(
            pictures.velocities,
            [draw.x for draw in pictures.draws],
            [draw.t for draw in pictures.draws],
            [prompt.text for prompt in asked],
            metadata_of(asked),
            decode=self.decode,
            reward=self.reward,
        )


@dataclass(frozen=True)
class RegulariserSettings:
    """What holds the velocities near the start checkpoint's: velocity_mse (paper eq. 8) or latent_kl; 0 is none."""

    kind: Literal["velocity_mse", "latent_kl"] = "velocity_mse"
    weight: float = 1.5e-5

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.kind not in ("velocity_mse", "latent_kl"):
            raise ValueError(f"regulariser kind is {self.kind!r}: known kinds are velocity_mse, latent_kl")
        if not self.weight >= 0.0:
            raise ValueError(f"regulariser weight is {self.weight}: it must be >= 0 (0 switches it off)")

    def term(self, pictures: Pictures) -> Term:
        """Return the regulariser per picture, not yet weighted."""
        references = present(pictures.references, "a reference velocity")
        if self.kind == "latent_kl":
            return latent_kl(pictures.velocities, pictures.paths, references)
        return velocity_mse(pictures.velocities, references)
