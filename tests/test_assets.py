"""The shipped checkpoints: they load, are small, and are as imperfect as the demo needs (figures of `make base`)."""

import json
from dataclasses import replace
from pathlib import Path
from shutil import copy

import pytest
import torch

from unigrpo import build
from unigrpo.evaluation import understanding
from unigrpo.evaluation.evaluator import evaluate, summarise
from unigrpo.recipe import Model, load_recipe
from unigrpo.rollout.engine import Sampling
from unigrpo.rollout.episode import rounds_of
from unigrpo.worlds.shapes import revisions

CHECKPOINTS = ("shapes-pretrain", "shapes-sft", "shapes-rounds", "shapes-edits", "words-sft")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_shipped_checkpoint_is_a_whole_model_folder_of_a_few_mb(name: str) -> None:
    folder = build.builtin_folder(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2_000_000
    policy = build.policy(Model(f"builtin:{name}"))
    assert policy.spec.num_tokens >= 12
    assert all(torch.isfinite(p).all() for p in policy.model.parameters())


def test_the_sft_checkpoint_has_room_in_both_halves() -> None:
    figures = json.loads((build.builtin_folder("shapes-sft") / "evaluation.json").read_text())
    assert figures["n"] >= 2000
    assert 0.45 <= figures["score"] <= 0.57
    assert 0.60 <= figures["plan_right"] <= 0.72
    assert 0.60 <= figures["follow"] <= 0.72


def test_the_base_of_the_words_world_has_room_in_both_halves() -> None:
    figures = json.loads((build.builtin_folder("words-sft") / "evaluation.json").read_text())
    assert figures["n"] >= 2000
    assert 0.50 <= figures["score"] <= 0.70
    assert figures["plan_right"] <= 0.85 and figures["follow"] <= 0.85


def test_the_base_that_looks_has_room_in_sight_critique_and_revision() -> None:
    figures = json.loads((build.builtin_folder("shapes-rounds") / "evaluation.json").read_text())
    two, understood = figures["two_rounds"], figures["understanding"]
    assert two["n"] >= 2000 and understood["n"] >= 1000
    assert 0.45 <= two["score_first"] <= 0.60
    assert 0.60 <= understood["accuracy"]["value"] <= 0.90
    assert 0.40 <= two["critique_right"] <= 0.80
    assert two["score_first"] + 0.05 <= two["score_second"] <= 0.85
    assert two["after_right"] >= two["after_wrong"] + 0.2


def test_the_base_of_edits_has_room_in_edits_and_their_critiques() -> None:
    figures = json.loads((build.builtin_folder("shapes-edits") / "evaluation.json").read_text())
    assert figures["edits"]["n"] >= 2000
    assert 0.25 <= figures["edits"]["score_first"] <= 0.50
    assert figures["edits"]["critique_right"] <= 0.60
    policy, suite = build.policy(Model("builtin:shapes-edits")), build.suite("shapes:edit-held-out")
    sampling = Sampling(num_points=9, shift=4.0, max_think_tokens=48)
    episode = rounds_of(2, think=True)
    result = evaluate(policy, suite.prompts(120), suite.judge, sampling, samples=1, seed=3, episode=episode)
    measured = revisions.figures(result.records)
    for key in ("score_first", "score_second", "critique_right"):  # 120 samples: a standard error of 0.045
        assert abs(measured[key] - figures["edits"][key]) < 0.18, key


def test_the_base_of_edits_is_made_by_its_recipe(tmp_path: Path) -> None:
    """It was trained before that had a name of its own: all else is the same."""
    copy(build.builtin_folder("shapes-edits") / "recipe.yaml.txt", tmp_path / "made.yaml")
    made = load_recipe(str(tmp_path / "made.yaml"), ())
    recipe = load_recipe("shapes/edits-sft", ())
    assert replace(made, name=recipe.name, description=recipe.description) == recipe


def test_the_figures_of_the_base_that_looks_are_the_models() -> None:
    figures = json.loads((build.builtin_folder("shapes-rounds") / "evaluation.json").read_text())
    policy, suite, episode = (
        build.policy(Model("builtin:shapes-rounds")),
        build.suite("shapes"),
        rounds_of(2, think=True),
    )
    sampling = Sampling(num_points=9, shift=4.0, max_think_tokens=48)
    result = evaluate(policy, suite.prompts(120), suite.judge, sampling, samples=1, seed=3, episode=episode)
    measured = revisions.figures(result.records)
    for key in ("score_first", "score_second", "critique_right"):  # 120 samples: a standard error of 0.045
        assert abs(measured[key] - figures["two_rounds"][key]) < 0.18, key
    asked = build.questions("shapes:questions", 200)
    right = understanding.summary(understanding.records(asked, understanding.answers(policy, asked)))
    assert abs(right["accuracy"]["value"] - figures["understanding"]["accuracy"]["value"]) < 0.14


@pytest.mark.parametrize("world", ["shapes", "words"])
def test_the_figures_that_ship_are_the_models(world: str) -> None:
    figures = json.loads((build.builtin_folder(f"{world}-sft") / "evaluation.json").read_text())
    policy, suite = build.policy(Model(f"builtin:{world}-sft")), build.suite(world)
    sampling = Sampling(num_points=9, shift=4.0)
    result = evaluate(policy, suite.prompts(120), suite.judge, sampling, samples=1, seed=3, think=True)
    measured = summarise(result.records)
    for key in ("score", "plan_right", "follow"):  # 120 pictures: a standard error of 0.045
        assert abs(measured[key] - figures[key]) < 0.18, key


@pytest.mark.parametrize(("think", "guidance"), [(False, 1.0), (True, 2.0)])
def test_the_models_also_draw_without_thinking_and_with_guidance(think: bool, guidance: float) -> None:
    from unigrpo.rollout.guidance import Guidance

    policy, suite = build.policy(Model("builtin:shapes-sft")), build.suite("shapes")
    sampling = Sampling(num_points=9, shift=4.0, guidance=Guidance(text_scale=guidance))
    result = evaluate(policy, suite.prompts(60), suite.judge, sampling, samples=1, seed=3, think=think)
    assert summarise(result.records)["exam_score"] > 0.4
