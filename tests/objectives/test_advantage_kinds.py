"""Whom a reward teaches, how several are combined, what is divided by and compared with: closed forms, invariances."""

import math
from dataclasses import replace

import pytest
import torch

from unigrpo.objectives.advantage import Advantage, Share
from unigrpo.trajectory import Image, Prompt, Text, Trajectory

EXACT = Advantage(epsilon=0.0, clip=100.0)
GROUPS = [0, 0, 0, 1, 1, 1]
FIRST, SECOND = [0.0, 1.0, 2.0, 5.0, 5.0, 8.0], [0.0, 30.0, 0.0, -10.0, 10.0, 0.0]


def std(values):
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


def made(position, sample, thought=None, **values):
    """A trajectory with a thinking and a picture."""
    said = Text(torch.tensor([1, 2]), log_probs=torch.zeros(3))
    segments = (Text(torch.tensor([3])), said, Image(torch.zeros(1, 1), (1, 1), drawn=True))
    return Trajectory(
        Prompt(position, ""), sample, segments, reward=sum(values.values()), values=values, thought=thought
    )


def halves(trajectories):
    """(advantage of the thinking, of the picture) of each."""
    return [(t.sampled_texts[0].advantage, t.images[0].advantage) for t in trajectories]


def close(found, wanted):
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_the_default_is_the_papers():
    of = EXACT.of(FIRST, GROUPS).tolist()
    close(of, [*((r - 1) / std(FIRST[:3]) for r in FIRST[:3]), *((r - 6) / std(FIRST[3:]) for r in FIRST[3:])])


def test_leave_one_out_compares_with_the_others():
    of = replace(EXACT, baseline="leave_one_out", scale="none").of(FIRST, GROUPS).tolist()
    close(of, [0 - 1.5, 1 - 1, 2 - 0.5, 5 - 6.5, 5 - 6.5, 8 - 5])


def test_scales():
    close(replace(EXACT, scale="none").of(FIRST, GROUPS).tolist(), [-1, 0, 1, -1, -1, 2])
    close(replace(EXACT, scale="batch_std").of(FIRST, GROUPS).tolist(), [a / std(FIRST) for a in (-1, 0, 1, -1, -1, 2)])


def test_gdpo_compares_every_reward_by_itself_then_the_sum_over_the_batch():
    columns = [(1.0, FIRST), (0.5, SECOND)]
    each = [
        [(v[i] - sum(v[g : g + 3]) / 3) / std(v[g : g + 3]) for g in (0, 3) for i in range(g, g + 3)]
        for v in (FIRST, SECOND)
    ]
    joined = [a + 0.5 * b for a, b in zip(*each, strict=True)]
    close(
        replace(EXACT, combine="gdpo").of_several(columns, GROUPS).tolist(),
        [(j - sum(joined) / 6) / std(joined) for j in joined],
    )


def test_gdpo_gives_a_small_reward_its_weight_and_a_sum_does_not():
    columns = [(1.0, [0.0, 1.0]), (1.0, [1000.0, 0.0])]
    close(replace(EXACT, combine="gdpo").of_several(columns, [0, 0]).tolist(), [0.0, 0.0])
    close(EXACT.of_several(columns, [0, 0]).tolist(), [1.0, -1.0])


KINDS = [
    replace(EXACT, combine=combine, scale=scale, baseline=baseline)
    for combine in ("sum", "gdpo")
    for scale in ("group_std", "batch_std", "none")
    for baseline in ("group", "leave_one_out")
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_changes_nothing(kind):
    columns = [(1.0, FIRST), (0.5, SECOND)]
    shifted = [(1.0, [v + 100 for v in FIRST]), (0.5, [v - 7 for v in SECOND])]
    if kind.scale == "batch_std":  # of rewards, so that a constant cancels there, too
        assert kind.of(FIRST, GROUPS).tolist() == pytest.approx(kind.of(shifted[0][1], GROUPS).tolist())
    close(kind.of_several(columns, GROUPS).tolist(), kind.of_several(shifted, GROUPS).tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_ten_times_a_reward_changes_only_what_it_is_said_to(kind):
    ours, tenfold = (kind.of([k * v for v in FIRST], GROUPS) for k in (1, 10))
    close(tenfold.tolist(), (ours * (10 if kind.scale == "none" else 1)).tolist())
    columns = [[(1.0, FIRST), (0.5, [k * v for v in SECOND])] for k in (1, 10)]
    one, ten = (kind.of_several(c, GROUPS) for c in columns)
    unmoved = kind.combine == "gdpo" and kind.scale != "none"
    assert torch.allclose(one, ten, atol=1e-5) == unmoved


@pytest.mark.parametrize("kind", KINDS)
def test_equal_rewards_teach_nothing(kind):
    assert kind.of_several([(1.0, [0.1] * 6), (2.0, [0.3] * 6)], GROUPS).tolist() == [0.0] * 6


def test_a_reward_teaches_whom_it_is_said_to_teach():
    rows = [made(0, s, look=float(s), length=float(-s * s)) for s in range(3)]
    shares = [Share("look", 1.0, "drawing"), Share("length", 2.0, "thinking")]
    look, length = EXACT.of([0, 1, 2], [0] * 3).tolist(), EXACT.of([0, -2, -8], [0] * 3).tolist()
    found = halves(EXACT.assign(rows, shares))
    close([a for a, _ in found], length)
    close([b for _, b in found], look)


def test_with_one_reward_for_both_a_trajectory_has_one_advantage():
    rows = [made(p, s, look=float((3 * s + p) % 4)) for p in (4, 9) for s in range(3)]
    plain, shared = EXACT.assign(rows), EXACT.assign(rows, [Share("look")])
    assert halves(plain) == halves(shared) and all(a == b for a, b in halves(plain))


def test_what_nobody_teaches_has_no_advantage():
    rows = [made(0, s, look=float(s)) for s in range(3)]
    assert [a for a, _ in halves(EXACT.assign(rows, [Share("look", 1.0, "drawing")]))] == [None] * 3


def test_gdpo_gives_groups_of_equal_rewards_exactly_nothing():
    """Rounding of the batch's mean must not become a gradient: Adam would make steps of it."""
    rows = [made(g, s, look=v) for g, group in enumerate(((0.1, 0.2, 0.7), (5, 5, 5))) for s, v in enumerate(group)]
    found = halves(replace(EXACT, combine="gdpo").assign(rows, [Share("look", 1.0)]))
    assert [b for _, b in found[3:]] == [0.0] * 3 and all(b for _, b in found[:3])


def test_a_thought_is_worth_the_mean_of_its_pictures():
    """Two thoughts with two pictures each: (0, 1) and (2, 5)."""
    rows = [made(0, s, thought=s // 2, look=v) for s, v in enumerate((0.0, 1.0, 2.0, 5.0))]
    found = halves(EXACT.assign(rows))
    close([a for a, _ in found], [-1.0, -1.0, 1.0, 1.0])
    close([b for _, b in found], EXACT.of([0, 1, 2, 5], [0] * 4).tolist())
    within = halves(replace(EXACT, within="thought").assign(rows))
    close([a for a, _ in within], [-1.0, -1.0, 1.0, 1.0])
    close([b for _, b in within], [-1.0, 1.0, -1.0, 1.0])


def test_a_thought_of_which_pictures_are_missing_is_worth_those_that_are_there():
    rows = [made(0, s, thought=s // 2, look=v) for s, v in enumerate((0.0, 1.0, 2.0, 5.0))]
    found = halves(EXACT.assign(rows[1:]))
    close([a for a, _ in found], [-1.0, 1.0, 1.0])  # 1 against 3.5
