"""A whole run by the command line leaves exactly the documented folder, and everything in it can be read."""

import json
import re
import shutil

import pytest
from PIL import Image

import tiny_runs
from unigrpo.evaluation.evaluator import summarise
from unigrpo.recipe import load_recipe
from unigrpo.reports import runlog
from unigrpo.training import checkpoint
from unigrpo.training.alarms import look
from unigrpo.training.recorder import as_validation
from unigrpo.worlds.shapes import CATEGORIES

MODEL_FILES = ["ae.safetensors", "autoencoder.json", "config.json", "model.safetensors", "tokenizer.json"]
CHECKPOINT_FILES = sorted([*MODEL_FILES, checkpoint.STATE_JSON, checkpoint.STATE_TENSORS])
SUMMARY_KEYS = {"score", "exam_score", "reward", "plan_right", "follow", "parsable", "by_category", "n"}


@pytest.fixture(scope="module")
def run_dir():
    return tiny_runs.finished_run()


def test_the_folder_holds_what_is_documented_and_nothing_else(run_dir):
    folders = ["checkpoints", "evaluations", "samples"]
    files = [runlog.RECIPE, runlog.ENVIRONMENT, runlog.METRICS, runlog.REPORT, runlog.SUMMARY]
    files += [f"evaluations/{when}.{suffix}" for when in ("before", "after") for suffix in ("jsonl", "png")]
    files += ["evaluations/reference.safetensors", "evaluations/validations.jsonl"]
    files += [f"samples/iteration-{i:06d}.{suffix}" for i in (2, 4) for suffix in ("jsonl", "png")]
    kept = [f"checkpoints/iteration-{i:06d}" for i in (3, 4)]  # the newest two
    saved = [f"{folder}/{name}" for folder in kept for name in CHECKPOINT_FILES]
    assert tiny_runs.listed(run_dir) == sorted([*folders, *files, *kept, *saved])


def test_the_recipe_is_the_one_that_was_asked_for(run_dir):
    assert load_recipe(run_dir / runlog.RECIPE) == tiny_runs.tiny_recipe()


def test_the_environment_says_where(run_dir):
    written = json.loads((run_dir / runlog.ENVIRONMENT).read_text())
    assert {"date", "unigrpo", "git_commit", "python", "torch", "device", "threads", "command"} <= set(written)


def test_one_line_for_each_iteration_with_the_documented_keys(run_dir):
    lines = runlog.read_metrics(run_dir)
    assert [line["iteration"] for line in lines] == list(range(tiny_runs.ITERATIONS))
    always = {"reward_mean", "reward_std", "reward_group_std", "zero_variance_share", "advantage_std"}
    always |= {
        "reward_by_category",
        "reward_parts",
        "reward_values",
        "think_length",
        "think_cut_share",
        "text",
        "flow",
        "first_update",
    }
    always |= {"iteration", "grad_norm", "lr", "canaries", "seconds", "samples_per_second", "flops", "utilization"}
    for line in lines:
        evaluated = {"validation"} if line["iteration"] % 2 else set()
        assert set(line) - {"no_signal"} == always | evaluated  # weights at random never end their thinking
        assert set(line["text"]) == {
            "ratio_mean",
            "ratio_max_abs_log",
            "clip_fraction",
            "kl",
            "entropy",
            "think_length",
        }
        assert set(line["flow"]) == {"mse", "ratio_mean", "ratio_max_abs_log", "clip_fraction", "steps"}
        steps = line["flow"]["steps"]
        assert [step["step"] for step in steps] == [0, 1, 2]
        assert all(set(s) == {"step", "log_ratio_mean", "log_ratio_std", "clip_fraction", "mse"} for s in steps)
        assert set(line["grad_norm"]) == set(line["lr"]) == {"reasoning", "denoising"}
        ours = {"colour_diversity", "edge_energy", "plan_diversity"}
        assert set(line["canaries"]) == ours | {"group_diversity", "group_diversity_error"}
        assert set(line["reward_by_category"]) <= set(CATEGORIES)
        timed = {"rollout", "reward", "reward_wait", "annotate", "update", "total"}
        timed |= {"validation"} if evaluated else set()
        assert set(line["seconds"]) == timed
        assert set(line["first_update"]) == {"text_log_ratio_max", "image_log_ratio_max"}
        assert line["first_update"]["text_log_ratio_max"] <= 1e-5
        assert line["first_update"]["image_log_ratio_max"] <= 1e-7
        if evaluated:
            assert set(line["validation"]) == SUMMARY_KEYS | {"canaries"} and line["validation"]["n"] == 6


def test_evaluations_are_paired(run_dir):
    summary = runlog.read_json(run_dir / runlog.SUMMARY)
    assert set(summary) == {"before", "after", "paired", "bands"}
    for when in ("before", "after"):
        assert set(summary[when]) == SUMMARY_KEYS | {"canaries", "validation"} and summary[when]["n"] == 6
        records = runlog.read_records(run_dir / f"evaluations/{when}.jsonl")
        assert [record["position"] for record in records] == list(range(6))
        assert {record["category"] for record in records} == set(CATEGORIES)
    assert {"score", "exam_score", "plan_right"} <= set(summary["paired"])
    difference = summary["paired"]["exam_score"]
    assert difference["low"] is difference["high"] is None and "6 prompts are too few" in difference["why"]


def test_samples_say_what_was_thought_drawn_and_earned(run_dir):
    for iteration in (2, 4):
        records = runlog.read_records(runlog.samples_file(run_dir, iteration, "jsonl"))
        assert [(r["position"], r["sample"]) for r in records] == [
            (2 * (iteration - 1) + p, s) for p in range(2) for s in range(3)
        ]
        for record in records:
            assert {"prompt", "thinking", "reward", "advantage", "window", "correct", "verdict"} <= set(record)
            assert len(record["window"]) == 3 and set(record["window"]) <= set(range(5))
        line = runlog.read_metrics(run_dir)[iteration - 1]
        assert sum(r["reward"] for r in records) / 6 == pytest.approx(line["reward_mean"], rel=1e-6)


def test_pictures_open(run_dir):
    pictures = sorted(run_dir.rglob("*.png"))
    assert len(pictures) == 4
    for path in pictures:
        with Image.open(path) as picture:
            picture.verify()


def test_the_report_needs_no_other_file(run_dir):
    page = (run_dir / runlog.REPORT).read_text(encoding="utf-8")
    assert "</html>" in page and tiny_runs.UNIGRPO in page
    linked = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)["']""", page)
    assert linked and all(link.startswith(("data:", "#", "https://")) for link in linked), linked
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']https?:", page)
    assert "@import" not in page and not re.findall(r"url\(\s*['\"]?(?!data:|#)", page)


def test_report_is_written_again_from_the_folder(tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(tiny_runs.finished_run(), run_dir, ignore=shutil.ignore_patterns(runlog.REPORT, "checkpoints"))
    assert tiny_runs.unigrpo("report", run_dir) == 0
    assert capsys.readouterr().out == f"wrote {run_dir / runlog.REPORT}\n"
    assert "</html>" in (run_dir / runlog.REPORT).read_text(encoding="utf-8")


def test_a_checkpoint_is_a_model_folder(run_dir, capsys):
    folder = checkpoint.complete(run_dir)[-1]
    words = ("--limit", 6, "--samples", 1, "--max-think-tokens", 8)
    assert tiny_runs.unigrpo("eval", "--model", folder, *words) == 0
    score = runlog.read_json(run_dir / runlog.SUMMARY)["after"]["score"]
    assert f"score {score:.3f}" in capsys.readouterr().out  # as the run itself measured it


def test_what_a_run_prints(tmp_path, capsys):
    words = tiny_runs.overrides(iterations=1, eval__every=25, checkpoint__every=25)
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", *words) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = [line for line in shown.out.splitlines() if not line.startswith("evaluating ")]
    assert lines[0] == f"run folder: {tmp_path / 'run'}"
    assert lines[1].startswith("before training: score 0.")
    assert lines[2].startswith("iteration 1 of 1 | training reward 0.")
    assert lines[3].startswith("after training: score 0.")
    assert re.fullmatch(r"finished in \d+ s, \d+ s of it training", lines[4])
    assert lines[5] == "6 held-out pictures, the same prompts and draws before and after:"
    assert re.fullmatch(
        r"  score +\d\.\d{3} -> .* \(no interval: 6 prompts are too few to say, 20 are needed\)", lines[6]
    )
    assert lines[-1] == f"report: {tmp_path / 'run' / runlog.REPORT}"
    assert [folder.name for folder in checkpoint.complete(tmp_path / "run")] == ["iteration-000001"]  # the end is saved


def rounded(value):
    """But for rounding: fewer prompts are drawn in another batch, and padded to another length."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value


def test_the_point_before_training_is_what_a_validation_would_have_said(tmp_path):
    """Fewer prompts and one picture of each, but the same draws: thoughts, verdicts and figures are equal."""
    trainer = tiny_runs.trainer_of(tmp_path, eval__limit=4, eval__compare_limit=6, eval__compare_samples=2)
    evaluator, policy = trainer.parts.evaluator, trainer.parts.policy
    whole, small = evaluator.compare(policy), evaluator.validate(policy)
    kept = as_validation(whole.records, 4)
    assert rounded(kept) == rounded(small.records) and [record["position"] for record in kept] == [0, 1, 2, 3]
    before = trainer.recorder.evaluation("before", whole, 4)["before"]
    own = look(small, None, trainer.alarms.reference()).values()
    assert rounded(before["validation"]) == rounded({**summarise(small.records), "canaries": own}) and before["n"] == 12
    assert own["reference_distance"] == pytest.approx(0.0, abs=1e-5)
    assert as_validation(whole.records, 7) == []  # a validation of more prompts than were evaluated: nothing to compare
