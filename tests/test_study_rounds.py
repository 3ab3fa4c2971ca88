"""The study of rounds: what was measured becomes its page, and every variant is a recipe."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from unigrpo.recipe import load_recipe

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def study(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("study_rounds", SCRIPTS / "study_rounds.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "study_rounds", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def measured(first, last):
    """What scripts/measure_rounds.py says of a model."""
    side = {"exam_score": 0.9, "plan_right": 0.8, "follow": 0.7, "rounds": 2.0}
    look = {"critique_right": 0.5, "critique_right_needed": 0.3, "fixed": 0.4, "broken": 0.1}
    seen = {"first": {**side, "score": first}, "last": {**side, "score": last}, "look": look}
    seen["says_fine"] = {"of_right": 0.8, "of_wrong": None}
    understanding = {"accuracy": {"value": 0.75}}
    return {**dict.fromkeys(("seen", "grey", "other", "fine", "none"), seen), "understanding": understanding}


def test_the_page_says_what_was_measured(study, monkeypatch, tmp_path):
    monkeypatch.setattr(study.subprocess, "run", lambda *_, **__: pytest.fail("--page makes nothing"))
    for variant, seed, scores in (
        (study.UNTRAINED, 0, (0.5, 0.6)),
        (study.ONE, 0, (0.7, 0.7)),
        (study.ONE, 1, (0.8, 0.8)),
        ("two rounds, improvement", 0, (0.7, 0.8)),
        ("two rounds, improvement", 1, (0.7, 1.0)),
    ):
        folder = study.folder(tmp_path / "work", variant, seed)
        folder.mkdir(parents=True)
        (folder / study.MEASURED).write_text(json.dumps(measured(*scores)))
    study.main(["--page", "--seeds", "2", "--work", str(tmp_path / "work")])
    page = (tmp_path / "rounds.md").read_text()
    assert "| untrained | 1 | 0.500 | 0.600 |" in page and "| two rounds, improvement | 2 | 0.700 " in page
    assert "| two rounds, improvement | +0.150 (" in page  # 0.8 - 0.7 and 1.0 - 0.8
    assert "two rounds, terminal" not in page  # of which nothing was measured
    assert set(json.loads((tmp_path / "rounds.json").read_text())["runs"]) == {
        study.UNTRAINED, study.ONE, "two rounds, improvement",
    }  # fmt: skip


def test_a_trial_is_a_row_once_both_sides_are_there(study, tmp_path):
    name, *others = study.TRIALS
    run_of = study.rounds_trials.run_of
    places = {study.folder(tmp_path, study.UNTRAINED, 0): (0.5, 0.6)}
    places |= {study.rounds_trials.base_of(tmp_path, name): (0.4, 0.6)}
    places |= {run_of(tmp_path, name, "two rounds", seed): (0.7, 0.9 + 0.1 * seed) for seed in (0, 1)}
    places |= {run_of(tmp_path, name, "one round", seed): (0.8, 0.7) for seed in (0, 1)}
    stopping = study.rounds_trials.STOPPING
    places |= {run_of(tmp_path, name, stopping, seed): (0.7, 1.0) for seed in (0, 1)}
    places |= {run_of(tmp_path, others[0], "one round", 0): (0.8, 0.7)}
    for folder, scores in places.items():
        folder.mkdir(parents=True)
        (folder / study.MEASURED).write_text(json.dumps(measured(*scores)))
    study.main(["--page", "--seeds", "2", "--work", str(tmp_path)])
    page = (tmp_path / "rounds.md").read_text()
    assert f"| {name} | 2 | 0.400, 0.600 | 0.300 | 0.700, 0.950 ± " in page
    assert "| +0.150 (" in page
    assert f": {stopping} | 2 | 0.400, 0.600 | 0.300 | 0.700, 1.000 | ,  | 0.800 | +0.200 (" in page
    assert others[0] not in page  # its other side is not there


def test_the_keys_of_every_trial_are_recipes(study):
    for name, trial in study.TRIALS.items():
        for side, keys in trial.runs.items():
            words = [w for k, v in {**study.rounds_trials.SHORT, **keys}.items() for w in (f"--{k}", v)]
            recipe = load_recipe(study.RECIPE, words)
            pictures = recipe.rollout.rounds * recipe.data.group_size * recipe.data.prompts_per_iteration
            assert pictures == (320 if "ten samples" in side else 192), name
            assert recipe.rollout.rounds == (1 if side == "one round" else 2)
        base = [w for k, v in trial.base.items() for w in (f"--{k}", v)]
        assert load_recipe(study.rounds_trials.BASE_RECIPE, base).iterations >= 3000


def test_the_keys_of_every_variant_are_a_recipe(study):
    for name, keys in study.VARIANTS.items():
        recipe = load_recipe(study.RECIPE, [w for k, v in {**study.QUICK, **keys}.items() for w in (f"--{k}", v)])
        pictures = recipe.rollout.rounds * recipe.data.group_size * recipe.data.prompts_per_iteration
        assert pictures == (320 if "ten samples" in name else 192) and recipe.iterations == 60
