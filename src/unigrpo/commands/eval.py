"""The verb ``eval``: draw for a suite of prompts, and print the figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unigrpo import build, options, output
from unigrpo.commands.drawing.asking import STDIN, stdin_rows
from unigrpo.commands.drawing.sampling import (
    batch_size,
    check,
    check_numbers,
    described,
    in_words,
    load,
    sampling,
)
from unigrpo.evaluation.evaluator import Evaluation, describe_summary, evaluate, summarise, unjudged
from unigrpo.files import write_json_atomic, write_records_atomic
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Scorer
from unigrpo.reports.grids import record_sheet, save_png_atomic
from unigrpo.reports.source_pictures import with_sources
from unigrpo.rollout.generate import EVALUATION
from unigrpo.runs.folders import must_be_new, usable
from unigrpo.worlds.prompt_files import RowPrompts

FILES = ("records.jsonl", "summary.json", "sheet.png")


def run(verb: options.Eval) -> int:
    """Evaluate a model on a suite and print its figures."""
    check(verb)
    check_numbers(limit=verb.limit, samples=verb.samples)
    suite = suite_of(verb.suite)
    if not suite.judged and verb.reward is None:
        raise ConfigError(
            f"--suite {verb.suite} has no judge of its own: name a reward, such as --reward image/jpeg-compressibility"
        )
    scorers = () if verb.reward is None else (Scorer(verb.reward),)
    reward = build.reward(scorers) if scorers else None
    if verb.out is not None:
        must_be_new(verb.out)
    if verb.suite != STDIN:  # which is read once, and has words alone
        build.check_suite(verb.suite, verb.limit, verb.model, scorers)
    policy = load(verb)
    how = sampling(policy, verb, EVALUATION)
    if reward is not None:
        build.try_reward(reward, suite.prompts(1)[0], policy.spec.image_size, think=not verb.no_think)
    result = evaluate(
        policy,
        suite.prompts(verb.limit),
        suite.judge,
        how,
        samples=verb.samples,
        seed=verb.seed,
        think=not verb.no_think,
        reward=reward,
        batch=batch_size(policy, verb),
    )
    summary = summarise(result.records)
    settings = {"model": verb.model, "suite": verb.suite, "seed": verb.seed, "think": not verb.no_think}
    figures = {**summary, "settings": {**settings, **described(how)}}
    if verb.out is not None:
        write(verb.out, result, figures)
    categories = summary["by_category"] or summary.get("reward_by_category", {})
    lines = [f"  {category:14} {value:.3f}" for category, value in categories.items()]
    output.result("\n".join([f"{verb.model} on {verb.suite}: {describe_summary(summary)}", *lines]), **figures)
    print(f"drawn with {in_words(how)}, seed {verb.seed}")
    if verb.out is not None:
        files = [str(verb.out / name) for name in FILES]
        output.result(f"wrote {verb.out}/{', '.join(FILES[:-1])} and {FILES[-1]}", wrote=files)
    return 0


def suite_of(name: str) -> build.Suite:
    """The suite of a name; - is prompts from stdin, which no rules judge."""
    if name == STDIN:
        rows = RowPrompts("stdin", stdin_rows(), 0)
        return build.Suite(name, rows.fixed, unjudged, judged=False, rows=rows)
    return build.suite(name)


def write(out: Path, result: Evaluation, figures: Mapping[str, Any]) -> None:
    """Records, figures and a sheet of the first pictures."""
    usable(out)
    shown = {record["position"] for record in result.records[:24]}
    given = {position: images for position, images in result.sources.items() if position in shown}
    write_records_atomic(out / "records.jsonl", with_sources(result.records, out, "source", given))
    write_json_atomic(out / "summary.json", figures)
    sheet = record_sheet(result.pictures[:24].permute(0, 2, 3, 1).numpy(), result.records[:24])
    save_png_atomic(sheet, out / "sheet.png")
