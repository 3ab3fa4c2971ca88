"""Norms and gated activations with a backward pass of their own, against autograd on the plain formulas."""

import pytest
import torch
import torch.nn.functional as F

from small_models import normal
from unigrpo.models.bagel.functions import gated, rms_norm

EPS = 1e-6
DTYPES = [torch.float32, torch.bfloat16]


def plain_norm(x, weight):
    wide = x.float()
    normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype)
    return (normed * weight).to(x.dtype)


def plain_gate(gate, up):
    return F.silu(gate) * up


def leaves(*tensors, needed=None):
    needed = needed or [True] * len(tensors)
    return [t.clone().requires_grad_(want) for t, want in zip(tensors, needed, strict=True)]


def compared(ours, plain, tensors, needed=None, tolerance=1e-6):
    """Outputs to the bit, and gradients."""
    found = []
    for function in (ours, plain):
        inputs = leaves(*tensors, needed=needed)
        out = function(*inputs)
        out.backward(normal(*out.shape, seed=9).to(out.dtype))
        found.append((out, [t.grad for t in inputs]))
    (out, gradients), (expected, plainly) = found
    assert torch.equal(out, expected)
    for gradient, other in zip(gradients, plainly, strict=True):
        assert (gradient is None) == (other is None)
        if gradient is not None and other is not None:
            assert gradient.dtype == other.dtype
            assert float((gradient.double() - other.double()).norm()) <= tolerance * float(other.double().norm())


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_is_that_of_the_formula(dtype, weight_dtype, needed):
    x, weight = normal(3, 5, 2, 16, seed=1).to(dtype), (1 + 0.3 * normal(16, seed=2)).to(weight_dtype)
    low = torch.bfloat16 in (dtype, weight_dtype)
    compared(lambda x, w: rms_norm(x, w, EPS), plain_norm, (x, weight), needed, 1e-2 if low else 1e-6)


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gate_is_that_of_the_formula(dtype, needed):
    gate, up = (normal(7, 33, seed=seed).to(dtype) for seed in (3, 4))
    compared(gated, plain_gate, (gate, up), needed, 1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_norm_of_a_stream_that_is_not_contiguous():
    x = normal(4, 6, 16, seed=5).transpose(0, 1)
    compared(lambda x, w: rms_norm(x, w, EPS), plain_norm, (x, normal(16, seed=6)))


def test_only_what_goes_in_is_kept():
    kept = []
    x, gate, up = leaves(normal(9, 16, seed=1), normal(9, 48, seed=2), normal(9, 48, seed=3))
    weight = torch.ones(16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        rms_norm(x, weight, EPS)
        gated(gate, up)
    assert sorted(kept) == sorted([x.numel(), 9, 16, gate.numel(), up.numel()])


def test_nothing_is_kept_without_gradients_and_inputs_stay_as_they_are():
    x, weight = normal(9, 16, seed=1), normal(16, seed=2)
    before = x.clone()
    with torch.no_grad():
        assert torch.equal(rms_norm(x, weight, EPS), plain_norm(x, weight))
        gated(x, x)
    assert torch.equal(x, before)
