"""Text GRPO: KL, statistics, errors (the loss itself: invariant 25)."""

import pytest
import torch

from formulas import text_grpo
from tolerances import rounding
from unigrpo.objectives.text_grpo import k3

ROWS = [torch.tensor([-1.0, -2.0]), torch.tensor([-0.5, -0.5, -3.0])]
ADVANTAGES = torch.tensor([1.0, -1.0])


def test_on_policy_the_loss_is_minus_the_advantage_and_every_ratio_is_one():
    term = text_grpo(ROWS, ROWS, ADVANTAGES)
    assert term.loss.tolist() == [-1.0, 1.0]
    assert term.stats["text/log_ratio_max"].tolist() == [0.0, 0.0]
    assert term.stats["text/ratio"].tolist() == [1.0, 1.0]


def test_kl_is_added_with_its_weight_and_pulls_towards_the_reference():
    now = [row.clone().requires_grad_() for row in ROWS]
    reference = [row - 0.3 for row in ROWS]
    zero = torch.zeros(2)
    term = text_grpo(now, ROWS, zero, kl_weight=0.5, reference=reference)
    expected = [0.5 * float(k3(a.detach(), b).mean()) for a, b in zip(ROWS, reference, strict=True)]
    assert term.loss.tolist() == pytest.approx(expected, abs=1e-12)
    assert term.stats["text/kl"].tolist() == pytest.approx([2 * e for e in expected], abs=1e-12)
    term.loss.sum().backward()
    assert all(bool((row.grad > 0).all()) for row in now)


def test_statistics():
    log_ratio = torch.tensor([0.5, -0.5, 0.0])
    term = text_grpo([ROWS[1] + log_ratio], [ROWS[1]], torch.tensor([1.0]))
    assert float(term.stats["text/clip_high"]) == pytest.approx(1 / 3)
    assert float(term.stats["text/clip_low"]) == 0.0
    assert float(term.stats["text/log_ratio_max"]) == pytest.approx(0.5, abs=rounding(ROWS[1], terms=2))
    assert not any(rows.requires_grad for rows in term.stats.values())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: text_grpo(ROWS, ROWS[:1], ADVANTAGES), "old: 1"),
        (lambda: text_grpo(ROWS, ROWS[::-1], ADVANTAGES), "trajectory 0"),
        (lambda: text_grpo([torch.empty(0)], [torch.empty(0)], ADVANTAGES[:1]), "no sampled token"),
        (lambda: text_grpo(ROWS, ROWS, ADVANTAGES, kl_weight=0.1), "needs the reference"),
        (lambda: text_grpo(ROWS, ROWS, ADVANTAGES, kl_weight=-0.1), "must be >= 0"),
    ],
)
def test_what_cannot_work_is_a_value_error(call, says):
    with pytest.raises(ValueError, match=says):
        call()
