"""Text GRPO: the clipped surrogate on every sampled token, averaged per sequence (paper eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unigrpo.objectives.image_terms import present
from unigrpo.objectives.terms import Term, check_rows, clipped_surrogate, of_rows
from unigrpo.policy import Replayed
from unigrpo.ranges import NonNegative, Positive
from unigrpo.trajectory import Trajectory

if TYPE_CHECKING:  # shapes: B rows, P pictures, K noisy copies or steps, n tokens of d numbers
    from jaxtyping import Float


@dataclass(frozen=True)
class TextGRPO:
    """J_i = mean_k[ min(r A_i, clip(r, 1 - eps, 1 + eps) A_i) - kl_weight k3 ],  r = exp(log_probs - old) per token.

    Paper eq. 2. The mean runs over the actions of ONE trajectory, so long sequences do not outweigh short ones. The
    paper gives no clip range for text; 0.2 is PPO's. Its KL weight is 0; a reference is needed above that.
    """

    clip_range: Positive = 0.2
    """A ratio is clipped to 1 +- this (paper silent)."""
    kl_weight: NonNegative = 0.0
    """Weight of the k3 estimate of the KL to the start checkpoint (Table 3: 0)."""

    @property
    def needs_reference(self) -> bool:
        """Whether trajectories must carry the reference's log-probs."""
        return self.kl_weight > 0.0

    def loss(self, trajectories: Sequence[Trajectory], answers: Sequence[Replayed]) -> Term:
        """Return -J_Text per trajectory, [B]; the KL is logged wherever the reference's log-probs are there."""
        references = [t.reference.log_probs if t.reference else None for t in trajectories]
        known = self.needs_reference or all(r is not None for r in references)
        return self.term(
            [a.log_probs for a in answers],
            [behaviour_log_probs(t) for t in trajectories],
            [action_advantages(t) for t in trajectories],
            present(references, "reference log-probs") if known else None,
        )

    def term(
        self,
        log_probs: Sequence[Float[Tensor, " actions"]],
        old: Sequence[Float[Tensor, " actions"]],
        advantages: Float[Tensor, " B"] | Sequence[Float[Tensor, " actions"]],
        reference: Sequence[Float[Tensor, " actions"]] | None = None,
    ) -> Term:
        """The same of log_probs, old, reference: one 1-D tensor per trajectory, all its sampled tokens.

        advantages: one number a trajectory, or one a token, as texts of one trajectory may differ.
        Raises ValueError where lengths disagree or a trajectory has no sampled token.
        """
        rows = {"reference": reference} if reference else {}
        check_rows(log_probs=log_probs, old=old, advantages=advantages, **rows)
        lengths = _lengths(log_probs, old)
        if not self.kl_weight >= 0.0:
            raise ValueError(f"kl_weight is {self.kl_weight}: it must be >= 0")
        if self.needs_reference and reference is None:
            raise ValueError(
                f"text kl_weight is {self.kl_weight}, which needs the reference's log-probs; set it to 0 or pass them"
            )
        now = torch.cat(list(log_probs)).double()
        log_ratio = now - torch.cat(list(old)).to(now.device, torch.float64).detach()
        each = _each(advantages, lengths).to(now.device)
        surrogate = clipped_surrogate(log_ratio, each, self.clip_range)
        objective = surrogate.value
        per_token = {
            "text/ratio": log_ratio.detach().exp(),
            "text/clip_low": surrogate.clipped_low.double(),
            "text/clip_high": surrogate.clipped_high.double(),
        }
        if reference is not None:
            kl = k3(now, torch.cat(list(reference)).to(now.device))
            objective = objective - self.kl_weight * kl if self.needs_reference else objective
            per_token["text/kl"] = kl.detach()
        stats = {name: _means(values, lengths) for name, values in per_token.items()}
        stats["text/log_ratio_max"] = of_rows("max", log_ratio.detach().abs(), lengths)
        return Term(-_means(objective, lengths), stats)


def behaviour_log_probs(trajectory: Trajectory) -> Float[Tensor, " actions"]:
    """Return the log-probs [actions] that the rollout gave the tokens it sampled, all texts in order."""
    texts = [t.log_probs for t in trajectory.sampled_texts if t.log_probs is not None]
    return torch.cat(texts) if texts else torch.empty(0)


def action_advantages(trajectory: Trajectory) -> Float[Tensor, " actions"]:
    """Return the advantage of every token that the rollout sampled, fp64 [actions]: that of its text."""
    texts = trajectory.sampled_texts
    known = present([t.advantage for t in texts], "an advantage of a text")
    each = [torch.full((t.num_actions,), a, dtype=torch.float64) for t, a in zip(texts, known, strict=True)]
    return torch.cat(each) if each else torch.empty(0, dtype=torch.float64)


def k3(log_probs: Float[Tensor, " actions"], reference: Float[Tensor, " actions"]) -> Float[Tensor, " actions"]:
    """Return k3 >= 0 of KL(pi || pi_ref) per token, exp(d) - d - 1, d = log p_ref - log p (docs/math.md#text)."""
    d = reference.double().detach() - log_probs.double()
    return torch.expm1(d) - d


def _means(values: Tensor, lengths: list[int]) -> Tensor:
    """Mean of each sequence."""
    return of_rows("mean", values, lengths)


def _each(advantages: Tensor | Sequence[Tensor], lengths: list[int]) -> Tensor:
    """The advantage of every token."""
    if isinstance(advantages, Tensor):
        return advantages.repeat_interleave(torch.tensor(lengths, device=advantages.device))
    return torch.cat([a.expand(n) for a, n in zip(advantages, lengths, strict=True)])


def _lengths(log_probs: Sequence[Tensor], old: Sequence[Tensor]) -> list[int]:
    for row, (new, behaviour) in enumerate(zip(log_probs, old, strict=True)):
        if new.shape != behaviour.shape or new.ndim != 1:
            raise ValueError(
                f"trajectory {row}: log-probs of replay {list(new.shape)} and rollout {list(behaviour.shape)} "
                "must be one number per sampled token"
            )
        if not len(new):
            raise ValueError(f"trajectory {row} has no sampled token: text GRPO needs a model that thinks")
    return [len(new) for new in log_probs]
