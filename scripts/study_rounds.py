"""Are two rounds worth it? Runs of shapes/rounds and of its controls, seed by seed, and the page of what came out.

    python scripts/study_rounds.py [--seeds 4] [--jobs 2] [--work DIR] [--variants NAME ...] [--page]

Every variant starts from builtin:shapes-rounds and makes equally many pictures: one round has twice the rollouts. Each
trained model is then evaluated (`unigrpo eval`, the same prompts and draws) with its looks as they are, blinded and
without critiques, and is asked questions about pictures. Runs and evaluations that are there are not made again;
--page only writes docs/results/rounds.md and .json from them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from study import RESULTS, make
from unigrpo.files import write_json_atomic, write_text_atomic
from unigrpo.reports import runlog
from unigrpo.tools.paper.rows import mean_interval
from unigrpo.worlds.shapes.revisions import figures

RECIPE, BASE = "shapes/rounds", "builtin:shapes-rounds"
ONE = "one round, twice the rollouts"
VARIANTS: dict[str, dict[str, str]] = {
    "two rounds": {},
    ONE: {
        "rollout.rounds": "1",
        "method.advantage.credit": "terminal",
        "data.group-size": "12",
        "eval.rounds": "2",
    },
    "two rounds, terminal credit": {"method.advantage.credit": "terminal"},
    "two rounds, improvement": {"method.advantage.credit": "improvement"},
    "two rounds, stop said": {"rollout.stop": "said", "rollout.stop-words": "[fine]"},
}
"""Keys of the variants; seed by seed in this order, so that what is there early can already be compared."""
UNTRAINED = "untrained"
TWO = ("--rounds", "2", "--samples", "2", "--max-think-tokens", "48")
CHECKS: dict[str, tuple[str, ...]] = {
    "seen": TWO,
    "grey": (*TWO, "--look", "grey"),
    "other": (*TWO, "--look", "other"),
    "fine": (*TWO, "--rethink", "<think> fine </think>"),
    "none": (*TWO, "--rethink", "none"),
    "questions": ("--suite", "shapes:questions"),
}
"""Evaluations of a model, as words of `unigrpo eval`."""
IN_WORDS = {
    "seen": "the picture",
    "grey": "a grey picture",
    "other": "another prompt's picture",
    "fine": "the picture, and *fine* in place of the critique",
    "none": "the picture, and no second thinking",
}
SAID = "two rounds, stop said"
Found = dict[str, Any]
"""Of one model: by check, its figures."""


def words_of(model: str, check: str, variant: str = "") -> list[str]:
    """The words of an evaluation; one that learned to stop may stop."""
    stops = ("--stop-word", "fine") if variant == SAID and check == "seen" else ()
    return ["eval", "--model", model, *CHECKS[check], *stops]


def check(model: str, name: str, out: Path, variant: str = "") -> None:
    """Make one evaluation, unless it is there."""
    if (out / "done").is_file():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".log").open("a", encoding="utf-8") as log:
        words = [sys.executable, "-m", "unigrpo", *words_of(model, name, variant), "--out", str(out)]
        subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, check=True)
    (out / "done").touch()


def made(work: Path, variant: str, seed: int) -> None:
    """Train one variant with one seed, and evaluate what came out."""
    run = folder(work, variant, seed)
    model = BASE
    if variant != UNTRAINED:
        make(run, RECIPE, VARIANTS[variant], seed)
        model = str(run)
    for name in CHECKS:
        check(model, name, run / "checks" / name, variant)


def folder(work: Path, variant: str, seed: int) -> Path:
    """Where a run and its evaluations lie."""
    return work / f"{''.join(c if c.isalnum() else '-' for c in variant)}-seed{seed}"


def read(run: Path) -> Found:
    """The figures of all evaluations of one model."""
    found: Found = {}
    for name in CHECKS:
        place = run / "checks" / name
        if name == "questions":
            found[name] = json.loads((place / "understanding.json").read_text(encoding="utf-8"))
            continue
        records = [json.loads(line) for line in (place / "records.jsonl").read_text(encoding="utf-8").splitlines()]
        result = json.loads((place / "result.json").read_text(encoding="utf-8"))
        found[name] = {**figures(records), **chosen(result)}
    lines = runlog.read_metrics(run) if (run / runlog.METRICS).is_file() else []
    found["seconds"] = sum(line["seconds"]["total"] for line in lines) / len(lines) if lines else None
    return found


def chosen(result: Mapping[str, Any]) -> Found:
    """What the page needs of a result."""
    return {key: result[key] for key in ("score", "score_first", "plan_right", "follow", "rounds") if key in result}


Runs = Mapping[str, Mapping[int, Found]]
Figure = Callable[[Found], float | None]


def of(name: str, key: str) -> Figure:
    """A figure of a check."""
    return lambda found: found[name][key]


def accuracy(found: Found) -> float:
    """The share of questions about pictures that were answered rightly."""
    return found["questions"]["accuracy"]["value"]


def gained(name: str) -> Figure:
    """How much better second pictures are than first ones, in one evaluation."""
    return lambda found: found[name]["score_second"] - found[name]["score_first"]


def cell(runs: Mapping[int, Found], figure: Figure) -> str:
    """Mean over seeds and Student's 95 % interval; the number alone where there is one model."""
    values = [value for found in runs.values() if (value := figure(found)) is not None]
    if not values:
        return ""
    return f"{values[0]:.3f}" if len(values) == 1 else str(mean_interval(values))


def gap(runs: Runs, variant: str, other: str, figure: Figure, against: Figure | None = None) -> str:
    """One variant less another, seed by seed."""
    seeds = sorted(set(runs[variant]) & set(runs[other]))
    pairs = [(figure(runs[variant][s]), (against or figure)(runs[other][s])) for s in seeds]
    return mean_interval([a - b for a, b in pairs if a is not None and b is not None]).signed


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, and an empty line."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)] + [""]


def worth_it(runs: Runs) -> list[str]:
    """Question 1."""
    columns: dict[str, Figure] = {
        "first picture": of("seen", "score_first"),
        "last picture": of("seen", "score"),
        "first plan and picture agree": of("seen", "follow"),
        "critique right": of("seen", "critique_right"),
        "wrong pictures mended": of("seen", "fixed"),
        "right ones spoiled": of("seen", "broken"),
    }
    rows = [[name, *(cell(found, figure) for figure in columns.values())] for name, found in runs.items()]
    lines = table(["variant", *columns], rows)
    if ONE not in runs:
        return lines
    others = [name for name in runs if name not in (ONE, UNTRAINED)]
    own, first = of("seen", "score"), of("seen", "score_first")
    head = ["less " + ONE, "last picture, less its one picture", "last picture, less its last of two"]
    return lines + table(head, [[name, gap(runs, name, ONE, own, first), gap(runs, name, ONE, own)] for name in others])


def controls(runs: Runs) -> list[str]:
    """Question 2."""
    rows = [[name, *(cell(found, gained(check)) for check in IN_WORDS)] for name, found in runs.items()]
    return table(["second picture less first, looking at", *IN_WORDS.values()], rows)


def survives(runs: Runs) -> list[str]:
    """Question 3."""
    rows = []
    for name, found in runs.items():
        change = ["", ""]
        if name != UNTRAINED and UNTRAINED in runs:
            base = next(iter(runs[UNTRAINED].values()))
            change = [
                mean_interval([accuracy(one) - accuracy(base) for one in found.values()]).signed,
                mean_interval(
                    [one["seen"]["score_first"] - base["seen"]["score_first"] for one in found.values()]
                ).signed,
            ]
        rows.append([name, cell(found, accuracy), change[0], cell(found, of("seen", "score_first")), change[1]])
    return table(["variant", "questions", "change", "first picture", "change"], rows)


def stops(runs: Runs) -> list[str]:
    """Question 4."""
    rows = [[name, cell(found, of("seen", "rounds")), cell(found, of("seen", "score"))] for name, found in runs.items()]
    return table(["variant", "pictures a prompt", "last picture"], rows)


def page(runs: Runs, command: str) -> str:
    """All tables, each after its question."""
    parts = {
        "Does a second round help, at equal numbers of pictures?": worth_it(runs),
        "Does the gain need the look, and the critique?": controls(runs),
        "Does understanding survive, and the first picture?": survives(runs),
        "Does the model learn when to stop?": stops(runs),
    }
    seeds = sorted({seed for name, found in runs.items() if name != UNTRAINED for seed in found})
    keys = [f"* {name}: `{' '.join(f'--{k} {v}' for k, v in VARIANTS[name].items()) or 'as shipped'}`"
            for name in runs if name in VARIANTS]  # fmt: skip
    lines = ["# Think, draw, look, think, draw: what came out", "", f"`{command}`: `{RECIPE}`, seeds {seeds}.", ""]
    lines += ["Mean over seeds and Student's 95 % interval, of 504 held-out prompts with two samples each.", ""]
    for question, tables in parts.items():
        lines += [f"## {question}", "", *tables]
    checks = [f"* {name}: `unigrpo {shlex.join(words_of('RUN', name))}`" for name in CHECKS]
    return "\n".join([*lines, "## Keys and commands", "", *keys, *checks, ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Make what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/study/rounds"))
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), help="these alone")
    parser.add_argument("--page", action="store_true", help="make nothing; write the page of what is there")
    asked = parser.parse_args(argv)
    variants = [name for name in VARIANTS if not asked.variants or name in asked.variants]
    todo = [(UNTRAINED, 0), *((variant, seed) for seed in range(asked.seeds) for variant in variants)]
    if not asked.page:
        with ThreadPoolExecutor(asked.jobs) as pool:
            for future in [pool.submit(made, asked.work, *each) for each in todo]:
                future.result()
    runs: dict[str, dict[int, Found]] = {}
    for variant, seed in todo:
        if (folder(asked.work, variant, seed) / "checks" / list(CHECKS)[-1] / "done").is_file():
            runs.setdefault(variant, {})[seed] = read(folder(asked.work, variant, seed))
    command = f"python scripts/study_rounds.py --seeds {asked.seeds}"
    write_json_atomic(RESULTS / "rounds.json", {"command": command, "runs": runs})
    write_text_atomic(RESULTS / "rounds.md", page(runs, command))
    print(f"wrote {RESULTS / 'rounds.md'}")


if __name__ == "__main__":
    main()
