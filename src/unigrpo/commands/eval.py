"""The verb ``eval``: draw for a suite of prompts, and print the figures."""

from __future__ import annotations

from unigrpo import build, options, output
from unigrpo.commands.drawing.asking import STDIN, stdin_rows
from unigrpo.commands.drawing.sampling import (
    batch_size,
    check,
    check_numbers,
    in_words,
    load,
    sampling,
)
from unigrpo.evaluation.evaluator import describe_summary, unjudged
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Model, Scorer, read_scorers
from unigrpo.rollout.generate import EVALUATION
from unigrpo.runs.evaluating import FILES, evaluated, figures, write
from unigrpo.runs.folders import must_be_new
from unigrpo.worlds.prompt_files import RowPrompts


def run(verb: options.Eval) -> int:
    """Evaluate a model on a suite and print its figures."""
    check(verb)
    check_numbers(limit=verb.limit, samples=verb.samples)
    suite = suite_of(verb.suite)
    if not suite.judged and verb.reward is None:
        raise ConfigError(
            f"--suite {verb.suite} has no judge of its own: name a reward, such as --reward image/jpeg-compressibility"
        )
    scorers = () if verb.reward is None else _scorers(verb.reward)
    _check_world(verb)
    reward = build.reward(scorers, model=Model(verb.model, device=verb.device)) if scorers else None
    if verb.out is not None:
        must_be_new(verb.out)
    if verb.suite != STDIN:  # which is read once, and has words alone
        build.check_suite(verb.suite, verb.limit, verb.model, scorers)
    policy = load(verb)
    how = sampling(policy, verb, EVALUATION)
    think = not verb.no_think
    if reward is not None:
        build.try_reward(reward, suite.prompts(1)[0], policy.spec.image_size, think=think)
    counts = {"limit": verb.limit, "samples": verb.samples, "batch": batch_size(policy, verb)}
    result = evaluated(policy, suite, how, seed=verb.seed, think=think, reward=reward, **counts)
    summary = figures(result, how, model=verb.model, suite=verb.suite, seed=verb.seed, think=think)
    if verb.out is not None:
        write(verb.out, result, summary)
    categories = summary["by_category"] or summary.get("reward_by_category", {})
    lines = [f"  {category:14} {value:.3f}" for category, value in categories.items()]
    output.result("\n".join([f"{verb.model} on {verb.suite}: {describe_summary(summary)}", *lines]), **summary)
    print(f"drawn with {in_words(how)}, seed {verb.seed}")
    if verb.out is not None:
        files = [str(verb.out / name) for name in FILES]
        output.result(f"wrote {verb.out}/{', '.join(FILES[:-1])} and {FILES[-1]}", wrote=files)
    return 0


def _scorers(written: str) -> tuple[Scorer, ...]:
    """The rewards of --reward: a name, or as in a recipe, {name: ..., value: ..., args: ...} or a list of these."""
    if not written.lstrip().startswith(("{", "[")):
        return (Scorer(written),)
    return read_scorers(written, "--reward")


def _check_world(verb: options.Eval) -> None:
    """ConfigError where the default model is of another embedded world than the prompts."""
    world = verb.suite.partition(":")[0]
    if verb.model == options.Eval.model and world in build.EMBEDDED and world not in verb.model:
        raise ConfigError(f"--suite {verb.suite} with the default model {verb.model}: give --model builtin:{world}-sft")


def suite_of(name: str) -> build.Suite:
    """The suite of a name; - is prompts from stdin, which no rules judge."""
    if name == STDIN:
        rows = RowPrompts("stdin", stdin_rows(), 0)
        return build.Suite(name, rows.fixed, unjudged, judged=False, rows=rows)
    return build.suite(name)
