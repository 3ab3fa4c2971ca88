"""A model that is nothing like BAGEL (tests/toy_family.py) trains, is evaluated and draws, without a change in src/."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import toy_family
from unigrpo import cli
from unigrpo.build import models
from unigrpo.recipe import Model, load_recipe
from unigrpo.reports import runlog
from unigrpo.training import checkpoint

TOYS, REWARD = "toy_family.py:Toys", "toy_family.py:redness"
RECIPE = {
    "name": "toys",
    "iterations": 3,
    "model": {"path": TOYS},
    "data": {"prompts": "prompts.txt", "prompts_per_iteration": 2, "group_size": 4},
    "rollout": {"num_points": 6, "window": [0, 4], "window_size": 2, "max_think_tokens": 5},
    "reward": {"train": [{"name": REWARD}], "validation": [{"name": REWARD}]},
    "method": {"name": "unigrpo", "flow": {"clip_range": 0.2}},
    "optimizer": {"lr_reasoning": 1e-2, "lr_denoising": 1e-2, "micro_batch": 3, "ppo_epochs": 2},
    "eval": {"prompts": "prompts.txt", "every": 2, "limit": 3, "compare_limit": 3, "compare_samples": 2},
}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    shutil.copy(Path(toy_family.__file__), tmp_path)
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\na green circle\n")
    (tmp_path / "toys.yaml").write_text(yaml.safe_dump(RECIPE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*words: object) -> int:
    return cli.run([str(word) for word in words])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    toy = toy_family.Toy()
    toy.restore(folder)
    return {name: value.clone() for name, value in toy.module.state_dict().items()}


MOVES = {
    "unigrpo": {"embed", "cell", "words", "paint"},
    "flow_grpo": {"embed", "cell", "paint"},
    "text_grpo": {"embed", "cell", "words"},
}


@pytest.mark.parametrize("method", MOVES)
def test_it_trains_what_the_method_trains(here, method):
    """The shared backbone learns from whichever loss there is; the first update's ratios are 1 (else the run stops)."""
    assert command("train", "toys.yaml", "--method", f"{{name: {method}}}", "--out", "run") == 0
    start, end = toy_family.Toy().module.state_dict(), weights(checkpoint.complete(here / "run")[-1])
    moved = {name.split(".")[0] for name, value in end.items() if not torch.equal(value, start[name])}
    assert moved == MOVES[method]
    (first, *_) = runlog.read_metrics(here / "run")
    assert set(first["grad_norm"]) == {"shared", "reasoning", "denoising"}
    assert max(first["first_update"].values()) < 1e-5


ROUNDS = ("--rollout.rounds", 2, "--rollout.stop", "said", "--rollout.stop_words", "[a]")


@pytest.mark.parametrize("more", [(), ("--rollout.guidance", 2.0)])
def test_it_looks_at_what_it_drew(here, more):
    """Two rounds: the eyes learn, the first update's ratios are 1, and what an author must give is what it gives."""
    words = (*ROUNDS[:2], *more, "--method.advantage.credit", "improvement")
    assert command("train", "toys.yaml", *words, "--out", "run") == 0
    start, end = toy_family.Toy().module.state_dict(), weights(checkpoint.complete(here / "run")[-1])
    moved = {name.split(".")[0] for name, value in end.items() if not torch.equal(value, start[name])}
    assert moved == {"embed", "cell", "words", "paint", "see"}
    (first, *_) = runlog.read_metrics(here / "run")
    assert first["rounds"] == 2 and max(first["first_update"].values()) < 1e-5


def test_some_of_its_samples_stop(here):
    """Contexts are taken apart where samples of one batch have different numbers of rounds, and a resumed run too."""
    words = (*ROUNDS, "--data.group_size", 16, "--eval.rounds", 1)
    assert command("train", "toys.yaml", *words, "--out", "whole") == 0
    assert command("train", "toys.yaml", *words, "--out", "run", "--iterations", 1) == 0
    assert command("train", "toys.yaml", *words, "--out", "run", "--resume", "--iterations", 3) == 0
    ours, theirs = (weights(checkpoint.complete(here / name)[-1]) for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    lines = runlog.read_metrics(here / "run")
    assert any(1 < line["rounds"] < 2 for line in lines)
    assert max(lines[0]["first_update"].values()) < 1e-5


def test_a_family_that_does_not_look_is_told(here, monkeypatch, capsys):
    blind = (here / "toy_family.py").read_text().replace('"think", True', '"think", False')
    (here / "toy_family.py").write_text(blind)
    assert command("train", "toys.yaml", "--rollout.rounds", 2, "--out", "run") == 2
    assert "cannot look at what it drew; set rounds to 1" in capsys.readouterr().err and not (here / "run").exists()


def test_it_resumes_is_evaluated_and_draws(here, capsys):
    assert command("train", "toys.yaml", "--out", "run") == 0
    assert command("train", "toys.yaml", "--out", "run", "--resume", "--iterations", 4) == 0
    assert len(runlog.read_metrics(here / "run")) == 4
    assert command("train", "toys.yaml", "--out", "whole", "--iterations", 4) == 0
    ours, theirs = (weights(checkpoint.complete(here / name)[-1]) for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    trained = f"{TOYS}@run"
    assert command("eval", "--model", trained, "--suite", "prompts.txt", "--reward", REWARD, "--out", "eval") == 0
    assert json.loads((here / "eval/result.json").read_text())["pictures"] == 12
    assert command("generate", "a red circle", "--model", trained, "--out", "a.png", "--size", "8x8") == 0
    assert Image.open(here / "a.png").size == (8, 8)
    in_rounds = ("--rounds", 2, "--look", "other", "--model", trained)
    assert command("eval", *in_rounds, "--suite", "prompts.txt", "--reward", REWARD, "--out", "two") == 0
    assert len(list((here / "two").glob("*/rounds/*-1.png"))) == 12
    assert command("train", "toys.yaml", "--dry-run") == 0
    assert "a model of your own: what it costs is not known here" in capsys.readouterr().out


def test_paths_are_absolute_once_they_are_read(here):
    recipe = load_recipe("toys.yaml", [f"--model.path={TOYS}@run"])
    assert recipe.model.path == f"{here}/{TOYS}@{here}/run"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.path", "toy_family.py:Nobody"], "there is no Nobody in"),
        (["--model.path", "toy_family.py:redness"], "is no family of models: it must have look, load, group_of"),
        (["--model.path", f"{TOYS}@nowhere"], "there is no folder"),
        (["--model.lora", "{rank: 2}"], "set model.lora to null"),
        (["--rollout.image_size", "16"], "draws 8 x 8 pixels and nothing else"),
        (["--rollout.rounds", "2", "--rollout.rethink", "purple"], "rollout.rethink = 'purple': the toy reads no"),
        (
            ["--rollout.rounds", "2", "--rollout.stop", "said", "--rollout.stop_words", "[fine]"],
            "'fine': the toy reads",
        ),
        (["--data.prompts", "other.txt"], "the toy reads no pictures in prompts, and the words a red"),
    ],
)
def test_what_cannot_work_is_said(here, capsys, words, said):
    (here / "other.txt").write_text("a purple elephant\n")
    assert command("train", "toys.yaml", "--out", "run", *words) == 2
    assert said in capsys.readouterr().err and not (here / "run").exists()


def test_others_see_no_own_family():
    assert models.group_of(Model("builtin:shapes-sft").path)("language_model.lm_head.weight") == "reasoning"
