"""A made-up run folder: numbers from formulas and noise, pictures of coloured squares. Nothing here is a result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from unigrpo.files import write_json_atomic, write_records_atomic, write_text_atomic
from unigrpo.reports import comparison, curves, grids, rendering, runlog
from unigrpo.training.metrics import metrics_line
from unigrpo.training.sources import RolloutBatch
from unigrpo.training.update import Updated
from unigrpo.trajectory import Prompt, Trajectory

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = {"red": (220, 50, 47), "blue": (38, 90, 210), "green": (60, 160, 60), "yellow": (230, 200, 40)}
RECIPE = """name: shapes/unigrpo
seed: 0
iterations: 120
model: {path: builtin:shapes-sft, dtype: float32, lora: null}
method: {name: unigrpo, lambda_flow: 1.0}  # <not markup> & "quoted"
"""


@pytest.fixture
def charts_are_drawn():
    """As runs draw them, for tests that look at them."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (curves, comparison):
            patch.setattr(module, "svg", rendering.svg)
        yield


def line_of(k: int, total: int = 120) -> dict[str, Any]:
    """Make the metrics of one iteration of a run that goes well, put together by the trainer's own code."""
    rng = np.random.default_rng(k)
    rise = 1 - np.exp(-3 * k / total)
    stats = {
        "text/ratio": 1.0, "text/log_ratio_max": 0.2 + 0.3 * rng.random(),
        "text/clip_low": 0.01, "text/clip_high": 0.01 + 0.01 * rng.random(), "text/kl": 0.03 * rise,
        "flow/ratio": 1.0, "flow/log_ratio": 0.0, "flow/log_ratio_max": 1e-5,
        "flow/clip_low": 0.1, "flow/clip_high": 0.1, "flow/velocity_mse": 1e-4 + 0.01 * rise + 5e-4 * rng.random(),
    }  # fmt: skip
    for place in range(3):
        stats |= {
            f"flow/log_ratio/{place}": 1e-7 * rng.normal(),
            f"flow/log_ratio_std/{place}": (1 + place) * 2e-6 * (1 + 0.2 * rng.random()),
            f"flow/clip_low/{place}": 0.05 + 0.04 * place, f"flow/clip_high/{place}": 0.05 + 0.02 * rng.random(),
            f"flow/velocity_mse/{place}": 0.01,
        }  # fmt: skip
    norms = {"reasoning": 0.6 + 0.2 * rng.random(), "denoising": 0.02 + 0.01 * rng.random()}
    return metrics_line(
        iteration=k,
        collected=RolloutBatch([Trajectory(Prompt(0, ""), i, ()) for i in range(96)], _rewards(rise, rng)),
        updates=[Updated(stats, norms, 0.9 - 0.4 * rise + 0.02 * rng.normal())],
        rates={"reasoning": 3e-4, "denoising": 5e-4},
        canaries={
            "colour_diversity": 2.4 - 0.5 * rise + 0.03 * rng.normal(),
            "edge_energy": 0.05 + 0.002 * rng.normal(),
            "plan_diversity": 4.4 - 0.6 * rise,
        },
        validation=_validation(rise) if k % 20 == 19 else None,
        gap={},
        no_signal=[],
        seconds={"rollout": 0.33, "reward": 0.05, "update": 0.4 + 0.05 * rng.random(), "total": 0.9},
    )


def _rewards(rise: float, rng: np.random.Generator) -> dict[str, Any]:
    """Make what ``sources.describe`` says of an iteration."""
    return {
        "reward_mean": 0.55 + 0.25 * rise + 0.03 * rng.normal(), "reward_std": 0.2, "reward_group_std": 0.15,
        "zero_variance_share": 0.1 + 0.2 * rise + 0.02 * rng.random(), "advantage_std": 0.9,
        "reward_by_category": dict.fromkeys(CATEGORIES, 0.6),
        "reward_parts": {"correct": 0.5, "exam": 0.8, "evidence": 0.8, "clean": 0.9},
        "think_length": 11 - 2 * rise + 0.2 * rng.normal(), "think_cut_share": 0.0,
    }  # fmt: skip


def _validation(rise: float) -> dict[str, Any]:
    score = 0.58 + 0.22 * rise
    by_category = {name: min(1.0, score + 0.05 * i - 0.12) for i, name in enumerate(CATEGORIES)}
    return {
        "score": score, "exam_score": score + 0.1, "reward": score + 0.05, "plan_right": 0.68 + 0.2 * rise,
        "follow": 0.7 + 0.05 * rise, "parsable": 0.97, "by_category": by_category, "n": 200,
    }  # fmt: skip


def supervised_line_of(k: int) -> dict[str, Any]:
    """Make the metrics of one iteration of supervised training."""
    return metrics_line(
        iteration=k,
        collected=RolloutBatch([Trajectory(Prompt(0, ""), 0, ())]),
        updates=[
            Updated({"sft/cross_entropy": 1.25 / (k + 1), "sft/flow_matching": 0.5}, {"reasoning": 1.0}, entropy=1.0)
        ],
        rates={"reasoning": 3e-3, "denoising": 3e-3},
        canaries={},
        validation=None,
        gap={},
        no_signal=[],
        seconds={"data": 0.1, "update": 0.2, "total": 0.3},
    )


def pictures_and_records(good: float, seed: int, count: int = 12) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Make pictures of one or two squares with records; ``good`` is the share of correct ones."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    pictures = np.full((count, 32, 32, 3), 245, dtype=np.uint8)
    records = []
    for i in range(count):
        first, second = names[i % 4], names[(i + 1) % 4]
        for name, (row, column) in ((first, (0, 8)), (second, (16, 16))):
            pictures[i, row + 1 : row + 7, column + 1 : column + 7] = COLOURS[name]
        correct = bool(rng.random() < good)
        prompt = f"a {first} square above a {second} square and no other object in sight"
        records.append(
            {
                "position": i, "sample": 0, "prompt": prompt, "category": CATEGORIES[i % 6],
                "thinking": f"<think> {first} square a2 {second} square c{1 + int(rng.integers(4))} </think>",
                "plan_right": correct or i % 2 == 0, "follow": correct if i % 5 else None, "parsable": i % 5 != 0,
                "correct": correct, "exam": 1.0 if correct else 0.5, "reward": 1.0 if correct else 0.6,
                "points": [[f"is there a {first} square?", True], [f"is there a {second} square?", correct]],
            }
        )  # fmt: skip
    return pictures, records


def summary(score: float) -> dict[str, Any]:
    """Make one side of evaluations/summary.json."""
    by_category = {name: score + 0.04 * (i - 2.5) for i, name in enumerate(CATEGORIES)}
    return {
        "score": score, "exam_score": score + 0.1, "reward": score + 0.06, "plan_right": score + 0.08,
        "follow": 0.72, "parsable": 0.97, "by_category": by_category, "n": 200,
    }  # fmt: skip


PAIRED = {
    "score": {"difference": 0.21, "low": 0.15, "high": 0.27},
    "plan_right": {"difference": 0.21, "low": 0.14, "high": 0.28},
    "follow": {"difference": 0.0, "low": -0.05, "high": 0.05},
}


def _write_evaluation(run_dir: Path, when: Literal["before", "after"], good: float) -> None:
    pictures, records = pictures_and_records(good, seed=len(when))
    write_records_atomic(runlog.evaluation_file(run_dir, when, "jsonl"), records)
    grids.save_png_atomic(grids.record_sheet(pictures, records), runlog.evaluation_file(run_dir, when, "png"))


def build_run(run_dir: Path, *, iterations: int = 120, after: bool = True, paired: dict[str, Any] = PAIRED) -> Path:
    """Write a whole made-up run folder with the library's own helpers."""
    write_text_atomic(run_dir / runlog.RECIPE, RECIPE)
    write_json_atomic(run_dir / runlog.ENVIRONMENT, {"python": "3.11", "git_commit": None, "threads": 1})
    lines = [line_of(k) for k in range(iterations)]
    write_records_atomic(run_dir / runlog.METRICS, lines)
    sides = {"before": summary(0.6)} | ({"after": summary(0.81), "paired": paired} if after else {})
    write_json_atomic(run_dir / runlog.SUMMARY, sides)
    _write_evaluation(run_dir, "before", 0.5)
    if after:
        _write_evaluation(run_dir, "after", 0.9)
    for k in (25, 50, 75, 100):
        pictures, records = pictures_and_records(0.7, seed=k, count=6)
        grids.save_png_atomic(grids.record_sheet(pictures, records), runlog.samples_file(run_dir, k, "png"))
    return run_dir


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a builder of made-up run folders."""

    def make(**options: Any) -> Path:
        return build_run(tmp_path / "run", **options)

    return make


@pytest.fixture
def metric_line() -> Callable[..., dict[str, Any]]:
    """Return the maker of made-up metric lines."""
    return line_of


@pytest.fixture
def supervised_line() -> Callable[[int], dict[str, Any]]:
    """Return the maker of made-up metric lines of supervised training."""
    return supervised_line_of
