"""Are two rounds worth it? Runs of shapes/rounds and of its controls, seed by seed, and the page of what came out.

    python scripts/study_rounds.py [--seeds 4] [--jobs 2] [--work DIR] [--page]
        [--variants NAME ...] [--trials NAME ...]

Every variant starts from builtin:shapes-rounds and makes equally many pictures: one round has twice the rollouts. Each
trained model is then measured on the same prompts with the same draws (scripts/measure_rounds.py): with its looks as
they are, blinded, without critiques, and by questions about pictures. The trials (scripts/rounds_trials.py) are pairs
of such runs, shorter, under other conditions. What is there is not made again; --page only writes
docs/results/rounds.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import rounds_trials
from rounds_tables import ACCURACY, FIRST, LAST, Figure, Found, Runs, cell, figures_of, gained, gap, of, table
from rounds_trials import BASE, MAY_STOP, PAIR, STOPS, TRIALS, Keys, measured_how, slug
from study import RESULTS, make
from unigrpo.files import write_json_atomic, write_text_atomic
from unigrpo.recipe import PromptData, load_recipe
from unigrpo.reports import runlog
from unigrpo.tools.paper.rows import mean_interval

RECIPE = "shapes/rounds"
MEASURE = Path(__file__).with_name("measure_rounds.py")
MEASURING = ("--samples", "2")
ONE = "one round, twice the rollouts"
VARIANTS: dict[str, Keys] = {
    "two rounds, improvement": PAIR["two rounds"],
    ONE: PAIR[rounds_trials.ONE],
    "two rounds, per picture": {"method.advantage.credit": "per_picture"},
    "two rounds, terminal": {"method.advantage.credit": "terminal"},
    "two rounds, improvement, stop said": MAY_STOP,
    "two rounds, improvement, stop said, ten samples": STOPS,
    "two rounds, improvement, two pictures a first thinking": {
        **PAIR["two rounds"],
        "rollout.images-per-thinking": "2",
    },
}
"""Keys of the variants: first the two that answer whether it is worth it, seed by seed, then the others."""
UNTRAINED = "untrained"
QUICK = {"iterations": "60", "eval.every": "60", "eval.compare-samples": "1"}
"""Keys of all runs: what is compared is measured afterwards."""
IN_WORDS = {
    "seen": "the picture",
    "grey": "a grey picture",
    "other": "another prompt's picture",
    "fine": "the picture, and *fine* in place of the critique",
    "none": "the picture, and no second thinking",
}
MEASURED = "measured.json"


def measure(model: str, out: Path, *further: str) -> None:
    """Measure a model, unless that was done."""
    if out.is_file():
        return
    words = [sys.executable, str(MEASURE), model, *MEASURING, *further]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".log").open("w", encoding="utf-8") as log:
        subprocess.run([*words, "--out", str(out)], env=environment, stdout=log, stderr=log, check=True)


def made(work: Path, variant: str, seed: int) -> None:
    """Train one variant with one seed, and measure what came out."""
    run = folder(work, variant, seed)
    if variant != UNTRAINED:
        make(run, RECIPE, {**QUICK, **VARIANTS[variant]}, seed)
    how = measured_how(VARIANTS.get(variant, {}))
    measure(BASE if variant == UNTRAINED else str(run), run / MEASURED, "--controls", *how)


def tried(work: Path, name: str, side: str, seed: int) -> None:
    """Train one side of a trial with one seed, and measure what came out."""
    run = rounds_trials.train_one(work, name, side, seed, RECIPE)
    measure(str(run), run / MEASURED, *measured_how(TRIALS[name].runs[side]))


def prepared(work: Path, name: str) -> None:
    """Train and measure the base of a trial."""
    rounds_trials.train_base(work, name)
    measure(rounds_trials.base_model(work, name), rounds_trials.base_of(work, name) / MEASURED)


def folder(work: Path, variant: str, seed: int) -> Path:
    """Where a run and its evaluations lie."""
    return work / f"{slug(variant)}-seed{seed}"


def read(run: Path) -> Found:
    """What was measured of one model; of its training the pictures and the seconds of an iteration."""
    lines = runlog.read_metrics(run) if (run / runlog.METRICS).is_file() else []
    seconds = sum(line["seconds"]["total"] for line in lines) / len(lines) if lines else None
    found = json.loads((run / MEASURED).read_text(encoding="utf-8"))
    return {**found, "pictures": pictures(run, lines), "seconds": seconds}


def pictures(run: Path, lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Pictures of an iteration, on average; None where none are drawn to be learned from."""
    recipe = load_recipe(str(run / runlog.RECIPE)) if lines else None
    if recipe is None or not isinstance(recipe.data, PromptData):
        return None
    rounds = [line.get("rounds", 1.0) for line in lines]
    return recipe.data.prompts_per_iteration * recipe.data.group_size * sum(rounds) / len(rounds)


def worth_it(runs: Runs) -> list[str]:
    """Question 1."""
    columns: dict[str, Figure] = {
        "first picture": FIRST,
        "last picture": LAST,
        "exam of the last": of("seen", "last", "exam_score"),
        "first plan right": of("seen", "first", "plan_right"),
        "first plan followed": of("seen", "first", "follow"),
        "critique right": of("seen", "look", "critique_right"),
        "wrong pictures mended": of("seen", "look", "fixed"),
        "right ones spoiled": of("seen", "look", "broken"),
    }
    lines = figures_of(runs, columns)
    if ONE not in runs:
        return lines
    others = [name for name in runs if name not in (ONE, UNTRAINED)]
    head = ["seed by seed", "last picture, less the only one of " + ONE, "less the second one, if it is let look"]
    return lines + table(head, [[n, gap(runs, n, ONE, LAST, FIRST), gap(runs, n, ONE, LAST)] for n in others])


def controls(runs: Runs) -> list[str]:
    """Question 2."""
    rows = [[name, *(cell(found, gained(check)) for check in IN_WORDS)] for name, found in runs.items()]
    return table(["last picture less first, looking at", *IN_WORDS.values()], rows)


def survives(runs: Runs) -> list[str]:
    """Question 3."""
    rows = []
    for name, found in runs.items():
        changes = ["", ""]
        if name != UNTRAINED and UNTRAINED in runs:
            base = next(iter(runs[UNTRAINED].values()))
            changes = [changed(found, base, figure) for figure in (ACCURACY, FIRST)]
        rows.append([name, cell(found, ACCURACY), changes[0], cell(found, FIRST), changes[1]])
    return table(["variant", "questions", "change", "first picture", "change"], rows)


def changed(runs: Mapping[int, Found], base: Found, figure: Figure) -> str:
    """How training changed a figure of the base."""
    start = figure(base)
    return mean_interval(
        [v - start for one in runs.values() if (v := figure(one)) is not None and start is not None]
    ).signed


def stops(runs: Runs) -> list[str]:
    """Question 4."""
    columns: dict[str, Figure] = {
        "pictures a prompt": of("seen", "last", "rounds"),
        "pictures of an iteration of training": of("pictures"),
        "last picture": LAST,
        "right first pictures called fine": of("seen", "says_fine", "of_right"),
        "wrong ones called fine": of("seen", "says_fine", "of_wrong"),
    }
    return figures_of(runs, columns)


Sides = Mapping[str, Mapping[str, Mapping[int, Found]]]
"""Of every trial, the models of both sides by seed; its base under ``BASED``."""
BASED = "base"


def trials_of(work: Path, seeds: int) -> Sides:
    """What there is of every trial."""
    found: dict[str, dict[str, dict[int, Found]]] = {}
    for name, trial in TRIALS.items():
        places = {(BASED, 0): rounds_trials.base_of(work, name)}
        places |= {(s, n): rounds_trials.run_of(work, name, s, n) for s in trial.runs for n in range(seeds)}
        for (side, seed), run in places.items():
            if (run / MEASURED).is_file():
                found.setdefault(name, {}).setdefault(side, {})[seed] = read(run)
    return {name: sides for name, sides in found.items() if len(sides) == 1 + len(TRIALS[name].runs)}


def trials(found: Sides) -> list[str]:
    """What was tried, a row each: two rounds against one, at equally many pictures."""
    wrong = of("seen", "look", "critique_right_needed")
    head = ["tried", "seeds", "before: first, last picture", "critique right of wrong pictures",
            "two rounds: first, last", "pictures of an iteration, of one round", "one round: its picture",
            "last of two less it", "less the second one, if it is let look"]  # fmt: skip
    rows = []
    for name, sides in found.items():
        one, base = sides[rounds_trials.ONE], sides[BASED]
        for side in TRIALS[name].runs:
            if side == rounds_trials.ONE:
                continue
            told = name if side == "two rounds" else f"{name.split(':')[0]}: {side}"
            before, after = (", ".join(cell(some, figure) for figure in (FIRST, LAST)) for some in (base, sides[side]))
            made = ", ".join(cell(some, of("pictures")) for some in (sides[side], one))
            less = [gap(sides, side, rounds_trials.ONE, LAST, against) for against in (FIRST, LAST)]
            seeds = str(len(set(one) & set(sides[side])))
            rows.append([told, seeds, before, cell(base, wrong), after, made, cell(one, FIRST), *less])
    return table(head, rows)


def page(runs: Runs, found: Sides, command: str) -> str:
    """All tables, each after its question."""
    parts = {
        "Does a second round help, at equal numbers of pictures?": worth_it(runs),
        "Does the gain need the look, and the critique?": controls(runs),
        "Does understanding survive, and the first picture?": survives(runs),
        "Does the model learn when to stop?": stops(runs),
        **({"When is two rounds of training more than one?": trials(found)} if found else {}),
    }
    seeds = sorted({seed for name, found in runs.items() if name != UNTRAINED for seed in found})
    keys = [f"* {name}: `{' '.join(f'--{k} {v}' for k, v in VARIANTS[name].items()) or 'as shipped'}`"
            for name in runs if name in VARIANTS]  # fmt: skip
    lines = ["# Think, draw, look, think, draw: what came out", "", f"`{command}`: `{RECIPE}`, seeds {seeds}.", ""]
    lines += [
        "Mean over seeds and Student's 95 % interval, of 504 held-out prompts with two samples each. [README](../../"
    ]
    lines[-1] += "README.md#think-draw-look-think-draw) says what follows from it, and what does not.\n"
    for question, tables in parts.items():
        lines += [f"## {question}", "", *tables]
    common = " ".join(f"--{key} {value}" for key, value in QUICK.items())
    stopping = " and ".join(name for name, variant in VARIANTS.items() if measured_how(variant))
    measuring = (
        f"Each is measured by `python scripts/measure_rounds.py RUN {' '.join(MEASURING)} --controls` (`--stop` after "
        f"{stopping}; the trials without `--controls`). Keys of the trials are in scripts/rounds_trials.py."
    )
    return "\n".join([*lines, "## Keys", "", f"All with `{common}`.", "", *keys, "", measuring, ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Make what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/study/rounds"))
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), help="these alone (none: no variants)")
    parser.add_argument("--trials", nargs="*", choices=list(TRIALS), help="these alone (none: no trials)")
    parser.add_argument("--page", action="store_true", help="make nothing; write the page of what is there")
    asked = parser.parse_args(argv)
    variants = [name for name in VARIANTS if asked.variants is None or name in asked.variants]
    halves = (variants[:2], variants[2:])
    todo = [(UNTRAINED, 0), *((variant, s) for half in halves for s in range(asked.seeds) for variant in half)]
    some = [name for name in TRIALS if asked.trials is None or name in asked.trials]
    pairs = [(name, side, seed) for name in some for seed in range(asked.seeds) for side in TRIALS[name].runs]
    if not asked.page:
        with ThreadPoolExecutor(asked.jobs) as pool:
            every(pool, made, asked.work, todo)
            every(pool, prepared, asked.work, [(name,) for name in some])
            every(pool, tried, asked.work, pairs)
    runs: dict[str, dict[int, Found]] = {}
    for variant, seed in [(UNTRAINED, 0), *((v, s) for v in VARIANTS for s in range(asked.seeds))]:
        if (folder(asked.work, variant, seed) / MEASURED).is_file():
            runs.setdefault(variant, {})[seed] = read(folder(asked.work, variant, seed))
    command = f"python scripts/study_rounds.py --seeds {asked.seeds}"
    found = trials_of(asked.work, asked.seeds)
    write_json_atomic(RESULTS / "rounds.json", {"command": command, "runs": runs, "trials": found})
    write_text_atomic(RESULTS / "rounds.md", page(runs, found, command))
    print(f"wrote {RESULTS / 'rounds.md'}")


def every(pool: ThreadPoolExecutor, make_one: Callable[..., None], work: Path, each: Sequence[tuple[Any, ...]]) -> None:
    """Make all of these."""
    for future in [pool.submit(make_one, work, *one) for one in each]:
        future.result()


if __name__ == "__main__":
    main()
