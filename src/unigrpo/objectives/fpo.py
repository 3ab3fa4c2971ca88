"""FPO: a clipped surrogate whose ratio comes from flow-matching losses at fixed noise (docs/math.md#fpo)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unigrpo.objectives.forward_noise import ForwardNoise
from unigrpo.objectives.image_terms import ImageBatch, behaviour_velocities
from unigrpo.objectives.terms import Term, check_rows, clipped_surrogate
from unigrpo.ranges import Positive

if TYPE_CHECKING:  # shapes: B rows, P pictures, K noisy copies or steps, n tokens of d numbers
    from jaxtyping import Float

_LARGEST_DIFFERENCE = 3.0  # of a single pair's losses, before exp (docs/math.md#fpo)


@dataclass(frozen=True)
class FPO(ForwardNoise):
    """min(r A, clip(r, 1 - eps, 1 + eps) A) of the ELBO ratio r = exp(mean_n[l_n(old) - l_n(now)]) (docs/math.md#fpo).

    The losses are averaged before exp; with ``per_pair`` there is one ratio for every pair, r_n = exp(clamp(l_n(old) -
    l_n(now), -3, 3)), and the surrogate is averaged. With equal weights every ratio is 1 and the gradient is A grad l,
    an advantage-weighted flow matching. The paper gives neither pairs nor clip_range; 8 and 0.05 are the public FPO's.
    """

    clip_range: Positive = 0.05
    """A ratio is clipped to 1 +- this."""
    per_pair: bool = False
    """One ratio per pair in place of one over their mean loss."""

    def loss(self, batch: ImageBatch, advantages: Float[Tensor, " P"]) -> Term:
        """Return -J_FPO per picture, [P]."""
        return self.term(batch.velocities, behaviour_velocities(batch), batch.targets, advantages)

    def term(
        self,
        velocities: Sequence[Float[Tensor, "K n d"]],
        old_velocities: Sequence[Float[Tensor, "K n d"]],
        targets: Sequence[Float[Tensor, "K n d"]],
        advantages: Float[Tensor, " B"],
    ) -> Term:
        """The same of velocities (of now, with gradients), old ones and targets eps - x_0, per picture [N, n, d]."""
        check_rows(velocities=velocities, old_velocities=old_velocities, targets=targets, advantages=advantages)
        now = matching_losses(velocities, targets)
        difference = matching_losses(old_velocities, targets).detach() - now
        if self.per_pair:
            log_ratio = difference.clamp(-_LARGEST_DIFFERENCE, _LARGEST_DIFFERENCE)
        else:
            log_ratio = difference.mean(1, keepdim=True)
        surrogate = clipped_surrogate(log_ratio, advantages.to(log_ratio.device)[:, None], self.clip_range)
        ratio = log_ratio.detach()
        stats = {
            "fpo/log_ratio_max": ratio.abs().amax(1),
            "fpo/ratio": ratio.exp().mean(1),
            "fpo/clip": (surrogate.clipped_low | surrogate.clipped_high).double().mean(1),
            "fpo/elbo_loss": now.detach().mean(1),
        }
        return Term(-surrogate.value.mean(1), stats)


def matching_losses(velocities: Sequence[Float[Tensor, "K n d"]], targets: Sequence[Tensor]) -> Tensor:
    """Return l_n = mean_D (v_n - (eps_n - x_0))^2 of every pair (t_n, eps_n), fp64 [B, N] (docs/math.md#fpo).

    velocities, targets: per picture [N, n, d]. -l_n stands for log p(x_0 | c): the ELBO of denoising, up to a constant.
    """
    v, target = torch.stack(list(velocities)).double(), torch.stack(list(targets)).double()
    if v.shape != target.shape:
        raise ValueError(
            f"velocities {list(v.shape)} and targets {list(target.shape)} must have one shape [B, N, n, d]"
        )
    return (v - target.detach()).square().flatten(2).mean(2)
