"""Keeping the velocities near those of the start checkpoint: velocity MSE (the paper's) and the latent KL."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unigrpo import flow
from unigrpo.objectives.flow_grpo import join_paths, replay_transition
from unigrpo.objectives.terms import Term, check_rows
from unigrpo.trajectory import FlowPath


def velocity_mse(velocities: Sequence[Tensor], references: Sequence[Tensor]) -> Term:
    """Return ||v - v_ref||^2 per picture, the mean over window steps and over elements, [B] (paper eq. 8, spec e.2).

    velocities, references: per picture [K, n, d] at the same x, t and context; no gradient goes into the references.
    The paper does not say mean or sum; only the mean gives its weight, 1.5e-5, an effect between freezing the policy
    and none (spec e.2). The statistic flow/velocity_mse is [B, K].
    """
    check_rows(velocities=velocities, references=references)
    shapes = {tuple(v.shape) for v in (*velocities, *references)}
    if len(shapes) != 1:
        raise ValueError(f"velocities and references must share one shape [K, n, d], got {sorted(shapes)}")
    difference = torch.stack(list(velocities)).double() - torch.stack(list(references)).double().detach()
    per_step = difference.square().flatten(2).mean(2)
    return Term(per_step.mean(1), {"flow/velocity_mse": per_step.detach()})


def latent_kl(velocities: Sequence[Tensor], paths: Sequence[FlowPath], references: Sequence[Tensor]) -> Term:
    """Return the KL of the SDE steps against the reference's, KL / D, mean over window steps, [B] (spec b.2).

    KL / D = mean_D[(mean - mean_ref)^2] / (2 std^2), per element like the image log-probs. The official penalty is
    h times this. Unlike :func:`velocity_mse` it presses unevenly over t, which the paper replaces (its section 4.2).
    The statistic flow/latent_kl is [B, K].
    """
    check_rows(velocities=velocities, paths=paths, references=references)
    joined = join_paths(paths)
    mean, std = replay_transition([v.double() for v in velocities], joined)
    reference, _ = replay_transition([v.detach() for v in references], joined)
    kl = flow.latent_kl(mean.double(), reference.double(), std.double()) / joined.x[0].numel()
    per_step = kl.reshape(len(paths), -1)
    return Term(per_step.mean(1), {"flow/latent_kl": per_step.detach()})
