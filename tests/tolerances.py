"""How far apart two right answers may be, and why: every bound of the suite that is near rounding stands here.

The result of a floating-point sum depends on the order of its additions, and the order on the math library, the width
of the processor's vectors, the number of threads and what else is in the batch. Every addition rounds by up to eps / 2
of what has been summed so far: evenly spread, a standard deviation of eps / sqrt(12) of the largest number on the way.
The roundings of n additions are all but independent, and two orders have one such sum of errors each, so they lie

    eps * sqrt(n / 6) * scale

apart in standard deviation, where ``scale`` is the largest number on the way. A bound is ``SIGMAS`` of these: it grows
with the magnitude of what is compared and with the length of the sum, so it holds on every machine, and what is wrong
(a token that is not seen, a position off by one, a term left out) misses it by orders of magnitude.

Not here, on purpose: what must be equal bit for bit (torch.equal), closed forms in fp64 (their bounds of 1e-9 and less
are as far from fp64's rounding as from any fault), statistics of random draws, comparisons with printed digits, and
limits that the method sets itself (ratios of the first update, parity with the original code).
"""

import math

import torch

SIGMAS = 5  # the largest of a thousand errors lies within 4 standard deviations
CONTEXT = 64  # more tokens than any context of the tests that compare sums


def rounding(*values, terms, scale=0.0, dtype=None):
    """The bound for values (tensors or numbers) that are sums of ``terms`` numbers, at least ``scale`` on the way."""
    tensors = [v.detach() if isinstance(v, torch.Tensor) else torch.tensor(v, dtype=torch.float64) for v in values]
    largest = max([scale, *(float(t.double().abs().max()) for t in tensors if t.numel())])
    eps = torch.finfo(dtype or torch.float32).eps
    return SIGMAS * eps * math.sqrt(terms / 6) * largest


def assert_same_sums(ours, theirs, *, terms, scale=0.0, dtype=None):
    """Two tensors are the same sums of ``terms`` numbers, added up in any order."""
    assert ours.shape == theirs.shape
    bound = rounding(ours, theirs, terms=terms, scale=scale, dtype=dtype)
    error = float((ours.detach().double() - theirs.detach().double()).abs().max()) if ours.numel() else 0.0
    assert error <= bound, f"differ by {error:.3g}, where rounding explains {bound:.3g}"


def terms_of(policy):
    """How many additions one after another make an answer of a model: all sums of all layers, and the log-softmax."""
    c = policy.config
    projections = 4 * c.hidden_size + c.intermediate_size  # q (k, v), o, gate (up), down; and the two norms
    return c.num_layers * (projections + 2 * c.hidden_size + c.head_dim + CONTEXT) + c.vocab_size


def assert_same_answers(ours, theirs, policy, *, forwards=1):
    """Two answers of a model, of one forward or of a chain of them (the steps of a picture, guided ones more)."""
    assert_same_sums(ours, theirs, terms=forwards * terms_of(policy), scale=1.0)  # the norms keep what is inside near 1


def gradient_bound(policy):
    """Bound of the relative L2 error of a gradient: a forward, the way back through it, and the sum over the tokens."""
    return rounding(1.0, terms=3 * terms_of(policy))
