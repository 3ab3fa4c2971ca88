from __future__ import annotations

import time
from collections import Counter

import pytest

from unigrpo.worlds.shapes import CATEGORIES, DemonstrationMix, canonical, plan_satisfies
from unigrpo.worlds.shapes.demonstrations import Demonstration, demonstrations
from unigrpo.worlds.shapes.prompts import prompts

MIX = DemonstrationMix(bad_plan=0.35, mismatch=0.1, no_think=0.125, unconditional=0.125, dense=0.25, unsorted=0.5)
MADE = [item for iteration in range(25) for item in demonstrations(0, iteration, 48, MIX)]


def of(form: str) -> list[Demonstration]:
    return [item for item in MADE if item.form == form]


def test_every_batch_has_its_shares():
    for start in range(0, len(MADE), 48):
        counts = Counter(item.form for item in MADE[start : start + 48])
        for form, wanted in {"think": 24, "dense": 12, "no_think": 6, "unconditional": 6}.items():
            assert abs(counts[form] - wanted) <= 1


def test_thinking_demonstrations():
    made = of("think")
    bad = [not plan_satisfies(item.plan, item.prompt.metadata) for item in made if item.plan and item.prompt]
    missed = [not item.plan.same_picture(item.picture) for item in made if item.plan]
    assert len(bad) == len(missed) == len(made)
    assert sum(bad) / len(bad) == pytest.approx(0.35, abs=0.08)
    assert sum(missed) / len(missed) == pytest.approx(0.1, abs=0.05)
    categories = Counter(item.prompt.metadata["category"] for item in made if item.prompt)
    assert min(categories[category] for category in CATEGORIES) > 70


def test_demonstrations_without_thinking_are_right():
    for item in of("no_think"):
        assert item.prompt is not None and item.plan is None and not item.system
        assert plan_satisfies(item.picture, item.prompt.metadata)


def test_unconditional_demonstrations_train_both_contexts():
    made = of("unconditional")
    assert all(item.prompt is None and item.plan is None for item in made)
    assert 0.3 < sum(item.system for item in made) / len(made) < 0.7


def test_dense_demonstrations():
    made = of("dense")
    assert all(item.prompt is None and item.plan is item.picture for item in made)
    assert {len(item.picture.objects) for item in made} == set(range(1, 10))
    assert any(item.picture != item.picture.row_major() for item in made)


def test_nothing_held_out_is_shown():
    train = {canonical(prompt.metadata) for prompt in prompts("train")}
    assert {canonical(item.prompt.metadata) for item in MADE if item.prompt} <= train


def test_draws_are_keyed():
    assert demonstrations(0, 3, 48, MIX) == MADE[144:192]
    assert demonstrations(1, 3, 48, MIX) != MADE[144:192]


def test_a_pure_mix():
    made = demonstrations(0, 0, 30, DemonstrationMix(0, 0, 0, 0, 0, 0))
    assert all(item.plan == item.picture == item.plan.row_major() for item in made if item.plan)
    assert all(item.prompt and plan_satisfies(item.picture, item.prompt.metadata) for item in made)


@pytest.mark.parametrize(
    ("mix", "why"), [({"bad_plan": 1.2}, "bad_plan"), ({"dense": 0.9, "no_think": 0.3}, "exceed 1")]
)
def test_impossible_mixes_are_refused(mix: dict[str, float], why: str):
    with pytest.raises(ValueError, match=why):
        DemonstrationMix(**mix)


def test_a_batch_is_fast():
    times = []
    for iteration in range(5):
        began = time.perf_counter()
        demonstrations(0, iteration, 48, MIX)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.02
