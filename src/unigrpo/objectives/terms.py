"""What the terms of an objective have in common: their result, the clipped surrogate, and statistics that add up.

Every term gives one loss per trajectory (or per picture), so that J = mean over trajectories can be accumulated over
micro-batches and ranks: sum the rows, divide by the number of trajectories of the minibatch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:  # shapes: B rows, P pictures, K noisy copies or steps, n tokens of d numbers
    from jaxtyping import Float

Statistics = dict[str, Tensor]


@dataclass(frozen=True)
class Term:
    """A loss per row, fp64 [B], and detached statistics, [B] or [B, K] (K window steps).

    Statistics keep their rows, so that micro-batches can be joined (:func:`merge`) before they are reduced
    (:func:`summarize`).
    """

    loss: Float[Tensor, " B"]
    stats: Statistics = field(default_factory=dict)


@dataclass(frozen=True)
class Surrogate:
    """min(r A, clip(r, 1 - eps, 1 + eps) A), and where clipping is at work; all with the shape of the log-ratio."""

    value: Float[Tensor, ...]
    clipped_low: Tensor
    clipped_high: Tensor


def clipped_surrogate(log_ratio: Float[Tensor, ...], advantage: Float[Tensor, ...], clip_range: float) -> Surrogate:
    """Return PPO's clipped surrogate (paper eq. 2 and 6; docs/math.md#the-clipped-surrogate) of r = exp(log_ratio).

    J = A + min((r - 1) A, clip(r - 1, -eps, eps) A) with r - 1 = expm1(log_ratio) in fp64: clip ranges near 1e-6 do
    not survive 1 + eps in fp32 (docs/math.md#precision). ``clipped_low``: A < 0 and r < 1 - eps; ``clipped_high``: A >
    0 and r > 1 + eps, where the gradient is zero. ``advantage`` broadcasts against ``log_ratio``.
    """
    if not clip_range > 0.0:
        raise ValueError(f"clip_range is {clip_range}: it must be > 0 (0 would stop all learning)")
    excess, advantage = torch.expm1(log_ratio.double()), advantage.double()
    gain = torch.minimum(excess * advantage, excess.clamp(-clip_range, clip_range) * advantage)
    with torch.no_grad():
        low = (advantage < 0) & (excess < -clip_range)
        high = (advantage > 0) & (excess > clip_range)
    return Surrogate(advantage + gain, low, high)


def check_rows(**rows: Sequence[object] | Tensor) -> None:
    """Raise ValueError unless all lists (and tensors, along their first axis) have one length."""
    lengths = {name: len(value) for name, value in rows.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"one entry per row is needed, got {', '.join(f'{k}: {n}' for k, n in lengths.items())}")


def of_rows(kind: Literal["mean", "max"], values: Tensor, lengths: Sequence[int]) -> Tensor:
    """The mean or the largest number of every row, of rows that lie one after the other in ``values`` [sum of lengths].

    A row does not depend on its neighbours, not even in rounding. "max" is of numbers >= 0, and 0 where there are none.
    """
    counts = torch.tensor(list(lengths), device=values.device)
    return torch.segment_reduce(values, kind, lengths=counts, initial=0.0 if kind == "max" else None, unsafe=True)


def merge(parts: Sequence[Mapping[str, Tensor]]) -> Statistics:
    """Join the statistics of micro-batches along their rows; a part without a name has no rows for it."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}


def summarize(stats: Mapping[str, Tensor]) -> dict[str, float]:
    """Reduce statistics to plain numbers, in one transfer from the device.

    ``x_max`` becomes a maximum, everything else a mean over rows. [B, K] also gives ``x/0`` ... ``x/K-1``, one per
    window step, and ``x_std`` and ``x_std/k`` where x ends in ``log_ratio``.
    """
    scalars: dict[str, Tensor] = {}
    for name, rows in stats.items():
        values = rows.detach().double()
        scalars[name] = values.max() if name.endswith("_max") else values.mean()
        spread = name.endswith("log_ratio")
        if spread:
            scalars[f"{name}_std"] = values.std(correction=0)
        for k in range(values.shape[1] if values.ndim == 2 else 0):
            scalars[f"{name}/{k}"] = values[:, k].mean()
            if spread:
                scalars[f"{name}_std/{k}"] = values[:, k].std(correction=0)
    if not scalars:
        return {}
    return dict(zip(scalars, torch.stack([s.cpu() for s in scalars.values()]).tolist(), strict=True))
