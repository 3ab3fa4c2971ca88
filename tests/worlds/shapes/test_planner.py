from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.worlds.shapes import (
    CATEGORIES,
    CELLS,
    COLOURS,
    SHAPES,
    Object,
    PromptStream,
    Scene,
    corrupt_scene,
    format_plan,
    parse_plan,
    parse_prompt,
    plan_satisfies,
    random_scene,
    sample_scene,
    slip,
    vocabulary,
)

objects = st.builds(Object, st.sampled_from(SHAPES), st.sampled_from(list(COLOURS)), st.sampled_from(CELLS))
scenes = st.lists(objects, min_size=1, max_size=16, unique_by=lambda item: item.cell).map(lambda o: Scene(tuple(o)))
PROMPTS = PromptStream("train", 0).batch(0, 300) + PromptStream("held-out", 0).batch(0, 300)


@given(scenes)
@settings(max_examples=100, deadline=None)
def test_plans_round_trip(scene: Scene):
    text = format_plan(scene)
    assert parse_plan(text) == scene
    assert parse_plan(text.replace("<think> ", "")) is None


@given(st.lists(st.sampled_from(vocabulary()), max_size=9))
@settings(max_examples=200, deadline=None)
def test_parsing_never_fails_on_what_a_model_may_write(words: list[str]):
    scene = parse_plan(" ".join(words))
    assert scene is None or format_plan(scene) == " ".join(words)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<think> </think>",
        "red circle a1",
        "<think> red circle a1",
        "red circle a1 </think>",
        "<think> circle red a1 </think>",
        "<think> red circle </think>",
        "<think> red circle a1 blue square a1 </think>",
        "<think> red circle e1 </think>",
        "<think> red circles a1 </think>",
        "<think> red circle a1 </think> </think>",
    ],
)
def test_what_is_not_a_plan(text: str):
    assert parse_plan(text) is None


def test_the_plan_has_the_agreed_words():
    scene = Scene((Object("circle", "red", "b2"), Object("square", "blue", "c3")))
    assert format_plan(scene) == "<think> red circle b2 blue square c3 </think>"


def test_sampled_scenes_satisfy_and_corrupted_ones_do_not():
    draws = random.Random(0)
    for prompt in PROMPTS:
        scene = sample_scene(prompt.metadata, draws, unsorted=0.5)
        assert plan_satisfies(scene, prompt.metadata)
        wrong = corrupt_scene(scene, prompt.metadata, draws)
        assert wrong.objects
        assert not plan_satisfies(wrong, prompt.metadata)


def test_typed_prompts_can_be_planned_too():
    draws = random.Random(0)
    for text in ("two red circles", "a red circle and a blue circle", "a red circle and a ring"):
        metadata = parse_prompt(text)
        for _ in range(20):
            scene = sample_scene(metadata, draws)
            assert plan_satisfies(scene, metadata)
            assert not plan_satisfies(corrupt_scene(scene, metadata, draws), metadata)


def test_a_mistake_is_one_edit():
    draws = random.Random(1)
    for prompt in PROMPTS:
        scene = sample_scene(prompt.metadata, draws)
        wrong = corrupt_scene(scene, prompt.metadata, draws)
        lost, new = set(scene.objects) - set(wrong.objects), set(wrong.objects) - set(scene.objects)
        assert max(len(lost), len(new)) <= 2
        assert max(len(lost), len(new)) >= 1
        assert abs(len(wrong.objects) - len(scene.objects)) <= 1


def test_the_likely_slip_of_a_category_is_the_most_frequent():
    draws = random.Random(2)
    metadata = parse_prompt("a red circle and a blue square")
    scene = Scene((Object("circle", "red", "a1"), Object("square", "blue", "b1")))
    wrong = Counter(format_plan(corrupt_scene(scene, metadata, draws)) for _ in range(400))
    text, times = wrong.most_common(1)[0]
    assert text == "<think> blue circle a1 red square b1 </think>"
    assert times > 200


def test_a_scene_that_one_mistake_cannot_spoil_is_refused():
    scene = Scene((Object("circle", "red", "a1"), Object("circle", "red", "b1")))
    with pytest.raises(ValueError, match="sample_scene"):
        corrupt_scene(scene, parse_prompt("a circle"), random.Random(0))


def test_slips_change_the_picture_by_one_object():
    draws = random.Random(3)
    for _ in range(200):
        scene = random_scene(draws)
        other = slip(scene, draws)
        assert not other.same_picture(scene)
        assert len(set(scene.objects) ^ set(other.objects)) <= 2


def test_order_of_objects():
    draws = random.Random(4)
    metadata = parse_prompt("four rings")
    assert all((s := sample_scene(metadata, draws)) == s.row_major() for _ in range(50))
    assert any((s := sample_scene(metadata, draws, unsorted=1.0)) != s.row_major() for _ in range(50))


@pytest.mark.parametrize("category", CATEGORIES)
def test_scenes_use_all_free_cells(category: str):
    draws = random.Random(5)
    metadata = next(p.metadata for p in PROMPTS if p.metadata["category"] == category)
    cells = {item.cell for _ in range(300) for item in sample_scene(metadata, draws).objects}
    assert cells == set(CELLS)
