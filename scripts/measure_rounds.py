"""Measure a model of the shapes world that looks: two rounds on held-out prompts, and what it understands.

    python scripts/measure_rounds.py [MODEL] [--suite shapes] [--limit 504] [--samples 4] [--questions 1000]
        [--controls] [--stop] [--out FILE.json]

Prints the figures of both pictures, of the critiques between them, and of the answers to questions as JSON. --controls:
the same with looks that show a grey picture or another prompt's, with "fine" in place of the critique, and with no
second thinking. --stop: a sample ends where it says "fine". --suite shapes:edit-held-out: of edits.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unigrpo import build
from unigrpo.evaluation import understanding
from unigrpo.evaluation.evaluator import evaluate, summarise
from unigrpo.policy import Policy
from unigrpo.recipe import Model
from unigrpo.rollout.engine import Sampling
from unigrpo.rollout.episode import Episode, rounds_of
from unigrpo.worlds.shapes.critiques import parse_rethinking
from unigrpo.worlds.shapes.revisions import figures

LONGEST = 48
"""Tokens of a thinking."""
CONTROLS: dict[str, Episode] = {
    "grey": rounds_of(2, think=True, look="grey"),
    "other": rounds_of(2, think=True, look="other"),
    "fine": rounds_of(2, think=True, rethink="<think> fine </think>"),
    "none": rounds_of(2, think=True, rethink="none"),
}


def drawn(policy: Policy, episode: Episode, *, prompts: str, limit: int, samples: int) -> dict[str, Any]:
    """The figures of first and of last pictures, and of what lies between them."""
    suite, sampling = build.suite(prompts), Sampling(num_points=9, shift=4.0, max_think_tokens=LONGEST)
    result = evaluate(policy, suite.prompts(limit), suite.judge, sampling, samples=samples, seed=0, episode=episode)
    first = [{**record, **record["rounds"][0]} for record in result.records]
    for record in first:
        del record["rounds"]
    summaries = {"first": summarise(first), "last": summarise(result.records)}
    return {**summaries, "look": figures(result.records), "says_fine": says_fine(result.records)}


def says_fine(records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """How often the thinking after a first picture is "fine": of pictures that are right, and of wrong ones."""
    said: dict[bool, list[bool]] = {True: [], False: []}
    for record in records:
        first, second = record["rounds"][:2]
        read = parse_rethinking(second["thinking"] or "")
        said[first["correct"]].append(read is not None and read.plan is None)
    shares = {right: sum(some) / len(some) if some else None for right, some in said.items()}
    return {"of_right": shares[True], "of_wrong": shares[False]}


def measured(
    model: str, prompts: str, *, limit: int, samples: int, questions: int, controls: bool = False, stop: bool = False
) -> dict[str, Any]:
    """The figures of a model."""
    policy = build.policy(Model(model))
    episodes = {"seen": rounds_of(2, think=True, stop_words=("fine",) if stop else ())}
    episodes |= CONTROLS if controls else {}
    found = {
        name: drawn(policy, episode, prompts=prompts, limit=limit, samples=samples)
        for name, episode in episodes.items()
    }
    asked = build.questions("shapes:questions", questions)
    answered = understanding.records(asked, understanding.answers(policy, asked))
    return {**found, "understanding": understanding.summary(answered)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="builtin:shapes-rounds")
    parser.add_argument("--suite", default="shapes")
    parser.add_argument("--limit", type=int, default=504)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--controls", action="store_true")
    parser.add_argument("--stop", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sizes = {"limit": args.limit, "samples": args.samples, "questions": args.questions}
    found = json.dumps(measured(args.model, args.suite, **sizes, controls=args.controls, stop=args.stop), indent=1)
    print(found)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(found + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
