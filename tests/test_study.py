"""The studies: what is there is not made again, and the page says what the runs gave."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

import tiny_runs
from unigrpo.recipe import load_recipe
from unigrpo.reports import runlog

FILE = Path(__file__).parents[1] / "scripts" / "study.py"


@pytest.fixture
def study(monkeypatch, tmp_path):
    """The script, with a study of two variants of the tiny run."""
    tiny_runs.finished_run()
    spec = importlib.util.spec_from_file_location("study", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "study", module)
    spec.loader.exec_module(module)
    variants = {"plain": {}, "twice": {"optimizer.lr-denoising": "2e-4"}}
    monkeypatch.setitem(module.STUDIES, "tiny", module.Study("Is it so?", "shapes/unigrpo", variants))
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    return module


def finished(folder):
    """A finished run with figures of a model that plans (the tiny one writes at random)."""
    file = tiny_runs.copied_run(folder) / runlog.SUMMARY
    summary = json.loads(file.read_text())
    summary["after"] |= dict.fromkeys(("score", "exam_score", "plan_right", "follow"), 0.5)
    rise = {"difference": 0.1, "low": 0.05, "high": 0.15}
    summary["paired"] = {"score": rise, "plan_right": rise, "follow": rise}
    file.write_text(json.dumps(summary))


def test_runs_that_are_there_are_read_and_not_made_again(study, monkeypatch, tmp_path):
    monkeypatch.setattr(study.subprocess, "run", lambda *_, **__: pytest.fail("nothing is missing"))
    for variant in ("plain", "twice"):
        for seed in (0, 1):
            finished(study.folder(tmp_path / "work", "tiny", variant, seed))
    study.main(["tiny", "--seeds", "2", "--work", str(tmp_path / "work")])
    runs = json.loads((tmp_path / "results" / "study-tiny.json").read_text())["runs"]
    assert runs["plain"]["0"]["score"] == runs["twice"]["1"]["score"]
    page = (tmp_path / "results" / "study-tiny.md").read_text()
    assert page.startswith("# Is it so?") and "| twice | +0.000" in page
    assert "| plain | 0 | +0.100 (+0.050 to +0.150) |" in page
    assert "Keys: plain: nothing more; twice: --optimizer.lr-denoising '2e-4'." in page


def test_what_is_missing_is_made_with_the_keys_of_its_variant(study, monkeypatch, tmp_path):
    asked = []

    def pretend(words, **options):
        asked.append(words)
        finished(Path(words[words.index("--out") + 1]))

    monkeypatch.setattr(study.subprocess, "run", pretend)
    study.main(["tiny", "--seeds", "1", "--jobs", "1", "--work", str(tmp_path / "work"), "--only", "twice"])
    (words,) = asked
    assert words[-4:] == ["--seed", "0", "--optimizer.lr-denoising", "2e-4"] and "--resume" not in words


def test_the_keys_of_every_study_are_a_recipe(study):
    for asked in study.STUDIES.values():
        for keys in asked.variants.values():
            load_recipe(asked.recipe, [w for k, v in {**asked.common, **keys}.items() for w in (f"--{k}", v)])
