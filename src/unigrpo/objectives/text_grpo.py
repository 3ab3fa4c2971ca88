"""Text GRPO: the clipped surrogate on every sampled token, averaged per sequence (paper eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unigrpo.objectives.terms import Term, check_rows, clipped_surrogate


def text_grpo(
    log_probs: Sequence[Tensor],
    old: Sequence[Tensor],
    advantages: Tensor,
    *,
    clip_range: float = 0.2,
    kl_weight: float = 0.0,
    reference: Sequence[Tensor] | None = None,
) -> Term:
    """Return -J_Text per trajectory, [B] (paper eq. 2, spec d.1-d.3).

    J_i = mean_k[ min(r A_i, clip(r, 1 - eps, 1 + eps) A_i) - kl_weight k3 ],  r = exp(log_probs - old) per token.
    The mean runs over the actions of ONE trajectory, so long sequences do not outweigh short ones.

    log_probs, old, reference: one 1-D tensor per trajectory, all its sampled tokens (spec d.5); advantages: [B].
    The paper gives no clip range for text; 0.2 is PPO's. Its KL weight is 0; reference is needed above that.
    Raises ValueError where lengths disagree or a trajectory has no sampled token.
    """
    check_rows(log_probs=log_probs, old=old, advantages=advantages, **({"reference": reference} if reference else {}))
    lengths = _lengths(log_probs, old)
    if not kl_weight >= 0.0:
        raise ValueError(f"kl_weight is {kl_weight}: it must be >= 0")
    if kl_weight > 0.0 and reference is None:
        raise ValueError(
            f"text kl_weight is {kl_weight}, which needs the reference's log-probs; set it to 0 or pass them"
        )
    now = torch.cat(list(log_probs)).double()
    log_ratio = now - torch.cat(list(old)).to(now.device, torch.float64).detach()
    counts = torch.tensor(lengths, device=now.device)
    surrogate = clipped_surrogate(log_ratio, advantages.to(now.device).repeat_interleave(counts), clip_range)
    objective = surrogate.value
    per_token = {
        "text/ratio": log_ratio.detach().exp(),
        "text/clip_low": surrogate.clipped_low.double(),
        "text/clip_high": surrogate.clipped_high.double(),
    }
    if reference is not None:
        kl = k3(now, torch.cat(list(reference)).to(now.device))
        objective = objective - kl_weight * kl if kl_weight > 0.0 else objective
        per_token["text/kl"] = kl.detach()
    stats = {name: _means(values, lengths) for name, values in per_token.items()}
    stats["text/log_ratio_max"] = torch.stack([row.abs().max() for row in log_ratio.detach().split(lengths)])
    return Term(-_means(objective, lengths), stats)


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Return the k3 estimate of KL(pi || pi_ref) per token, exp(d) - d - 1 >= 0, d = log p_ref - log p (spec d.3)."""
    d = reference.double().detach() - log_probs.double()
    return torch.expm1(d) - d


def _means(values: Tensor, lengths: list[int]) -> Tensor:
    """Mean of each sequence; row by row, so that a row does not depend on its neighbours, not even in rounding."""
    return torch.stack([row.mean() for row in values.split(lengths)])


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
