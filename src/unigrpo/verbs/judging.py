"""The verb ``eval``: draw for a suite of prompts, and print the figures."""

from __future__ import annotations

from unigrpo import cli, config, resolve
from unigrpo.config import ConfigError
from unigrpo.evaluation.evaluator import describe_summary, evaluate, summarise
from unigrpo.reports import runlog
from unigrpo.reports.grids import record_sheet, save_png_atomic
from unigrpo.reports.source_pictures import with_sources
from unigrpo.verbs.folders import must_be_new, usable
from unigrpo.verbs.sampling import EVALUATION, batch_size, load, sampling


def evaluate_model(verb: cli.Eval) -> int:
    """Evaluate a model on a suite and print its figures."""
    if verb.prompts < 1 or verb.samples < 1:
        raise ConfigError("--prompts and --samples must be at least 1")
    suite = resolve.suite(verb.suite)
    if not suite.judged and verb.reward is None:
        raise ConfigError(
            f"--suite {verb.suite} has no judge of its own: name a reward, such as --reward image/jpeg-compressibility"
        )
    scorers = () if verb.reward is None else (config.Scorer(verb.reward),)
    reward = resolve.reward(scorers) if scorers else None
    if verb.out is not None:
        must_be_new(verb.out)
    resolve.check_suite(verb.suite, verb.prompts, verb.model, scorers)
    if verb.out is not None:
        usable(verb.out)
    policy = load(verb)
    how = sampling(policy, verb, EVALUATION)
    if reward is not None:
        resolve.try_reward(reward, suite.prompts(1)[0], policy.spec.image_size, think=not verb.no_think)
    result = evaluate(
        policy,
        suite.prompts(verb.prompts),
        suite.judge,
        how,
        samples=verb.samples,
        seed=verb.seed,
        think=not verb.no_think,
        reward=reward,
        batch=batch_size(policy, verb),
    )
    summary = summarise(result.records)
    print(f"{verb.model} on {verb.suite}: {describe_summary(summary)}")
    for category, value in (summary["by_category"] or summary.get("reward_by_category", {})).items():
        print(f"  {category:14} {value:.3f}")
    if verb.out is not None:
        guided = how.guidance
        settings = {
            "model": verb.model,
            "suite": verb.suite,
            "seed": verb.seed,
            "think": not verb.no_think,
            "guidance": guided.text_scale,
            "interval": guided.interval,
            "renorm": guided.renorm,
            "num_points": how.num_points,
        }
        shown = {r["position"] for r in result.records[:24]}
        given = {position: images for position, images in result.sources.items() if position in shown}
        records = with_sources(result.records, verb.out, "source", given)
        runlog.write_records_atomic(verb.out / "records.jsonl", records)
        runlog.write_json_atomic(verb.out / "summary.json", {**summary, "settings": settings})
        sheet = record_sheet(result.pictures[:24].permute(0, 2, 3, 1).numpy(), result.records[:24])
        save_png_atomic(sheet, verb.out / "sheet.png")
        print(f"wrote {verb.out}/records.jsonl, summary.json and sheet.png")
    return 0
