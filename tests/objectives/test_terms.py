"""The clipped surrogate and the statistics of terms."""

import pytest
import torch

from unigrpo.objectives.terms import clipped_surrogate, merge, of_rows, summarize


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_surrogate_is_ppo(advantage):
    ratio = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0], dtype=torch.float64)
    found = clipped_surrogate(ratio.log(), torch.tensor(advantage), 0.2)
    expected = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    torch.testing.assert_close(found.value, expected, atol=1e-12, rtol=0)
    clipped = found.clipped_high if advantage > 0 else found.clipped_low
    outside = ratio > 1.2 if advantage > 0 else ratio < 0.8
    assert torch.equal(clipped, outside)


def test_clip_range_zero_is_refused():
    with pytest.raises(ValueError, match="clip_range is 0"):
        clipped_surrogate(torch.zeros(1), torch.ones(1), 0.0)


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_numbers_of_rows_are_those_of_each_row_alone(kind):
    lengths = [3, 1, 7, 2]
    values = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = [of_rows(kind, row, [len(row)]) for row in values.split(lengths)]
    assert torch.equal(of_rows(kind, values, lengths), torch.cat(alone))
    expected = [row.mean() if kind == "mean" else row.max() for row in values.split(lengths)]
    torch.testing.assert_close(torch.cat(alone), torch.stack(expected), atol=1e-15, rtol=0)


def test_the_largest_of_no_numbers_is_0_and_one_that_is_not_finite_stays():
    found = of_rows("max", torch.tensor([2.0, float("nan"), 1.0]), [0, 1, 2])
    assert found[:2].tolist() == [0.0, 2.0]
    assert found[2].isnan()


def test_statistics_of_micro_batches_are_those_of_the_whole():
    whole = {
        "flow/log_ratio": torch.arange(12.0).reshape(6, 2),
        "flow/log_ratio_max": torch.arange(6.0),
        "text/ratio": torch.arange(6.0),
    }
    parts = [{name: rows[i : i + 2] for name, rows in whole.items()} for i in (0, 2, 4)]
    found = summarize(merge(parts))
    assert found == summarize(whole)
    assert found["flow/log_ratio_max"] == 5.0 and found["text/ratio"] == 2.5
    assert found["flow/log_ratio"] == 5.5 and found["flow/log_ratio/1"] == 6.0
    assert found["flow/log_ratio_std/0"] == pytest.approx((35 / 3) ** 0.5, abs=1e-12)
    assert summarize({}) == {} and merge([]) == {}
