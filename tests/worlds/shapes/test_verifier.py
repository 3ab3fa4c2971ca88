from __future__ import annotations

import random

import pytest
import torch

from unigrpo.worlds.shapes import (
    Object,
    PromptStream,
    RewardWeights,
    Scene,
    corrupt_scene,
    follows,
    parse_prompt,
    random_scene,
    read_scenes,
    render,
    sample_scene,
    slip,
    verify,
)

DRAWS = random.Random(0)
METADATA = [p.metadata for split in ("train", "held-out") for p in PromptStream(split, 0).batch(0, 150)]
SCENES = [sample_scene(item, DRAWS) for item in METADATA]
PICTURES = render(SCENES)


def noise(sigma: float) -> torch.Tensor:
    return sigma * torch.randn(PICTURES.shape, generator=torch.Generator().manual_seed(0))


def test_true_pictures_are_right_and_worth_one():
    for verdict, scene in zip(verify(PICTURES, METADATA), SCENES, strict=True):
        assert verdict.correct and verdict.clean
        assert verdict.exam == 1
        assert verdict.reward == pytest.approx(1, abs=1e-6)
        assert follows(verdict.reading, scene)


def test_mild_noise_does_no_harm():
    verdicts = verify((PICTURES + noise(0.02)).clamp(0, 1), METADATA)
    exact = [v.correct and follows(v.reading, scene) for v, scene in zip(verdicts, SCENES, strict=True)]
    assert sum(exact) >= 0.995 * len(exact)
    assert all(verdict.reward > 0.97 for verdict in verdicts)


def test_one_wrong_thing_is_never_accepted():
    wrong = [corrupt_scene(scene, item, DRAWS) for scene, item in zip(SCENES, METADATA, strict=True)]
    for verdict in verify(render(wrong), METADATA):
        assert not verdict.correct
        assert verdict.exam < 1
        assert verdict.reward < 0.5


def test_a_missed_plan_is_noticed():
    for reading, scene in zip(read_scenes(render([slip(scene, DRAWS) for scene in SCENES])), SCENES, strict=True):
        assert not follows(reading, scene)


def test_crowded_scenes_are_read_object_for_object():
    scenes = [random_scene(DRAWS, 10, 16) for _ in range(50)]
    assert all(follows(r, scene) for r, scene in zip(read_scenes(render(scenes)), scenes, strict=True))


def test_a_smudge_is_no_object_but_not_clean():
    scene = Scene((Object("circle", "red", "a1"), Object("square", "blue", "b1")))
    smudged = render([scene])
    smudged[:, :, 24:, 24:] = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    (verdict,) = verify(smudged, [parse_prompt("a red circle")])
    assert verdict.correct and not verdict.clean
    assert verdict.reading.smudges == 1
    assert verdict.reading.scene.same_picture(scene)
    assert not follows(verdict.reading, scene)
    assert 0.2 < verdict.reward < 0.25  # the square and the smudge are two things too many: tidy ** 2


def test_an_object_too_many_halves_the_reward_of_a_correct_picture():
    circle, square = Object("circle", "red", "a1"), Object("square", "blue", "b1")
    asked = parse_prompt("a red circle")
    alone, both = verify(render([Scene((circle,)), Scene((circle, square))]), [asked, asked])
    assert alone.correct and both.correct  # GenEval forgives extra objects, the reward does not
    assert alone.reward == pytest.approx(1.0) and both.reward == pytest.approx(0.5)


def test_half_way_between_two_objects_is_neither():
    circle, square = (render([Scene((Object(shape, "red", "a1"),))]) for shape in ("circle", "square"))
    (reading,) = read_scenes((circle + square) / 2)
    assert reading.smudges == 1
    assert not reading.scene.objects


def test_garbage_is_worth_next_to_nothing_and_rewards_stay_in_bounds():
    garbage = torch.rand(PICTURES.shape, generator=torch.Generator().manual_seed(2))
    assert all(0 <= verdict.reward < 0.05 for verdict in verify(garbage, METADATA))
    for share in (0.0, 0.3, 0.6, 0.9):
        assert all(0 <= v.reward <= 1 for v in verify(garbage * share + PICTURES * (1 - share), METADATA))


@pytest.mark.parametrize("worse", ["noise", "blur"])
def test_reward_rises_as_a_drawing_gets_crisper(worse: str):
    if worse == "noise":
        start = torch.rand(PICTURES.shape, generator=torch.Generator().manual_seed(3))
    else:
        padded = torch.nn.functional.pad(PICTURES, (2, 2, 2, 2), mode="replicate")
        start = torch.nn.functional.avg_pool2d(padded, 5, 1)
    steps = [torch.lerp(start, PICTURES, share) for share in torch.linspace(0, 1, 9).tolist()]
    rewards = torch.tensor([[verdict.reward for verdict in verify(step, METADATA)] for step in steps])
    assert (rewards.diff(dim=0) > 0).all()


def test_reward_rises_as_a_named_object_fades_in():
    metadata = parse_prompt("a red circle left of a blue square")
    done = render([Scene((Object("circle", "red", "b1"), Object("square", "blue", "b4")))])
    steps = torch.lerp(render([Scene(())]), done, torch.linspace(0, 1, 21)[:, None, None, None])
    rewards = torch.tensor([verdict.reward for verdict in verify(steps, [metadata] * 21)])
    assert (rewards.diff() > 0).all()


def test_a_nearer_miss_is_worth_more():
    metadata = parse_prompt("three rings")
    scenes = [Scene(tuple(Object("ring", "red", cell) for cell in cells)) for cells in (["a1"], ["a1", "a2"])]
    many = Scene(tuple(Object("ring", "red", cell) for cell in ("a1", "a2", "a3", "a4")))
    one, two, four = verify(render([*scenes, many]), [metadata] * 3)
    assert one.reward < two.reward < 0.5
    assert four.reward < 0.5
    assert not four.correct


def test_weights_are_tunable_and_checked():
    weights = RewardWeights(correct=0.0, evidence=1.0, clean=0.0)
    (verdict,) = verify(PICTURES[:1], METADATA[:1], weights)
    assert verdict.reward == pytest.approx(verdict.evidence)
    with pytest.raises(ValueError, match="sum to 1"):
        RewardWeights(correct=0.9)
    with pytest.raises(ValueError, match="scale"):
        RewardWeights(scale=0)


def test_a_batch_is_judged_as_its_pictures_one_by_one():
    pictures = (PICTURES[:24] + noise(0.1)[:24]).clamp(0, 1)
    for index, verdict in enumerate(verify(pictures, METADATA[:24])):
        (alone,) = verify(pictures[index : index + 1], METADATA[index : index + 1])
        assert alone.reward == pytest.approx(verdict.reward, abs=1e-9)
        assert alone.points == verdict.points
        assert alone.reading.scene == verdict.reading.scene
        assert alone.reading.smudges == verdict.reading.smudges


def test_no_pictures_no_verdicts():
    assert verify(PICTURES[:0], []) == []


@pytest.mark.parametrize(
    ("pictures", "why"),
    [
        (torch.zeros(1, 3, 24, 24), "32"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "255"),
        (torch.full((1, 3, 32, 32), 200.0), "clamp"),
        (torch.full((1, 3, 32, 32), float("nan")), "finite"),
    ],
)
def test_other_pictures_are_refused(pictures: torch.Tensor, why: str):
    with pytest.raises(ValueError, match=why):
        verify(pictures, METADATA[:1])


def test_one_metadata_per_picture():
    with pytest.raises(ValueError, match="one per picture"):
        verify(PICTURES[:2], METADATA[:1])
