"""``eval --suite shapes:questions``: what a model understands of pictures, by questions that it answers in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from unigrpo import build, options, output
from unigrpo.commands.drawing.sampling import batch_size, load
from unigrpo.evaluation import understanding
from unigrpo.files import write_json_atomic, write_records_atomic
from unigrpo.plurals import counted
from unigrpo.policy import Policy
from unigrpo.ranges import ConfigError
from unigrpo.reports.evaluation_page import in_words
from unigrpo.runs import evaluating
from unigrpo.runs.folders import usable

DEFAULT = 1000
"""Questions unless --limit says how many."""
USED = ("quiet", "json", "model", "suite", "limit", "device", "dtype", "batch", "out", "seed")
RESULT, RECORDS = "understanding.json", "answers.jsonl"


def run(verb: options.Eval) -> int:
    """Ask, and print the share of right answers with its interval."""
    set_too = [f.name for f in fields(verb) if f.name not in USED and vars(verb)[f.name] != f.default]
    if set_too:
        raise ConfigError(f"--suite {verb.suite} draws nothing: leave out --{set_too[0].replace('_', '-')}")
    asked = build.questions(verb.suite, verb.limit or DEFAULT)
    policy = load(verb)
    _check_words(verb, policy, asked)
    try:
        made = understanding.records(asked, understanding.answers(policy, asked, batch_size(policy, verb)))
    except ValueError as error:
        raise ConfigError(f"--model {verb.model} cannot answer --suite {verb.suite}: {error}") from error
    result = {"model": evaluating.weights_of(verb.model), "suite": verb.suite, **understanding.summary(made)}
    lines = [f"{verb.model} on {verb.suite}: {counted(result['n'], 'question')}"]
    lines += [f"  {kind:14} {value:.3f}" for kind, value in result["by_kind"].items()]
    lines.append(f"accuracy {result['accuracy']['value']:.3f}, {in_words(result['accuracy'])}")
    output.result("\n".join(lines), result=result)
    if verb.out is not None:
        usable(verb.out)
        write_records_atomic(verb.out / RECORDS, made)
        write_json_atomic(verb.out / RESULT, result)
        output.result(f"wrote {verb.out / RESULT} and {RECORDS}", wrote=[str(verb.out / RESULT)])
    return 0


def _check_words(verb: options.Eval, policy: Policy, asked: Sequence[understanding.Asked]) -> None:
    """ConfigError where a model of a closed vocabulary was never told of the questions' words."""
    if policy.words is None:
        return
    if unknown := {word for a in asked for word in f"{a.words} {a.answer}".split()} - policy.words:
        raise ConfigError(
            f"--model {verb.model} does not know the word(s) {', '.join(sorted(unknown))} of --suite {verb.suite}: "
            "take a model that was trained on questions, such as builtin:shapes-rounds"
        )
