"""An evaluation of a model on a suite: drawn and judged, summed up, and written into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unigrpo import build
from unigrpo.evaluation.evaluator import Evaluation, evaluate, summarise
from unigrpo.files import write_json_atomic, write_records_atomic
from unigrpo.policy import Policy
from unigrpo.reports.grids import record_sheet, save_png_atomic
from unigrpo.reports.source_pictures import with_sources
from unigrpo.rewards.composite import CompositeReward
from unigrpo.rollout.engine import Sampling
from unigrpo.runs.folders import usable

FILES = ("records.jsonl", "summary.json", "sheet.png")


def evaluated(
    policy: Policy,
    suite: build.Suite,
    how: Sampling,
    *,
    limit: int,
    samples: int,
    seed: int,
    think: bool,
    reward: CompositeReward | None = None,
    batch: int | None = None,
) -> Evaluation:
    """Draw ``samples`` pictures for each of the first ``limit`` prompts of a suite, and judge them."""
    return evaluate(
        policy,
        suite.prompts(limit),
        suite.judge,
        how,
        samples=samples,
        seed=seed,
        think=think,
        reward=reward,
        batch=batch or policy.defaults.batch,
    )


def figures(result: Evaluation, how: Sampling, *, model: str, suite: str, seed: int, think: bool) -> dict[str, Any]:
    """The figures of an evaluation, and the settings that it was drawn with."""
    settings = {"model": model, "suite": suite, "seed": seed, "think": think}
    return {**summarise(result.records), "settings": {**settings, **described(how)}}


def described(how: Sampling) -> dict[str, Any]:
    """A sampling as results.jsonl, summary.json and --json name it (M grid points are M - 1 forwards)."""
    guided = how.guidance
    return {
        "num_points": how.num_points,
        "guidance": guided.text_scale,
        "image_guidance": guided.image_scale,
        "interval": guided.interval,
        "renorm": guided.renorm,
        "temperature": how.temperature,
        "max_think_tokens": how.max_think_tokens,
    }


def write(out: Path, result: Evaluation, figures: Mapping[str, Any]) -> None:
    """Records, figures and a sheet of the first pictures."""
    usable(out)
    shown = {record["position"] for record in result.records[:24]}
    given = {position: images for position, images in result.sources.items() if position in shown}
    write_records_atomic(out / "records.jsonl", with_sources(result.records, out, "source", given))
    write_json_atomic(out / "summary.json", figures)
    sheet = record_sheet(result.pictures[:24].permute(0, 2, 3, 1).numpy(), result.records[:24])
    save_png_atomic(sheet, out / "sheet.png")
