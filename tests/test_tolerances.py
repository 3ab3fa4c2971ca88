"""Bounds near rounding grow with magnitude and length, forgive another order of additions, and nothing else."""

import pytest
import torch

from small_models import normal, small_policy
from tolerances import assert_same_sums, gradient_bound, rounding, terms_of


def in_order(numbers):
    """The sum over the first dimension, one addition after another in fp32."""
    total = torch.zeros_like(numbers[0])
    for row in numbers:
        total = total + row
    return total


@pytest.mark.parametrize("magnitude", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("terms", [4, 64, 1024])
def test_another_order_of_additions_is_forgiven_and_a_lost_term_is_not(terms, magnitude):
    numbers = magnitude * normal(terms, 500, seed=terms)
    way = numbers.cumsum(0).abs().amax()
    assert_same_sums(in_order(numbers), in_order(numbers.flip(0)), terms=terms, scale=float(way))
    with pytest.raises(AssertionError, match="where rounding explains"):
        assert_same_sums(in_order(numbers), in_order(numbers[:-1]), terms=terms, scale=float(way))


def test_the_bound_grows_with_magnitude_and_length_and_falls_with_precision():
    x = torch.tensor([0.5, -2.0])
    assert rounding(8 * x, terms=10) == pytest.approx(8 * rounding(x, terms=10))
    assert rounding(x, terms=40) == pytest.approx(2 * rounding(x, terms=10))
    assert rounding(x, terms=10, scale=4.0) == pytest.approx(2 * rounding(x, terms=10))
    assert rounding(x, terms=10, dtype=torch.float64) < 1e-8 * rounding(x, terms=10)


def test_bounds_of_the_small_model_are_far_below_any_fault():
    policy = small_policy()
    assert rounding(1.0, terms=terms_of(policy)) < 1e-5 and gradient_bound(policy) < 2e-5
