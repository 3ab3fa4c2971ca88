"""Which alarm comes when: a healthy run, figure 5's without a regulariser, and one whose reward forgives extra objects.

python scripts/alarms.py [--seeds 1] [--work DIR] [--only RUN ...]

Runs that are there are not made again, one that was cut is resumed; one that goes on
is shown as far as it is. Results are docs/results/alarms.json and .md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigrpo.evaluation.bands import CANARIES
from unigrpo.files import write_json_atomic, write_text_atomic
from unigrpo.recipe import load_recipe
from unigrpo.reports import alarms, runlog

RESULTS = Path(__file__).parents[1] / "docs" / "results"
NOTE = "Score and follow: before and after training; of a run that goes on, at its first and last validation."
FIGURES = ("score", "exam_score", "reward", "plan_right", "follow", "parsable")


@dataclass(frozen=True)
class Shown:
    """A run: what it is, and the words after ``unigrpo train``."""

    about: str
    words: tuple[str, ...]


FORGIVING = "[{name: shapes/verifier, args: {tidy: 1.0}}]"
RUNS: Mapping[str, Shown] = {
    "healthy": Shown("the demo as it ships", ("shapes/unigrpo",)),
    "no regulariser": Shown(
        "figure 5's run without a regulariser: a learned judge is the reward, nothing holds the drawing",
        ("paper/regulariser", "--method.regulariser", "{kind: none, weight: 0.0}"),
    ),
    "no tidy factor": Shown(
        "the demo with a verifier that forgives extra objects in training (in validation it does not)",
        ("shapes/unigrpo", "--reward.train", FORGIVING),
    ),
    "no tidy factor, no text KL": Shown(
        "the same without what holds the thinking: 60 iterations, validated every 10",
        (
            "shapes/unigrpo",
            "--reward.train",
            FORGIVING,
            "--method.text.kl_weight",
            "0",
            "--iterations",
            "60",
            "--eval.every",
            "10",
        ),
    ),
}


def folder(work: Path, name: str, seed: int) -> Path:
    """Where a run lies."""
    return work / f"{name.replace(',', '').replace(' ', '-')}-seed{seed}"


def make(run_dir: Path, shown: Shown, seed: int) -> None:
    """Make a run, or go on with it; what it says is in a log beside it."""
    if "after" in runlog.read_json(run_dir / runlog.SUMMARY):
        return
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    begun = (run_dir / runlog.RECIPE).is_file()
    own = [shown.words[0], "--resume"] if begun else [*shown.words, "--seed", str(seed)]
    words = [sys.executable, "-m", "unigrpo", "train", *own, "--out", str(run_dir)]
    with run_dir.with_suffix(".log").open("a", encoding="utf-8") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(words, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)


def read(run_dir: Path, name: str, seed: int) -> dict[str, Any]:
    """What a run raised, as far as it is, and the figures of all its validations."""
    summary, lines = runlog.read_json(run_dir / runlog.SUMMARY), runlog.read_metrics(run_dir)
    validations = [{"iteration": 0, **_figures(summary["before"]["validation"])}] + [
        {
            "iteration": line["iteration"] + 1,
            **_figures(line["validation"]),
            "group_diversity": line["canaries"]["group_diversity"],
            "reward_mean": line["reward_mean"],
        }
        for line in lines
        if "validation" in line
    ]
    return {
        "run": name,
        "seed": seed,
        "command": shlex.join(["unigrpo", "train", *RUNS[name].words, "--seed", str(seed)]),
        "commit": runlog.read_json(run_dir / runlog.ENVIRONMENT).get("git_commit"),
        "iterations": len(lines),
        "asked": load_recipe(run_dir / runlog.RECIPE).iterations,
        "bands": summary["bands"],
        "validations": validations,
        "alarms": summary.get("alarms", []),
        "raised": [{"what": found.brief, "first": found.first, "words": found.words, "on": found.on}
                   for found in alarms.raised(summary, lines)],
        "before": _figures(summary["before"]),
        "after": _figures(summary["after"]) if "after" in summary else None,
        "paired": summary.get("paired"),
    }  # fmt: skip


def _figures(side: Mapping[str, Any]) -> dict[str, Any]:
    return {key: side.get(key) for key in FIGURES} | {"canaries": side.get("canaries", {})}


def page(found: Sequence[Mapping[str, Any]], command: str) -> str:
    """The tables: which alarm came when, then the validations of every run."""
    lines = [
        "# Which alarm comes when",
        "",
        f"Made by `{command}`; what each alarm means is in [alarms.md](../alarms.md).",
    ]
    lines += ["", "| run | seed | iterations | first alarms | score | follow |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for run in found:
        raised = "<br>".join(f"iteration {item['first']}: {item['what']}" for item in run["raised"]) or "none"
        ends = (run["before"], run["after"]) if run["after"] else (run["validations"][0], run["validations"][-1])
        moved = [" → ".join(_short(side[key]) for side in ends) for key in ("score", "follow")]
        far = f"{run['iterations']} of {run['asked']}"
        lines.append(f"| {run['run']} | {run['seed']} | {far} | {raised} | {' | '.join(moved)} |")
    lines += ["", NOTE]
    lines += [
        "",
        *(f"* {name}: {shown.about} (`unigrpo train {shlex.join(shown.words)}`)." for name, shown in RUNS.items()),
    ]
    for run in found:
        lines += ["", f"## {run['run'].capitalize()}, seed {run['seed']}", "", *_validations(run)]
        if run["raised"]:
            lines += ["", "Alarms, as last raised:", "", *(f"* {item['words']}." for item in run["raised"])]
    return "\n".join([*lines, ""])


def _validations(run: Mapping[str, Any]) -> list[str]:
    names = [name for name in CANARIES if name in run["validations"][0]["canaries"]]
    head = ["iteration", "training reward", "score", "follow", *(CANARIES[name].name for name in names)]
    head.append(f"{CANARIES['group_diversity'].name} (training)")
    rows = [head, ["---:"] * len(head), ["band", "", "", "", *(_band(run["bands"][name]) for name in names), ""]]
    for at in run["validations"]:
        own = [_short(at["canaries"].get(name)) for name in names]
        figures = [_short(at.get(key)) for key in ("reward_mean", "score", "follow")]
        rows.append([str(at["iteration"]), *figures, *own, _short(at.get("group_diversity"))])
    return ["| " + " | ".join(row) + " |" for row in rows]


def _band(band: Mapping[str, Any]) -> str:
    low, high = band["low"], band["high"]
    if low is None or high is None:
        return "none" if low is high else f"from {_short(low)}" if high is None else f"up to {_short(high)}"
    return f"{_short(low)} to {_short(high)}"


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.3g}"


def main() -> int:
    """Make what is missing, and write the results of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N - 1 of every run")
    parser.add_argument("--work", type=Path, default=Path("runs/alarms"), help="where the runs lie")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), metavar="RUN", help="make these alone")
    asked = parser.parse_args()
    every = [(name, seed) for name in RUNS for seed in range(asked.seeds)]
    for name, seed in every:
        if asked.only is None or name in asked.only:
            make(folder(asked.work, name, seed), RUNS[name], seed)
    made = [(folder(asked.work, name, seed), name, seed) for name, seed in every]
    found = [read(*run) for run in made if any("validation" in line for line in runlog.read_metrics(run[0]))]
    command = "python scripts/alarms.py" + (f" --seeds {asked.seeds}" if asked.seeds > 1 else "")
    write_json_atomic(RESULTS / "alarms.json", {"command": command, "runs": found})
    write_text_atomic(RESULTS / "alarms.md", page(found, command))
    print(f"wrote {RESULTS / 'alarms.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
