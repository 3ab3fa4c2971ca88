"""Editing from end to end: a given picture first, then everything as ever; and what a run shows of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rank_runs
import rank_worker
import tiny_runs
from unigrpo import build, flow
from unigrpo.build import worlds
from unigrpo.models.bagel_files.opening import Opened
from unigrpo.reports import runlog
from unigrpo.reports.grids import read_tiles
from unigrpo.reports.html import write_report
from unigrpo.runs import training
from unigrpo.training import checkpoint
from unigrpo.trajectory import Image as Picture
from unigrpo.trajectory import View
from unigrpo.worlds.shapes import vocabulary
from unigrpo.worlds.shapes.edit_prompts import EditStream, fixed_edits

PLAIN = {"iterations": 3, "checkpoint__every": 1, "eval__every": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three iterations of shapes/edit with a small model that sees."""
    folder = tmp_path_factory.mktemp("edit") / "run"
    words = tiny_runs.overrides(tiny_runs.EDIT, **PLAIN)
    with pytest.MonkeyPatch.context() as patch:  # one test writes the report
        patch.setattr(training, "write_report", lambda run_dir: run_dir / runlog.REPORT)
        assert tiny_runs.unigrpo("train", tiny_runs.EDIT, "--out", folder, *words) == 0
    return folder


def test_the_first_update_of_edits_has_ratio_one(finished):
    first = runlog.read_metrics(finished)[0]["first_update"]
    assert abs(first["text_log_ratio_max"]) < 1e-5 and abs(first["image_log_ratio_max"]) < 1e-5


def test_a_sampled_edit_begins_with_its_picture_as_latents_and_as_seen():
    recipe = tiny_runs.tiny_recipe(tiny_runs.EDIT)
    policy = build.parts(recipe).policy
    prompt = EditStream("edit", 0).at(0)
    kinds = [type(segment) for segment in policy.prompt_segments(prompt, think=True)]
    assert kinds.count(Picture) == kinds.count(View) == 1
    assert policy.edit_size(prompt.images[0]) == (32, 32)


def test_records_and_metrics_tell_both_halves_of_an_edit(finished):
    for line in runlog.read_metrics(finished):
        assert {"correct", "exam", "changed", "kept"} <= set(line["reward_parts"])
    records = runlog.read_records(finished / "evaluations" / "after.jsonl")
    assert {r["category"] for r in records} == {"recolour", "move", "move_relative", "remove", "add", "replace"}
    assert all(0 <= r["changed"] <= 1 and 0 <= r["kept"] <= 1 for r in records)
    summary = runlog.read_json(finished / runlog.SUMMARY)
    for name in ("changed", "kept"):
        assert summary["after"][name] == pytest.approx(np.mean([r[name] for r in records]))
        assert summary["paired"][name]["difference"] == pytest.approx(summary["after"][name] - summary["before"][name])


def test_sheets_and_report_show_the_given_picture_beside_what_was_made_of_it(finished):
    sheet = finished / "evaluations" / "before.png"
    tiles = read_tiles(sheet)
    with Image.open(sheet) as image:
        assert len(tiles) == 6 and image.width > 6 * 240  # six pictures of 168 pixels, the given ones beside them
    prompts = fixed_edits("edit-held-out", 6)
    for position, prompt in enumerate(prompts):
        with Image.open(finished / "evaluations" / f"source-{position}-0.png") as kept:
            assert np.array_equal(np.asarray(kept), prompt.images[0].permute(1, 2, 0).numpy())
    page = write_report(finished).read_text()
    assert page.count('alt="given picture 1"') >= 6
    for words in ("change done", "rest kept", "changing and keeping", prompts[0].text):
        assert words in page


def test_stopped_and_resumed_edits_equal_uninterrupted_ones(finished, tmp_path):
    chosen = {**PLAIN, "checkpoint__every": 25}
    trainer = tiny_runs.trainer_of(tmp_path, tiny_runs.EDIT, **chosen)

    def after(line):
        trainer.stop.requested = line["iteration"] >= 1

    assert not tiny_runs.train(trainer, after)
    assert [folder.name for folder in checkpoint.complete(tmp_path)] == ["iteration-000002"]
    again = tiny_runs.trainer_of(tmp_path, tiny_runs.EDIT, **chosen)
    assert again.resume() == 2 and tiny_runs.train(again)
    tiny_runs.assert_same_run(tmp_path, finished)


STAGED = """
name: tiny/edits
iterations: 1
model: {{path: {model}, dtype: float32}}
data: {{prompts: shapes:edit, prompts_per_iteration: 2, group_size: 3}}
rollout: {{num_points: 6, shift: 4.0, window: [0, 3], window_size: 2, max_think_tokens: 6}}
reward: {{train: [{{name: shapes/edit}}], validation: [{{name: shapes/edit}}]}}
optimizer: {{lr_reasoning: 2.0e-3, lr_denoising: 1.0e-3, micro_batch: 6}}
eval: {{every: 25, prompts: shapes:edit-held-out, limit: 3, compare_limit: 3, compare_samples: 1, num_points: 6}}
method: {{name: unigrpo}}
stages:
  - name: draw
    data: {{prompts: shapes:train}}
    reward: {{train: [{{name: shapes/verifier}}], validation: [{{name: shapes/verifier}}]}}
    eval: {{prompts: shapes:held-out}}
  - name: edit
  - name: again
    rollout: {{rounds: 2}}
    method: {{advantage: {{credit: improvement}}}}
"""


def test_edits_are_a_stage_after_drawing_and_edits_in_rounds_one_after_that(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "write_report", lambda run_dir: run_dir)
    path = tmp_path / "staged.yaml"
    path.write_text(STAGED.format(model=tiny_runs.seeing_folder()))
    assert tiny_runs.unigrpo("train", path, "--out", tmp_path / "run") == 0
    names = ("1-draw", "2-edit", "3-again")
    drawn, edited, again = (runlog.read_metrics(tmp_path / "run" / name) for name in names)
    assert "changed" not in drawn[0]["reward_parts"] and "changed" in edited[0]["reward_parts"]
    assert again[0]["rounds"] == 2.0 and "changed" in again[0]["reward_parts"]
    assert all(max(lines[0]["first_update"].values()) < 1e-5 for lines in (drawn, edited, again))


def test_two_ranks_edit_as_one_process_does(tmp_path):
    small = {
        "recipe": tiny_runs.EDIT,
        "model.path": tiny_runs.seeing_folder(),
        "data.prompts_per_iteration": 2,
        "data.group_size": 3,
        "optimizer.micro_batch": 2,
        "optimizer.eps_denoising": 1e-7,
        "optimizer.lr_reasoning": 3e-5,
        "optimizer.lr_denoising": 1e-4,
        "rollout.max_think_tokens": 8,
        "reward.train": f"[{{name: '{Path(rank_worker.__file__)}:letters'}}]",  # no rounding of a picture changes it
        "seconds": 300,
        "iterations": 2,
    }
    alone, both = (rank_runs.worker(tmp_path, f"of-{size}", size, **small) for size in (1, 2))
    rank_runs.assert_alike(both, alone)


def test_an_evaluation_keeps_the_given_pictures_and_its_page_shows_them(tmp_path):
    words = ["--model", tiny_runs.seeing_folder(), "--suite", "shapes:edit-held-out", "--limit", "12"]
    words += ["--steps", "4", "--samples", "1", "--max-think-tokens", "8", "--out", tmp_path / "out"]
    assert tiny_runs.unigrpo("eval", *words) == 0
    records = runlog.read_records(tmp_path / "out" / "records.jsonl")
    assert len(records) == 12 and all({"changed", "kept"} <= set(r["values"]) for r in records)
    given = sorted((tmp_path / "out").glob("*/sources/0000.png"))
    assert len(given) == 12
    page = Path(tmp_path / "out" / "report.html").read_text()
    assert page.count('alt="given picture 1"') == page.count('alt="picture of prompt')  # one a card
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {"changed", "kept"} <= set(result["figures"])


def test_a_model_that_sees_nothing_is_refused_before_it_is_loaded(capsys):
    words = tiny_runs.overrides(tiny_runs.EDIT, model__path=tiny_runs.model_folder())
    assert tiny_runs.unigrpo("train", tiny_runs.EDIT, "--dry-run", *words) == 2
    told = capsys.readouterr().err
    assert (
        "it has pictures, but the model cannot see any" in told
        and "name a model that can: builtin:shapes-edits" in told
    )
    assert tiny_runs.unigrpo("eval", "--suite", "shapes:edit-held-out", "--model", tiny_runs.model_folder()) == 2
    assert "name a model that can: builtin:shapes-edits" in capsys.readouterr().err


def test_who_can_see_is_named_where_a_world_has_somebody():
    words = frozenset(vocabulary())
    assert worlds.seeing("mine.jsonl, line 1", words) == "builtin:shapes-edits" == worlds.seeing("shapes:edit", None)
    assert not worlds.seeing("mine.jsonl, line 1", None) and not worlds.seeing("shapes:edit-large", None)
    assert not worlds.seeing("words:train", frozenset(worlds.WORDS.vocabulary()))


def test_a_model_that_lacks_the_words_of_edits_is_told_them(capsys, monkeypatch):
    read = Opened.read
    monkeypatch.setattr(Opened, "read", lambda self, text, pictures=0: read(self, text))
    words = tiny_runs.overrides(tiny_runs.EDIT, model__path=tiny_runs.model_folder())
    assert tiny_runs.unigrpo("train", tiny_runs.EDIT, "--dry-run", *words) == 2
    assert "does not know the word(s)" in capsys.readouterr().err


@pytest.mark.parametrize("reward", ["shapes/edit", "shapes/verifier"])
def test_a_reward_of_other_prompts_is_refused_before_anything_is_drawn(capsys, reward):
    other = "shapes:train" if reward == "shapes/edit" else "shapes:edit"
    words = tiny_runs.overrides(
        tiny_runs.EDIT,
        data__prompts=other,
        reward__train=f"[{{name: {reward}}}]",
        reward__validation="[{name: shapes/edit}]",
    )
    assert tiny_runs.unigrpo("train", tiny_runs.EDIT, "--dry-run", *words) == 2
    assert "metadata of" in capsys.readouterr().err


def test_generate_draws_edits_and_shows_what_they_were_made_of(tmp_path):
    source = EditStream("edit", 0).at(0)
    Image.fromarray(source.images[0].permute(1, 2, 0).numpy()).save(tmp_path / "in.png")
    words = ["--model", tiny_runs.seeing_folder(), "--image", tmp_path / "in.png", "--steps", "3"]
    words += ["--max-think-tokens", "8"]
    sheet, alone = tmp_path / "sheet.png", tmp_path / "alone.png"
    assert tiny_runs.unigrpo("generate", source.text, *words, "--out", sheet, "--num", "2") == 0
    assert tiny_runs.unigrpo("generate", source.text, *words, "--out", alone, "--num", "1") == 0
    tiles = read_tiles(sheet)
    assert len(tiles) == 2 and all(tile.verdict is False for tile in tiles)  # the source is read, so edits are judged
    with Image.open(sheet) as image:
        assert image.width > 2 * (168 + 60)
    other = tmp_path / "other.png"
    Image.fromarray(np.full((32, 32, 3), 255, dtype=np.uint8)).save(other)  # which shows nothing of the world
    words[words.index("--image") + 1] = other
    assert tiny_runs.unigrpo("generate", source.text, *words, "--out", alone, "--num", "2") == 0
    assert all(tile.verdict is None for tile in read_tiles(alone))
    assert torch.tensor(tiles[0].picture).shape == (32, 32, 3)


@pytest.mark.parametrize("rounds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_of_edits_goes_on(finished, tmp_path, monkeypatch, rounds):
    """By SIGKILL, after its first checkpoint; the whole run and the one that goes on are of this process."""
    monkeypatch.setattr(training, "write_report", lambda run_dir: run_dir / runlog.REPORT)
    words = tiny_runs.overrides(tiny_runs.EDIT, **PLAIN, **({"rollout__rounds": rounds} if rounds > 1 else {}))
    whole, run_dir = finished if rounds == 1 else tmp_path / "whole", tmp_path / "run"
    if rounds > 1:
        assert tiny_runs.unigrpo("train", tiny_runs.EDIT, "--out", whole, *words) == 0
        assert {line["rounds"] for line in runlog.read_metrics(whole)} == {rounds}
    tiny_runs.killed_after_its_first_checkpoint(run_dir, tiny_runs.EDIT, *words)
    assert len(runlog.read_metrics(run_dir)) < PLAIN["iterations"]
    assert tiny_runs.unigrpo("train", tiny_runs.EDIT, "--out", run_dir, "--resume") == 0
    tiny_runs.assert_same_run(run_dir, whole)


GUIDED = {"eval__guidance": 4.0, "eval__image_guidance": 2.0, "eval__renorm": "text_channel", "eval__compare_limit": 2}


def test_evaluations_guide_on_the_given_picture_as_eval_does(tmp_path, monkeypatch):
    """Each of a run's evaluations; and by the same arguments as unigrpo eval --image-guidance 2."""
    asked, plain = [], flow.guided_velocity

    def spy(*velocities, **how):
        asked.append((how["text_scale"], how["image_scale"], how["renorm"], velocities[2] is not None))
        return plain(*velocities, **how)

    monkeypatch.setattr(flow, "guided_velocity", spy)
    drawn = []
    for options in (GUIDED, {**GUIDED, "eval__image_guidance": 1.0}):
        parts = build.parts(tiny_runs.tiny_recipe(tiny_runs.EDIT, eval__limit=2, **options))
        asked.clear()
        drawn.append(parts.evaluator.compare(parts.policy).pictures)
        parts.evaluator.validate(parts.policy)
        assert set(asked) == {(4.0, options["eval__image_guidance"], "text_channel", len(drawn) == 1)}
    assert not torch.equal(*drawn)
    asked.clear()
    words = ["--model", tiny_runs.seeing_folder(), "--suite", "shapes:edit-held-out", "--limit", "2", "--samples", "1"]
    words += ["--guidance", "4", "--image-guidance", "2", "--renorm", "text_channel", "--steps", "9"]
    assert tiny_runs.unigrpo("eval", *words, "--max-think-tokens", "8", "--out", tmp_path / "out") == 0
    assert set(asked) == {(4.0, 2.0, "text_channel", True)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval__guidance": 1.0}, "eval.image_guidance = 2 with eval.guidance = 1"),
        ({"eval__prompts": "shapes:held-out", "reward__validation": "[{name: shapes/verifier}]"}, "with no picture"),
        ({"eval__image_guidance": 0.5}, "eval.image_guidance"),
    ],
)
def test_guidance_on_pictures_that_cannot_be_is_refused_at_the_start(capsys, options, message):
    words = tiny_runs.overrides(tiny_runs.EDIT, **{**GUIDED, **options})
    assert tiny_runs.unigrpo("train", tiny_runs.EDIT, "--dry-run", *words) == 2
    assert message in capsys.readouterr().err


def test_the_dry_run_counts_the_forward_of_guidance_on_pictures(capsys):
    assert tiny_runs.unigrpo("train", "bagel/unigrpo-edit-lora", "--dry-run") == 0
    assert "147 forwards (49 steps x 3 for guidance 4 and image guidance 2)" in capsys.readouterr().out
