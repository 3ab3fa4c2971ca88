"""ReFL: the gradient of a differentiable reward through one late denoising step and the decoder (docs/math.md#refl)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from unigrpo.flow import predict_x0
from unigrpo.objectives.image_terms import ImageBatch, ImageTerm, LatentReward
from unigrpo.objectives.terms import Term, check_rows
from unigrpo.policy import VelocityQuery
from unigrpo.ranges import NotFiniteError, Range
from unigrpo.trajectory import Image, Prompt

if TYPE_CHECKING:  # shapes: B rows, P pictures, K noisy copies or steps, n tokens of d numbers
    from jaxtyping import Float


@dataclass(frozen=True)
class ReFL(ImageTerm):
    """-R(decode(x - t v)): the reward of the picture that one step from a late state x would finish.

    The step is uniform in the last share ``late`` of the grid (the paper: "late"; ImageReward's is the last quarter).
    Only this forward has a gradient: x was reached without one. Advantages play no part.
    """

    late: Annotated[float, Range(0, 1, open_low=True)] = 0.25
    """The trained step is drawn from this last share of the grid."""
    needs_reward_gradient = True

    def kept_steps(self, num_points: int) -> tuple[int, int]:
        """[lo, hi): the last share ``late`` of the num_points - 1 steps, at least one."""
        steps = num_points - 1
        return max(0, min(steps - 1, steps - round(self.late * steps))), steps

    def query(self, segment: int, image: Image, generator: torch.Generator, *, shift: float) -> VelocityQuery | None:
        """Return the late state that the sampler kept; nothing is drawn."""
        if image.snapshot is None:
            return None
        return VelocityQuery(segment, image.snapshot.x[None], torch.tensor([image.snapshot.t], dtype=torch.float64))

    def copies(self, window_size: int) -> int:
        """One step is trained."""
        return 1

    def loss(self, batch: ImageBatch, advantages: Float[Tensor, " P"]) -> Term:
        """Return -R per picture, [P]."""
        if batch.latent_reward is None:
            raise ValueError("ReFL follows the reward's gradient, but the run was built without a differentiable one")
        x, t = [query.x for query in batch.queries], [query.t for query in batch.queries]
        return self.term(batch.velocities, x, t, batch.prompts, batch.latent_reward)

    def term(
        self,
        velocities: Sequence[Float[Tensor, "1 n d"]],
        x: Sequence[Float[Tensor, "1 n d"]],
        t: Sequence[Float[Tensor, " 1"]],
        prompts: Sequence[Prompt],
        reward: LatentReward,
    ) -> Term:
        """The same of velocities and x, per picture [1, n, d], and t [1], a time of the sampler's grid.

        ValueError where the reward gives no gradient or is not finite.
        """
        check_rows(velocities=velocities, x=x, t=t, prompts=prompts)
        v, at, time = torch.cat(list(velocities)), torch.cat(list(x)), torch.cat(list(t))
        values = reward(predict_x0(at.to(v.device), v, time.to(v.device)).to(v.dtype), prompts)
        if values.shape != (len(prompts),):
            raise ValueError(
                f"the reward gave {list(values.shape)} values for {len(prompts)} pictures: one each is needed"
            )
        finite = torch.isfinite(values.detach())
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise NotFiniteError(
                f"the reward of {prompts[row].text!r} is {float(values[row].detach())}: it must be a finite number"
            )
        if v.requires_grad and not values.requires_grad:
            raise ValueError("the reward gives no gradient for its pictures: ReFL needs a differentiable one")
        return Term(-values.double(), {"refl/reward": values.detach().double()})
