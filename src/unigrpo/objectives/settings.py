"""The terms of a policy-gradient method as data: what a recipe sets, and how a term reads trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from unigrpo.objectives.flow_grpo import GradReweight, flow_grpo
from unigrpo.objectives.regularizers import latent_kl, velocity_mse
from unigrpo.objectives.terms import Term
from unigrpo.objectives.text_grpo import text_grpo
from unigrpo.trajectory import FlowPath, Trajectory

_T = TypeVar("_T")


class Answers(Protocol):
    """What the replay said of one trajectory (a ``policy.Replayed`` is one)."""

    @property
    def log_probs(self) -> Tensor:
        """[actions] of all scored texts, in order."""
        ...

    @property
    def velocities(self) -> tuple[Tensor, ...]:
        """Per draw [K, n, d]."""
        ...


@dataclass(frozen=True)
class Pictures:
    """The P sampled pictures of B trajectories: velocities [K, n, d] and v_ref of each, and whose it is."""

    velocities: list[Tensor]
    paths: list[FlowPath]
    references: list[Tensor | None]
    owners: list[int]


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


@dataclass(frozen=True)
class FlowSettings:
    """The image term: clip range (a number, or auto = 5.12e-4 / sqrt(D)), RatioNorm, and the weights of the steps."""

    clip_range: float | Literal["auto"] = "auto"
    ratio_norm: bool = True
    grad_reweight: GradReweight = "none"

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


def behaviour_log_probs(trajectory: Trajectory) -> Tensor:
    """Return the log-probs [actions] that the rollout gave the tokens it sampled, all texts in order."""
    texts = [t.log_probs for t in trajectory.sampled_texts if t.log_probs is not None]
    return torch.cat(texts) if texts else torch.empty(0)


def sampled_pictures(trajectories: Sequence[Trajectory], answers: Sequence[Answers]) -> Pictures:
    """Collect the pictures with SDE steps; ValueError where a trajectory has none, or not all were replayed."""
    pictures = Pictures([], [], [], [])
    for row, (trajectory, answer) in enumerate(zip(trajectories, answers, strict=True)):
        paths = [image.path for image in trajectory.images if image.path is not None]
        if not paths or len(paths) != len(answer.velocities):
            raise ValueError(
                f"trajectory {row} has {len(paths)} pictures with SDE steps and {len(answer.velocities)} replayed: "
                "flow GRPO needs at least one, and a replay of each (is rollout.noise_level 0?)"
            )
        v_ref = trajectory.reference.velocity if trajectory.reference else None
        pictures.velocities.extend(answer.velocities)
        pictures.paths.extend(paths)
        pictures.references.extend([None] * len(paths) if v_ref is None else v_ref.split([len(p.t) for p in paths]))
        pictures.owners.extend([row] * len(paths))
    return pictures


def owner_means(values: Tensor, owners: list[int], rows: int) -> Tensor:
    """Mean over the pictures of each trajectory; 0 for one without."""
    if owners == list(range(rows)):
        return values
    index = torch.tensor(owners, device=values.device)
    counts = torch.bincount(index, minlength=rows).clamp(min=1)
    return values.new_zeros(rows).index_add(0, index, values) / counts


def present(values: Sequence[_T | None], what: str) -> list[_T]:
    """Return the values if none is missing; ValueError otherwise."""
    found = [v for v in values if v is not None]
    if len(found) < len(values):
        raise ValueError(f"{len(values) - len(found)} of {len(values)} rows lack {what}, which the method asks for")
    return found
