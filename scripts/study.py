"""Studies of one question each: the same recipe in several variants and seeds, and a table of what came out.

python scripts/study.py thoughts|advantages|diversity|words|edits [--seeds 4] [--jobs 2] [--work DIR] [--only NAME ...]

Runs that are there are not made again, one that was cut is resumed. Results are docs/results/study-NAME.json and .md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unigrpo.files import write_json_atomic, write_text_atomic
from unigrpo.reports import runlog
from unigrpo.tools.paper.rows import mean_interval

RESULTS = Path(__file__).parents[1] / "docs" / "results"
MEASURES = {
    "score": ("after", "score"),
    "exam score": ("after", "exam_score"),
    "plan right": ("after", "plan_right"),
    "follow": ("after", "follow"),
}
COLOURS = {
    "colours, bits": ("after", "canaries", "colour_diversity"),
    "plans, bits": ("after", "canaries", "plan_diversity"),
}
FASTER = {"optimizer.lr-denoising": "1e-3", "method.regulariser.weight": "0.003"}
RISES = {"score": "score", "plan right": "plan_right", "follow": "follow"}
BEFORE = {"method.text.kl-weight": "0", "optimizer.lr-denoising": "5e-4", "method.regulariser.weight": "0.01"}
"""The demo's recipe as it was until the study of diversity."""
TWO = "[{name: shapes/verifier}, {name: shapes/preference, weight: 0.25}]"


@dataclass(frozen=True)
class Study:
    """A question, the recipe that answers it, and the keys of its variants; others are compared with the first.

    ``common``: keys of all variants, before their own.
    """

    question: str
    recipe: str
    variants: Mapping[str, Mapping[str, str]]
    common: Mapping[str, str] = field(default_factory=dict)
    measures: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {**MEASURES, **COLOURS})


STUDIES = {
    "thoughts": Study(
        "J thoughts with K pictures each, at the same number of pictures (6 a prompt): is it worth it?",
        "shapes/unigrpo",
        {
            "K = 1": {},
            "K = 2, within group": {"rollout.images-per-thinking": "2"},
            "K = 2, within thought": {"rollout.images-per-thinking": "2", "method.advantage.within": "thought"},
            "K = 3, within group": {"rollout.images-per-thinking": "3"},
            "K = 3, within thought": {"rollout.images-per-thinking": "3", "method.advantage.within": "thought"},
        },
        common=BEFORE,
    ),
    "advantages": Study(
        "Two rewards, the exact verifier and a quarter of the learned judge: which advantages teach best?",
        "shapes/unigrpo",
        {
            "sum, group std (paper)": {"reward.train": TWO},
            "gdpo": {"reward.train": TWO, "method.advantage.combine": "gdpo"},
            "sum, batch std": {"reward.train": TWO, "method.advantage.scale": "batch_std"},
            "sum, no std": {"reward.train": TWO, "method.advantage.scale": "none"},
            "sum, leave one out": {"reward.train": TWO, "method.advantage.baseline": "leave_one_out"},
        },
        common={**BEFORE, "iterations": "60"},
    ),
    "words": Study(
        "Does the words world learn from a real OCR? (score: held-out pictures that say the word and no more)",
        "words/unigrpo",
        {"as shipped": {}},
        measures=MEASURES,
    ),
    "edits": Study(
        "Does RL teach edits, what must change and what must stay, in one round and in two, at equally many pictures?",
        "shapes/edit",
        {
            "one round, 12 samples": {},
            "two rounds, 6 samples": {
                "data.group-size": "6",
                "rollout.rounds": "2",
                "rollout.max-think-tokens": "48",
                "method.advantage.credit": "improvement",
            },
        },
        common={"iterations": "40", "eval.every": "40", "eval.compare-samples": "2"},
        measures={
            "score": ("after", "score"),
            "changed": ("after", "changed"),
            "kept": ("after", "kept"),
            "plan right": ("after", "plan_right"),
            "follow": ("after", "follow"),
        },
    ),
    "diversity": Study(
        "What keeps the colours of pictures whose prompt leaves them open?",
        "shapes/unigrpo",
        {
            "as it was": {},
            "text KL 0.03": {"method.text.kl-weight": "0.03"},
            "text KL 0.1": {"method.text.kl-weight": "0.1"},
            "text KL 0.1, faster": {"method.text.kl-weight": "0.1", **FASTER},
            "text KL 0.12, faster": {"method.text.kl-weight": "0.12", **FASTER},
        },
        common=BEFORE,
    ),
}


def folder(work: Path, study: str, variant: str, seed: int) -> Path:
    """Where a run lies."""
    return work / study / f"{''.join(c if c.isalnum() else '-' for c in variant)}-seed{seed}"


def make(run_dir: Path, recipe: str, keys: Mapping[str, str], seed: int) -> None:
    """Make a run, or go on with it; what it says is in a log beside it."""
    if "after" in runlog.read_json(run_dir / runlog.SUMMARY):
        return
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "unigrpo", "train", recipe, "--out", str(run_dir)]
    if (run_dir / runlog.RECIPE).is_file():
        words.append("--resume")
    else:
        words += ["--seed", str(seed), *(word for key, value in keys.items() for word in (f"--{key}", value))]
    with run_dir.with_suffix(".log").open("a", encoding="utf-8") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(words, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)


def read(run_dir: Path, measures: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """The figures of a finished run, and the seconds of its iterations by phase (means)."""
    summary, lines = runlog.read_json(run_dir / runlog.SUMMARY), runlog.read_metrics(run_dir)
    found: dict[str, Any] = {}
    for name, path in measures.items():
        value: Any = summary
        for key in path:
            value = value[key]
        found[name] = value
    phases = ("rollout", "reward", "update", "total")
    seconds = {name: sum(line["seconds"].get(name, 0.0) for line in lines) / len(lines) for name in phases}
    return {**found, "before": summary["before"], "paired": summary["paired"], "seconds": seconds}


def page(study: str, runs: Mapping[str, Mapping[int, dict[str, Any]]], command: str) -> str:
    """The tables: means over seeds with Student's 95 % interval, differences to the first variant, rises by seed."""
    asked = STUDIES[study]
    seeds = sorted(next(iter(runs.values())))
    lines = [f"# {asked.question}", "", f"`{command}`: `{asked.recipe}`, seeds {', '.join(map(str, seeds))}.", ""]
    lines += ["After training, mean over seeds and Student's 95 % interval:", "", *_means(asked, runs), ""]
    lines += _gaps(asked, runs, seeds)
    lines += ["Rise during training, seed by seed (paired 95 % bootstrap interval over prompts):", ""]
    common = f"All with {_written(asked.common)}. " if asked.common else ""
    lines += [*_rises(runs), "", f"{common}Keys: {_keys(asked, runs)}.", ""]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def _means(asked: Study, runs: Mapping[str, Mapping[int, dict[str, Any]]]) -> list[str]:
    rows = []
    for variant, found in runs.items():
        cells = [str(mean_interval([run[name] for run in found.values()])) for name in asked.measures]
        spent = sum(run["seconds"]["total"] for run in found.values()) / len(found)
        rows.append([variant, *cells, f"{spent:.2f}"])
    return _table(["variant", *asked.measures, "s an iteration"], rows)


def _gaps(asked: Study, runs: Mapping[str, Mapping[int, dict[str, Any]]], seeds: Sequence[int]) -> list[str]:
    """Differences to the first variant, seed by seed."""
    first, *others = runs
    rows = []
    for variant in others:
        gaps = {name: [runs[variant][s][name] - runs[first][s][name] for s in seeds] for name in asked.measures}
        rows.append([variant, *(mean_interval(gap).signed for gap in gaps.values())])
    if not rows:
        return []
    head = f"Seed by seed, less {first} (mean, and Student's 95 % interval over seeds):"
    return [head, "", *_table(["variant", *asked.measures], rows), ""]


def _rises(runs: Mapping[str, Mapping[int, dict[str, Any]]]) -> list[str]:
    rows = [
        [variant, str(seed), *(f"{p['difference']:+.3f} ({p['low']:+.3f} to {p['high']:+.3f})" for p in _paired(run))]
        for variant, found in runs.items()
        for seed, run in found.items()
    ]
    return _table(["variant", "seed", *RISES], rows)


def _paired(run: Mapping[str, Any]) -> list[Mapping[str, float]]:
    return [run["paired"][name] for name in RISES.values()]


def _keys(asked: Study, runs: Mapping[str, Any]) -> str:
    return "; ".join(f"{variant}: {_written(asked.variants[variant]) or 'nothing more'}" for variant in runs)


def _written(keys: Mapping[str, str]) -> str:
    return " ".join(f"--{key} {value!r}" for key, value in keys.items())


def main(argv: Sequence[str] | None = None) -> None:
    """Make what is missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/study"))
    parser.add_argument("--only", nargs="*", help="variants, as they are called")
    asked = parser.parse_args(argv)
    study = STUDIES[asked.study]
    chosen = {name: keys for name, keys in study.variants.items() if not asked.only or name in asked.only}
    # seed by seed, so that what is there early can already be compared
    todo = [(variant, seed) for seed in range(asked.seeds) for variant in chosen]
    with ThreadPoolExecutor(asked.jobs) as pool:
        futures = [
            pool.submit(
                make, folder(asked.work, asked.study, v, s), study.recipe, {**study.common, **study.variants[v]}, s
            )
            for v, s in todo
        ]
        for future in futures:
            future.result()
    runs = {
        v: {s: read(folder(asked.work, asked.study, v, s), study.measures) for s in range(asked.seeds)} for v in chosen
    }
    only = "".join(f' "{name}"' for name in asked.only or ())
    command = f"python scripts/study.py {asked.study} --seeds {asked.seeds}{f' --only{only}' if only else ''}"
    write_json_atomic(RESULTS / f"study-{asked.study}.json", {"command": command, "runs": runs})
    write_text_atomic(RESULTS / f"study-{asked.study}.md", page(asked.study, runs, command))
    print(f"wrote {RESULTS / f'study-{asked.study}.md'}")


if __name__ == "__main__":
    main()
