"""The formulas of ``objectives`` as plain functions of tensors, and any combination of terms: for tests."""

from __future__ import annotations

from typing import Any

from unigrpo.objectives import methods
from unigrpo.objectives.advantage import Advantage
from unigrpo.objectives.diffusion_nft import DiffusionNFT
from unigrpo.objectives.flow_grpo import FlowGRPO
from unigrpo.objectives.fpo import FPO
from unigrpo.objectives.refl import ReFL
from unigrpo.objectives.text_grpo import TextGRPO

METHODS: dict[str, Any] = {name: method() for name, method in methods.METHODS.items()}  # type: ignore[call-arg]


def combination(*, text: TextGRPO | None = TextGRPO(), image: Any = FlowGRPO(), **settings: Any) -> Any:  # noqa: B008
    """A method of these terms."""
    return methods.WithOwnTerm(name="a test's", text=text, image=image, **settings)


def queries_of(method: Any, trajectory: Any, generator: Any, shift: float = 1.0) -> tuple:
    return method.queries(trajectory, generator, shift=shift)


def group_advantages(rewards: Any, group_ids: Any, **settings: float) -> Any:
    return Advantage(**settings).of(rewards, group_ids)


def assign_advantages(trajectories: Any) -> Any:
    return Advantage().assign(trajectories)


def flow_grpo(velocities: Any, paths: Any, advantages: Any, **settings: Any) -> Any:
    return FlowGRPO(**settings).term(velocities, paths, advantages)


def resolve_clip_range(clip_range: Any, num_elements: int) -> float:
    return FlowGRPO(clip_range).clip_range_for(num_elements)


def text_grpo(log_probs: Any, old: Any, advantages: Any, reference: Any = None, **settings: float) -> Any:
    return TextGRPO(**settings).term(log_probs, old, advantages, reference)


def fpo(velocities: Any, old: Any, targets: Any, advantages: Any, **settings: Any) -> Any:
    return FPO(**settings).term(velocities, old, targets, advantages)


def diffusion_nft(*tensors: Any, **settings: Any) -> Any:
    return DiffusionNFT(**settings).term(*tensors)


def optimality(advantages: Any, max_advantage: float) -> Any:
    return DiffusionNFT(max_advantage=max_advantage).optimality(advantages)


def late_steps(num_points: int, late: float) -> tuple[int, int]:
    return ReFL(late).kept_steps(num_points)
