"""Advantages: errors, assignment to trajectories, statistics (the numbers: invariants 23 and 24)."""

import pytest
import torch

from formulas import assign_advantages, group_advantages
from unigrpo.objectives.advantage import advantage_statistics
from unigrpo.trajectory import Image, Prompt, Trajectory


def test_a_group_of_one_gets_nothing():
    assert group_advantages([3.0, 1.0, 2.0], ["alone", "pair", "pair"]).tolist() == pytest.approx(
        [0.0, -0.9998, 0.9998], abs=1e-4
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rewards_must_be_finite(bad):
    with pytest.raises(ValueError, match="reward 1 is"):
        group_advantages([0.0, bad], [0, 0])


@pytest.mark.parametrize(
    "call",
    [
        lambda: group_advantages([0.0, 1.0], [0]),
        lambda: group_advantages(torch.zeros(2, 2), [0, 0]),
        lambda: group_advantages([0.0, 1.0], [0, 0], epsilon=-1e-4),
        lambda: group_advantages([0.0, 1.0], [0, 0], clip=0.0),
        lambda: assign_advantages([Trajectory(Prompt(0, "a"), 0, ())]),
    ],
)
def test_what_cannot_work_is_a_value_error(call):
    with pytest.raises(ValueError):
        call()


def test_assign_groups_by_prompt_position():
    picture = Image(torch.zeros(1, 1), (1, 1), drawn=True)
    trajectories = [
        Trajectory(Prompt(p, "same text"), s, (picture,), reward=float(s + p)) for p in (4, 9) for s in range(3)
    ]
    assigned = assign_advantages(trajectories)
    assert [t.advantage for t in assigned] == pytest.approx([-1.2246, 0.0, 1.2246] * 2, abs=1e-3)
    assert all(t.advantage is None for t in trajectories)


def test_statistics():
    rewards, ids = [0.0, 1.0, 0.5, 0.5], [0, 0, 1, 1]
    found = advantage_statistics(rewards, group_advantages(rewards, ids), ids)
    assert found["reward_mean"] == found["zero_std_ratio"] == 0.5
    assert found["reward_group_std"] == 0.25
    assert found["advantage_mean"] == pytest.approx(0.0, abs=1e-9)
    assert found["advantage_abs_max"] == pytest.approx(1.0, abs=1e-3)
