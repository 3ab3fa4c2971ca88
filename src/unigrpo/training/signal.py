"""Whether an iteration could teach anything: a run in which nothing is learned says so, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unigrpo.objectives.advantage import Advantage
from unigrpo.objectives.method import Method
from unigrpo.training.optimizer import ExpertOptimizer, kind_of
from unigrpo.training.parallel import ONE_PROCESS, World, local
from unigrpo.training.update import Updated

PATIENCE = 3
"""Iterations in a row without signal after which a person is told: one alone may be bad luck."""
SAMPLED = 64
"""Numbers of every trained tensor that are watched; a step of Adam moves all of them, or none can be told to move."""
CLIPPED = 0.9
"""Share of clipped ratios above which the later updates of an iteration have next to no gradient."""
CLIPS = (
    ("text", "tokens", ("text/clip_low", "text/clip_high")),
    ("flow", "denoising steps", ("flow/clip_low", "flow/clip_high")),
    ("fpo", "pictures", ("fpo/clip",)),
)
"""The terms that clip: their section of the method, what their ratios are of, and the statistics that count them."""
FAINT = 1e-3
"""Standard deviation of the advantages below which epsilon has eaten them (healthy: near 1)."""


class Movement:
    """Which experts' weights stay as they are, to fp32."""

    def __init__(self, optimizer: ExpertOptimizer) -> None:
        self.optimizer, self.before = optimizer, dict[str, list[Tensor]]()

    def mark(self) -> None:
        """Remember some numbers of every trained weight."""
        self.before = {expert: self._sampled(expert) for expert in self.optimizer.trained}

    def still(self, world: World = ONE_PROCESS) -> list[str]:
        """The trained experts of which none of those numbers has changed since, on any rank."""
        found = [
            expert
            for expert, before in self.before.items()
            if all(torch.equal(old, new) for old, new in zip(before, self._sampled(expert), strict=True))
        ]
        said = world.gather(found)
        return [expert for expert in found if all(expert in theirs for theirs in said)]

    def numbers(self) -> Tensor:
        """Some numbers of every trained weight, in one row."""
        return torch.cat([part.float() for expert in self.optimizer.trained for part in self._sampled(expert)])

    def _sampled(self, expert: str) -> list[Tensor]:
        parameters = self.optimizer.parameters[expert].values()
        held = [local(p.detach()).flatten() for p in parameters]
        return [p[:: max(1, p.numel() // SAMPLED)].clone() for p in held]


def missing_signal(
    collected: Mapping[str, Any], method: Method, updates: Sequence[Updated], still: Sequence[str]
) -> list[str]:
    """Return why an iteration teaches nothing, or one half of the model nothing; empty for a healthy one.

    ``collected``: the iteration's figures of rewards and thinking (``training.sources.describe``); ``still``: experts
    whose weights have not moved.
    """
    reasons = [*_rewards(collected, method.advantage)] if method.uses_advantages else []
    if collected.get("think_cut_share") == 1.0:
        reasons.append("every thinking was cut by rollout.max_think_tokens before it ended")
    last = updates[-1].stats
    for key, what, names in CLIPS:
        share = sum(last.get(name, 0.0) for name in names)
        if share > CLIPPED:
            reasons.append(
                f"in the last update {share:.0%} of the ratios of {what} are clipped: method.{key}.clip_range is too "
                "small"
            )
    for expert in still:
        norm = updates[-1].grad_norm.get(expert, 0.0)
        why = (
            "it has no gradient"
            if norm == 0.0
            else f"its steps are too small for fp32 (optimizer.lr_{kind_of(expert)})"
        )
        reasons.append(f"the weights of the {expert} expert have not moved: {why}")
    return reasons


def _rewards(collected: Mapping[str, Any], advantage: Advantage) -> list[str]:
    """What is wrong with the rewards of an iteration's groups."""
    if collected["zero_variance_share"] == 1.0:
        return [
            f"the samples of every prompt earned the same reward (mean {collected['reward_mean']:g}), so that none is "
            "better than another: does the reward look at the picture?"
        ]
    if collected["advantage_std"] < FAINT and advantage.scale != "none":
        return [
            f"rewards differ by {collected['reward_group_std']:.1g} inside a group, far below "
            "method.advantage.epsilon: all advantages are nearly 0; scale the reward up"
        ]
    return []


@dataclass
class SignalWatch:
    """Counts iterations in a row without signal."""

    silent: int = 0
    told: bool = False

    def note(self, reasons: Sequence[str], iteration: int) -> str | None:
        """Take in an iteration's reasons; the sentence for a person, once, when it has been too many in a row."""
        self.silent = self.silent + 1 if reasons else 0
        if self.silent < PATIENCE or self.told:
            return None
        self.told = True
        return (
            f"warning: for {PATIENCE} iterations (up to iteration {iteration + 1}) something is not learning: "
            + "; ".join(reasons)
        )
