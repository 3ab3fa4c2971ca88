"""The verb ``eval``: draw for a suite of prompts, examine the pictures, print the figures; or examine a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from unigrpo import build, options, output
from unigrpo.commands import questions
from unigrpo.commands.drawing.asking import STDIN, stdin_rows
from unigrpo.commands.drawing.sampling import (
    batch_size,
    check,
    check_guidance,
    check_numbers,
    in_words,
    load,
    sampling,
    turns,
)
from unigrpo.evaluation.evaluator import describe_summary, unjudged
from unigrpo.evaluation.suites import Suite
from unigrpo.policy import Policy
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Model, Scorer, parse, read_scorers
from unigrpo.reports.evaluation_page import in_words as interval_in_words
from unigrpo.reports.evaluation_page import notices
from unigrpo.rollout.generate import EVALUATION
from unigrpo.rollout.sample import check_others
from unigrpo.runs import eval_folder, evaluating, evaluations, guidance_gap
from unigrpo.runs.eval_ranks import Ranks, ranks
from unigrpo.runs.evaluations import Outcome
from unigrpo.worlds.prompt_files import RowPrompts

SCORE = "score"
OF_SCORES = ("quiet", "json", "words", "model", "suite", "limit", "reward", "judge", "detector", "device", "out")
"""Options of ``eval score``, which draws nothing."""


def run(verb: options.Eval) -> int:
    """Evaluate a model on a suite, or a folder of pictures, and print the figures."""
    if verb.words:
        return _score(verb)
    check(verb)
    check_numbers(limit=verb.limit, samples=verb.samples)
    if build.is_questions(verb.suite):
        return questions.run(verb)
    scales = scales_of(verb.guidance)
    _check_world(verb)
    with ranks() as these, contextlib.ExitStack() as stack:
        if not these.first:
            stack.enter_context(output.speaking(quiet=True, json=False))
        return _draw(verb, scales, these)


def scales_of(written: str | None) -> list[float | None]:
    """The scales of --guidance, one or several with commas; [None]: not set."""
    found: list[float | None] = []
    for word in (written or "").split(","):
        try:
            found.append(float(word) if word.strip() else None)
        except ValueError:
            raise ConfigError(f"--guidance {written}: write a number, or several as in 1,2,4") from None
        check_guidance(found[-1])
    if (len(found) > 1 and None in found) or len(set(found)) < len(found):
        raise ConfigError(f"--guidance {written}: write different numbers, as in 1,2,4")
    return found


def _draw(verb: options.Eval, scales: Sequence[float | None], these: Ranks) -> int:
    """Draw and examine, once for every scale of guidance."""
    several = len(scales) > 1
    _check_out(verb, these, several=several)
    _check_rows(verb)
    suite = suite_of(verb, examined=these.first and not verb.draw_only)
    _check_listed(verb, suite)
    policy = load(verb)
    build.try_suite(suite, policy.spec.image_size, think=not verb.no_think)
    model = evaluating.weights_of(verb.model)
    with evaluating.folder_for(verb.out) as folder:
        places = {scale: folder / f"guidance-{scale:g}" if several else folder for scale in scales}
        made = [_one(verb, suite, policy, model, scale, place, these) for scale, place in places.items()]
        done = [outcome for outcome in made if outcome is not None]
        if len(done) < len(made):
            if these.first:
                output.result(f"drew {', '.join(str(place) for place in places.values())}", wrote=str(folder))
            return 0
        if several:
            told = guidance_gap.write(folder, dict(zip([f"{s:g}" for s in scales], done, strict=True)))
            output.result("\n".join(told.lines), result=told.result)
    return _end(done, verb.out)


def _check_out(verb: options.Eval, these: Ranks, *, several: bool) -> None:
    """ConfigError where the folder cannot be drawn into; the first rank looks, before any has written there."""
    if verb.out is None:
        if verb.draw_only:
            raise ConfigError("--draw-only leaves pictures in a folder: name it with --out")
        evaluating.refuse_several(these, "they draw into one folder: name it with --out")
    elif these.first:
        (guidance_gap if several else evaluating).check_folder(verb.out)


def _one(
    verb: options.Eval, suite: Suite, policy: Policy, model: Mapping[str, Any], scale: Any, out: Path, these: Ranks
) -> Outcome | None:
    """One evaluation; its figures are printed."""
    how = sampling(policy, verb, EVALUATION, scale)
    drawing = evaluating.Drawing(how, verb.samples, verb.seed, turns(policy, verb), batch_size(policy, verb))
    check_others(drawing.episode, len(suite.prompts), verb.samples, drawing.batch, "--batch, --limit or --samples")
    outcome = evaluations.evaluate(
        policy, suite, drawing, model=model, out=out, ranks=these, examined=not verb.draw_only
    )
    if outcome is not None:
        _tell(outcome, f"{verb.model} on {verb.suite}")
        print(f"drawn with {in_words(how)}, seed {verb.seed}")
    return outcome


def _score(verb: options.Eval) -> int:
    """Examine a folder of pictures, whoever drew them."""
    if verb.words[0] != SCORE or len(verb.words) != 2:
        raise ConfigError(f"eval {' '.join(verb.words)}: write eval with options, or eval score FOLDER --suite NAME")
    given = {field.name: field.default for field in fields(verb) if field.name not in OF_SCORES}
    if set_too := [name for name, default in given.items() if vars(verb)[name] != default]:
        raise ConfigError(f"eval score draws nothing: leave out --{set_too[0].replace('_', '-')}")
    check_numbers(limit=verb.limit)
    folder = Path(verb.words[1])
    with ranks() as these:
        evaluating.refuse_several(these, "one process examines a folder: start it without torchrun")
    eval_folder.numbered(folder)
    suite = suite_of(verb, examined=True)
    out = verb.out or folder
    name = verb.model if verb.model != options.Eval.model else f"pictures in {folder}"
    outcome = evaluations.score(folder, out, suite, name)
    _tell(outcome, f"{outcome.result['model']['name']} on {verb.suite}")
    return _end([outcome], out)


def _tell(outcome: Outcome, name: str) -> None:
    """Print the figures of an evaluation, and what a reader must know of them."""
    summary, result = outcome.summary, outcome.result
    lines = [f"{name}: {describe_summary(summary)}"]
    for category, entry in result["categories"].items():
        value = "-" if entry["value"] is None else f"{entry['value']:.3f}"
        lines.append(f"  {category:14} {value}")
    headline = result["headline"]
    if headline["value"] is None:
        lines.append(f"no {headline['name']}: {headline['why']}")
    else:
        lines.append(f"{headline['name']} {headline['value']:.3f}, {interval_in_words(headline)}")
    output.result("\n".join([*lines, *(f"note: {notice}" for notice in notices(result))]), **summary, result=result)


def _end(outcomes: Sequence[Outcome], out: Path | None) -> int:
    """Say where the files are; 1 where too many pictures have no answer for a headline."""
    if out is not None:
        files = [str(out / name) for name in (eval_folder.RESULT, eval_folder.PAGE)]
        output.result(f"wrote {files[0]} and {eval_folder.PAGE}", wrote=files)
    return int(any(outcome.result["headline"]["value"] is None for outcome in outcomes))


# What is asked for


def suite_of(verb: options.Eval, *, examined: bool) -> Suite:
    """The suite of the options with its examiner; - is prompts from stdin, which no rules judge."""
    by = build.Examining(
        judge=_mapping("--judge", verb.judge),
        detector=_detector(verb.detector),
        scorers=() if verb.reward is None else _scorers(verb.reward),
        model=Model(verb.model, device=verb.device),
        on=examined,
    )
    if verb.suite == STDIN:
        rows = RowPrompts("stdin", stdin_rows(), 0)
        return build.of_prompts(build.Suite(STDIN, rows.fixed, unjudged, judged=False, rows=rows), verb.limit, by)
    return build.evaluation_suite(verb.suite, verb.limit, by)


def _check_rows(verb: options.Eval) -> None:
    """Look at all prompts of a world or of one's own before any is read to be drawn; stdin has words alone."""
    if verb.suite != STDIN and not _is_listed(verb):
        scorers = () if verb.reward is None else _scorers(verb.reward)
        build.check_suite(verb.suite, verb.limit or build.STREAM, verb.model, scorers)


def _check_listed(verb: options.Eval, suite: Suite) -> None:
    """Look at the prompts of a suite that has a name, before the model is loaded."""
    if verb.suite != STDIN and _is_listed(verb):
        build.check_listed(verb.suite, suite.prompts, verb.model)


def _is_listed(verb: options.Eval) -> bool:
    return verb.suite.partition(":")[0] in build.MAKERS


def _scorers(written: str) -> tuple[Scorer, ...]:
    """The rewards of --reward: a name, or as in a recipe, {name: ..., value: ..., args: ...} or a list of these."""
    if not written.lstrip().startswith(("{", "[")):
        return (Scorer(written),)
    return read_scorers(written, "--reward")


def _mapping(option: str, written: str | None) -> dict[str, Any] | None:
    """Arguments as YAML."""
    if written is None:
        return None
    found = parse(written)
    if not isinstance(found, dict):
        raise ConfigError(f"{option} {written}: write arguments by name, as in " + '"{url: http://..., model: ...}"')
    return found


def _detector(written: str | None) -> dict[str, Any] | None:
    """A detector's name with its arguments; a name alone has none."""
    if written is None or not written.lstrip().startswith("{"):
        return None if written is None else {"name": written}
    return _mapping("--detector", written)


def _check_world(verb: options.Eval) -> None:
    """ConfigError where the default model is of another embedded world than the prompts."""
    world = verb.suite.partition(":")[0]
    if verb.model == options.Eval.model and world in build.EMBEDDED and world not in verb.model:
        raise ConfigError(f"--suite {verb.suite} with the default model {verb.model}: give --model builtin:{world}-sft")
