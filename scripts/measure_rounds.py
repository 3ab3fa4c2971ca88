"""Measure a model of the shapes world that looks: two rounds on held-out prompts, and what it understands.

    python scripts/measure_rounds.py [MODEL] [--limit 504] [--samples 4] [--questions 1000] [--out FILE.json]

Prints the figures of both pictures, of the critiques between them, and of the answers to questions as JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from unigrpo import build
from unigrpo.evaluation import understanding
from unigrpo.evaluation.evaluator import evaluate, summarise
from unigrpo.recipe import Model
from unigrpo.rollout.engine import Sampling
from unigrpo.rollout.episode import rounds_of
from unigrpo.worlds.shapes.revisions import figures

LONGEST = 48
"""Tokens of a thinking."""


def measured(model: str, *, limit: int, samples: int, questions: int) -> dict[str, Any]:
    """The figures of a model."""
    policy, suite = build.policy(Model(model)), build.suite("shapes")
    sampling = Sampling(num_points=9, shift=4.0, max_think_tokens=LONGEST)
    episode = rounds_of(2, think=True)
    result = evaluate(policy, suite.prompts(limit), suite.judge, sampling, samples=samples, seed=0, episode=episode)
    first = [{**record, **record["rounds"][0]} for record in result.records]
    asked = build.questions("shapes:questions", questions)
    answered = understanding.records(asked, understanding.answers(policy, asked))
    return {
        "first": summarise(first),
        "rounds": figures(result.records),
        "understanding": understanding.summary(answered),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="builtin:shapes-rounds")
    parser.add_argument("--limit", type=int, default=504)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = json.dumps(measured(args.model, limit=args.limit, samples=args.samples, questions=args.questions), indent=1)
    print(found)
    if args.out is not None:
        args.out.write_text(found + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
