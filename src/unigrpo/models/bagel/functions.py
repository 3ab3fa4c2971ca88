"""Norms and activations with a backward pass of their own: what goes in is kept, and nothing of what is in between."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Normalised(torch.autograd.Function):
    """x / rms(x) times weight [d] over the last dimension; see :func:`rms_norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Keep x in its own dtype, and 1 / rms(x)."""
        out, inverse = _normalised(x, weight, eps)
        ctx.save_for_backward(x, inverse, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """d x = (g w - n mean(g w n)) / rms with n = x / rms, and d weight = sum of g n."""
        x, inverse, weight = ctx.saved_tensors
        normed, wide, to_x, to_weight = x.float() * inverse, gradient.float(), None, None
        if ctx.needs_input_grad[1]:
            seen = wide * normed.to(x.dtype)
            to_weight = seen.reshape(-1, weight.shape[0]).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            wide = wide * weight.float()
            share = torch.linalg.vecdot(wide, normed).div_(-weight.shape[0]).unsqueeze(-1)
            to_x = wide.addcmul_(normed, share).mul_(inverse).to(x.dtype)
        return to_x, to_weight, None


def _normalised(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What :func:`rms_norm` gives, and 1 / rms(x)."""
    wide = x.float()
    inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (wide * inverse).to(x.dtype).mul_(weight), inverse  # weights may be kept wider than the computation


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x * rsqrt(mean(x^2) + eps) in fp32, cast back to the dtype of x, times weight."""
    if not torch.is_grad_enabled():  # autograd's bookkeeping is a third of what a decoded word's norm takes
        return _normalised(x, weight, eps)[0]
    out = Normalised.apply(x, weight, eps)
    assert isinstance(out, Tensor)
    return out


class Gated(torch.autograd.Function):
    """silu(gate) * up; see :func:`gated`."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Keep both, and not silu(gate)."""
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """silu(gate) is made again."""
        gate, up = ctx.saved_tensors
        to_gate = torch.ops.aten.silu_backward(gradient * up, gate) if ctx.needs_input_grad[0] else None
        to_up = F.silu(gate).mul_(gradient) if ctx.needs_input_grad[1] else None
        return to_gate, to_up


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    out = Gated.apply(gate, up)
    assert isinstance(out, Tensor)
    return out
