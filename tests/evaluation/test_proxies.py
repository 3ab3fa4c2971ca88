"""Proxy up and gold down, from made-up validations."""

from __future__ import annotations

import numpy as np
import pytest

from unigrpo.evaluation import proxies


def kept(iteration: int, share: float, count: int = 100, key: str = "follow") -> dict:
    """A validation in which so large a share is right: the first ones."""
    right = [float(i < share * count) for i in range(count)]
    return {"iteration": iteration, "position": list(range(count)), key: right}


def test_a_row_keeps_what_is_known() -> None:
    records = [{"position": 3, "correct": True, "exam": 0.5, "reward": None, "plan_right": None, "follow": None,
                "parsable": None}]  # fmt: skip
    assert proxies.row(4, records) == {"iteration": 4, "position": [3], "correct": [1.0], "exam": [0.5]}


def test_a_change_is_taken_prompt_by_prompt() -> None:
    found = proxies.change(kept(-1, 0.8), kept(9, 0.5), "follow")
    assert found is not None and found.mean == pytest.approx(-0.3) and found.fell and not found.rose
    differences = np.array([0.0] * 71 + [-1.0] * 30)  # one prompt more that did not change
    assert found.error == pytest.approx(differences.std(ddof=1) / 101**0.5)


def test_too_few_prompts_and_unknown_ones_say_nothing() -> None:
    assert proxies.change(kept(-1, 1.0, 19), kept(9, 0.0, 19), "follow") is None
    assert proxies.change(kept(-1, 1.0), {"iteration": 9, "position": [0]}, "follow") is None
    half = kept(9, 0.0)
    half["follow"][50:] = [None] * 50
    found = proxies.change(kept(-1, 1.0), half, "follow")
    assert found is not None and found.mean == -1.0 and found.error > 0  # all alike are still no certainty


def test_a_fall_is_from_the_best_and_beyond_noise() -> None:
    history = [kept(-1, 0.5), kept(9, 0.8), kept(19, 0.7)]
    assert proxies.fallen([*history, kept(29, 0.78)], "follow") is None
    best, since = proxies.fallen([*history, kept(29, 0.5)], "follow") or pytest.fail("no fall")
    assert best["iteration"] == 9 and since.mean == pytest.approx(-0.3)
    assert proxies.fallen(history[:1], "follow") is None and proxies.fallen(history, "parsable") is None


def test_training_rewards_are_compared_by_windows() -> None:
    noise = np.random.default_rng(0).normal(size=40) * 0.02
    rewards = {i: 0.4 + 0.01 * i + noise[i] for i in range(40)}
    first, last = proxies.window(rewards, -1, 5), proxies.window(rewards, 39, 5)
    assert first == [rewards[i] for i in range(5)] and last == [rewards[i] for i in range(35, 40)]
    risen = proxies.course(first, last)
    assert risen is not None and risen.rose and risen.mean == pytest.approx(0.35, abs=0.05)
    flat = proxies.course([0.4 + n for n in noise[:20]], [0.4 + n for n in noise[20:]])
    assert flat is not None and not flat.rose and not flat.fell
    assert proxies.course([0.4], [0.9]) is None
