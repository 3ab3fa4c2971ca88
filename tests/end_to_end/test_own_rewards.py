"""A run with a reward of one's own: tried before all else, resumed by the command that it prints, and for edits."""

import json
import os
import random
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_runs
import unigrpo
from unigrpo import build, cli
from unigrpo.build import trial
from unigrpo.models.bagel_files.opening import Opened
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.recipe import Scorer, to_yaml
from unigrpo.reports import runlog
from unigrpo.reports.source_pictures import IMAGES
from unigrpo.rewards import registry
from unigrpo.rewards.composite import CompositeReward, WeightedReward
from unigrpo.rewards.protocol import DifferentiableReward, RewardFault
from unigrpo.training import checkpoint
from unigrpo.trajectory import Prompt

VERIFIER = """
from unigrpo import build
from unigrpo.rewards import registry
verifier = registry.build("shapes/verifier")
calls = []

def judge(images, prompts, metadata, thinking):
    calls.append(len(prompts))
    if len(calls) == FAILS:
        raise RuntimeError("the judge is out")
    return verifier(images, prompts, metadata, thinking)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, and no reward but those that ship."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    monkeypatch.setattr(registry, "_RECALLED", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path / "here"


def write(path, text):
    path.write_text(textwrap.dedent(text))
    return path


def to_go_on(shown):
    """The command that a run printed, as its arguments."""
    (line,) = [line for line in shown.splitlines() if "to go on: " in line]
    program, *arguments = shlex.split(line.partition("to go on: ")[2])
    assert program == "unigrpo"
    return arguments


BROKEN = """
def broken(images, prompts, metadata, thinking):
    return [m["colour"] for m in metadata]
"""


@pytest.mark.parametrize("key", ["train", "validation"])
def test_a_bug_in_a_reward_is_told_before_anything_is_done(here, capsys, monkeypatch, key):
    write(here / "mine.py", BROKEN)
    monkeypatch.setattr(build.models.Bagel, "load", lambda *given, **options: pytest.fail("a model was loaded"))
    words = tiny_runs.overrides(**{f"reward__{key}": "[{name: shapes/verifier}, {name: mine.py:broken}]"})
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", "run", *words) == 2
    shown = capsys.readouterr()
    assert "tried on one picture of noise before anything else: reward 'mine.py:broken' raised KeyError" in shown.err
    assert f'File "{here}/mine.py", line 3, in broken' in shown.err and 'return [m["colour"]' in shown.err
    assert "Traceback" not in shown.err and not shown.out and tiny_runs.listed(here) == ["mine.py"]


def test_a_bug_in_the_reward_of_a_later_stage_is_told_at_once(here, capsys):
    write(here / "mine.py", BROKEN)
    written = {**runlog_recipe(), "stages": [{"name": "one"}, {"name": "two", "reward": {"train": [OWN]}}]}
    (here / "staged.yaml").write_text(json.dumps(written))
    assert tiny_runs.unigrpo("train", "staged.yaml", "--out", "run") == 2
    shown = capsys.readouterr().err
    assert "shapes/unigrpo:two" in shown and "reward 'mine.py:broken' raised KeyError" in shown
    assert not (here / "run").exists()


OWN = {"name": "mine.py:broken"}


def runlog_recipe():
    """A tiny recipe as a mapping."""
    from unigrpo.recipe.notation import parse

    return parse(to_yaml(tiny_runs.tiny_recipe()))


def test_eval_tries_its_reward_too(here, capsys):
    write(here / "mine.py", BROKEN)
    words = ("--model", tiny_runs.model_folder(), "--limit", 2, "--reward", "mine.py:broken", "--out", "judged")
    assert tiny_runs.unigrpo("eval", *words) == 2
    assert "tried on one picture" in capsys.readouterr().err
    assert not (here / "judged" / "records.jsonl").exists()


def test_a_reward_that_detaches_its_pictures_is_refused_where_its_gradient_is_needed():
    def trying(score):
        reward = type("Scored", (DifferentiableReward,), {"score": lambda self, images, *other: score(images)})()
        trial.try_gradient(CompositeReward((WeightedReward("mine", reward),)), Prompt(0, "a"), (32, 32))

    trying(lambda images: images.mean((1, 2, 3)))
    for score, said in (
        (lambda images: images.detach().mean((1, 2, 3)), "gives no gradient for its pictures"),
        (lambda images: images.mean(), "gave a tensor of shape"),
    ):
        with pytest.raises(RewardFault, match=f"tried on one picture .* 'mine' {said}"):
            trying(score)


def test_the_trial_draws_from_no_generator_of_the_run():
    def draws(images, prompts, metadata, thinking):
        assert images.shape == (1, 3, 32, 16) and thinking == ["<think> a cup </think>"] and images.std() > 0.2
        assert torch.equal(images, (images * 255).round() / 255)
        return [float(torch.rand(())) + np.random.rand() + random.random()]

    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    reward = CompositeReward((WeightedReward("mine", draws),))
    trial.try_reward(reward, Prompt(0, "a cup"), (32, 16), think=True)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


# ---------------------------------------------------------------- going on


def fail_in_training(here, name, **other):
    """Begin a run whose reward fails in training."""
    words = tiny_runs.overrides(reward__train=f"[{{name: {name}}}]", checkpoint__every=25, **other)
    return tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", here / "run", *words)


def test_the_printed_command_resumes_a_run_with_a_reward_in_a_file(here, capsys, tmp_path, monkeypatch):
    path = write(here / "mine.py", VERIFIER.replace("FAILS", "4"))  # the first call is the trial's
    assert fail_in_training(here, "mine.py:judge") == 2
    assert f'File "{path}", line 10, in judge' in (said := capsys.readouterr()).err
    environment = runlog.read_json(here / "run" / "environment.json")
    assert environment["rewards"][f"{path}:judge"]["sha256"]
    write(path, VERIFIER.replace("FAILS", "0"))
    monkeypatch.chdir(tmp_path)
    assert tiny_runs.unigrpo(*to_go_on(said.out)) == 0
    assert f"note: {path}, which holds the reward '{path}:judge', has changed" in capsys.readouterr().out
    tiny_runs.assert_same_run(here / "run", tiny_runs.finished_run(), reward="mine.py:judge")


SCRIPT = """
import sys
from unigrpo import cli
from unigrpo.rewards import registry
SCORER
registry.register("mine/judge", lambda: judge)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_printed_command_resumes_a_run_with_a_reward_that_a_script_registered(here, capsys, tmp_path):
    """The parts' names in the metrics stay, too: the reward is still called as it was registered."""
    script = write(here / "script.py", SCRIPT.replace("SCORER", VERIFIER.replace("FAILS", "3")))
    rewards = "[{name: mine/judge}, {name: image/jpeg-compressibility, weight: 0}]"
    words = tiny_runs.overrides(reward__train=rewards, iterations=2)
    environment = {**os.environ, "PYTHONPATH": str(Path(unigrpo.__file__).parents[1])}
    command = [sys.executable, script.name, "train", tiny_runs.UNIGRPO, "--out", str(tmp_path / "run"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "the judge is out" in done.stderr, done.stderr
    write(script, SCRIPT.replace("SCORER", VERIFIER.replace("FAILS", "0")))
    assert tiny_runs.unigrpo(*to_go_on(done.stdout)) == 0
    lines = runlog.read_metrics(tmp_path / "run")
    assert len(lines) == 2
    assert all(set(lines[0]["reward_parts"]) == set(line["reward_parts"]) for line in lines)
    assert {"mine/judge", "mine/judge/correct"} <= set(lines[0]["reward_parts"])


def test_a_reward_of_a_notebook_is_told_as_what_it_is(here, capsys):
    names = {"__name__": "__main__", "registry": registry}
    cell = VERIFIER + 'registry.register("mine/judge", lambda: judge)'
    exec(compile(cell.replace("FAILS", "3"), "<cell>", "exec"), names)
    assert fail_in_training(here, "mine/judge", iterations=2) == 2
    said = capsys.readouterr().out
    assert "to go on: register the reward 'mine/judge' (which came from a Python session (module __main__)) and" in said
    registry._FACTORIES.pop("mine/judge")
    again = ("train", tiny_runs.UNIGRPO, "--out", here / "run", "--resume")
    assert tiny_runs.unigrpo(*again) == 2
    assert "'mine/judge' was registered from Python by a Python session" in capsys.readouterr().err
    exec(compile(cell.replace("FAILS", "0"), "<cell>", "exec"), names)  # the cell, run again
    assert tiny_runs.unigrpo(*again) == 0
    assert len(runlog.read_metrics(here / "run")) == 2


def test_what_logs_call_rewards():
    names = ["/a/mine.py:f", "/b/mine.py:f", "/b/mine.py:g", "package.module:f", "shapes/verifier", "/b/mine.py:g"]
    found = build.rewards.labels([Scorer(name=name) for name in names])
    assert found == [*names[:2], "mine.py:g", *names[3:5], "mine.py:g-2"]
    twice = [Scorer(name="a"), Scorer(name="a", value="x"), Scorer(name="a", value="y"), Scorer(name="a", value="y")]
    assert build.rewards.labels(twice) == ["a", "a:x", "a:y", "a:y-2"]
    name = "/far/away/mine.py:red"
    with registry.meaning({name: lambda images, prompts, metadata, thinking: []}):  # as Python's calls have them
        assert build.rewards.labels([Scorer(name=name)]) == ["mine.py:red"]


# ---------------------------------------------------------------- a program's or notebook's call


def test_main_gives_the_exit_code_and_raises_nothing(here, capsys):
    assert cli.main(["recipes"]) == 0
    assert cli.main(["--help"]) == 0
    assert cli.main(["train", "--no-such-verb"]) == 2
    assert cli.main(["generate", "a red circle", "--steps", "many"]) == 2
    assert cli.main(["train", "nowhere.yaml"]) == 2


def test_the_command_and_the_module_end_with_the_exit_code(here):
    environment = {**os.environ, "PYTHONPATH": str(Path(unigrpo.__file__).parents[1])}
    for call in (["-m", "unigrpo"], ["-c", "import sys; from unigrpo.cli import main; sys.exit(main())"]):
        for words, code in ((["--help"], 0), (["draw"], 2)):
            done = subprocess.run(
                [sys.executable, *call, *words], env=environment, capture_output=True, timeout=60, check=False
            )
            assert done.returncode == code


# ---------------------------------------------------------------- edits


EDITED = """
def like_source(images, prompts, metadata, thinking):
    given = [m["images"] for m in metadata]
    assert all(len(pictures) == 2 and pictures[0].shape == (3, 40, 80) for pictures in given)
    assert all(0.2 < float(pictures[0].mean()) < 0.4 and m["wish"] == "red" for pictures, m in zip(given, metadata))
    return [-float((picture.mean() - source[0].mean()).abs()) for picture, source in zip(images, given)]
"""


def test_editing_rewards_see_the_source_and_records_name_it(here, monkeypatch):
    """With the few-MB model, which is blind to pictures: what a model sees of them is not the matter here."""
    turn, read = Bagel.turn, Opened.read
    monkeypatch.setattr(Opened, "read", lambda self, text, pictures=0: read(self, text))
    monkeypatch.setattr(Bagel, "turn", lambda self, text, images=(), **options: turn(self, text, (), **options))
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:, :, 0] = 255
    Image.fromarray(pixels).save("red.png")
    Image.fromarray(np.zeros((300, 600, 3), dtype=np.uint8)).save("large.png")
    row = json.dumps({"prompt": "a red circle", "images": ["red.png", "large.png"], "wish": "red"})
    (here / "edits.jsonl").write_text(f"{row}\n{row}\n")
    write(here / "mine.py", EDITED)
    names = {"data__prompts": "edits.jsonl", "eval__prompts": "edits.jsonl", "iterations": 1, "eval__every": 1}
    names |= {f"reward__{key}": "[{name: mine.py:like_source}]" for key in ("train", "validation")}
    words = tiny_runs.overrides(**names)
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", "run", *words) == 0
    for record in runlog.read_records(here / "run" / "samples" / "iteration-000001.jsonl"):
        position = record["position"]
        assert record[IMAGES] == [f"samples/iteration-000001-source-{position}-{k}.png" for k in (0, 1)]
    for when in ("before", "after"):
        records = runlog.read_records(here / "run" / "evaluations" / f"{when}.jsonl")
        assert [r[IMAGES][0] for r in records] == ["evaluations/source-0-0.png", "evaluations/source-1-0.png"]
        assert all(isinstance(record["reward"], float) for record in records)
    with Image.open(here / "run" / "evaluations" / "source-0-0.png") as kept:
        assert np.array_equal(np.asarray(kept), pixels)
    with Image.open(here / "run" / "samples" / "iteration-000001-source-0-1.png") as kept:
        assert kept.size == (256, 128)
    assert len(checkpoint.complete(here / "run")) == 1


def test_records_without_sources_stay_as_they_are():
    run_dir = tiny_runs.finished_run()
    records = runlog.read_records(run_dir / "evaluations" / "before.jsonl")
    assert records and not any(IMAGES in record for record in records)
    assert not list(run_dir.rglob("*source*"))
