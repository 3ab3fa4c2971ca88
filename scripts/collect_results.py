"""Keep the figures of finished runs in docs/results, and print the README's table of them.

python scripts/collect_results.py RUN_DIR [RUN_DIR ...] [--out DIR] [--overwrite]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unigrpo.files import write_json_atomic
from unigrpo.recipe import from_yaml, to_yaml
from unigrpo.reports import runlog
from unigrpo.reports.differences import interval_of, why_none

RESULTS = Path(__file__).parents[1] / "docs" / "results"
MEASURES = {"score": "score", "plan_right": "plan right", "follow": "follow"}


def figures(run_dir: Path) -> dict[str, Any]:
    """What is worth keeping of a run: the figures, how long it trained, on what, and the recipe."""
    recipe = from_yaml((run_dir / runlog.RECIPE).read_text(encoding="utf-8"))
    lines = runlog.read_metrics(run_dir)
    return {
        "command": f"unigrpo train {recipe.name} --seed {recipe.seed}",
        "seed": recipe.seed,
        "iterations": recipe.iterations,
        "training_seconds": round(sum(line["seconds"]["total"] for line in lines), 1),
        **runlog.read_json(run_dir / runlog.SUMMARY),
        "environment": {k: v for k, v in runlog.read_json(run_dir / runlog.ENVIRONMENT).items() if k != "command"},
        "recipe": to_yaml(recipe),
    }


def row(result: dict[str, Any]) -> str:
    """One line of the table: before -> after, and the difference with its interval, for every measure."""
    cells = [cell(result, key) for key in MEASURES]
    return "| " + " | ".join([str(result["seed"]), *cells, f"{result['training_seconds']:.0f} s"]) + " |"


def cell(result: dict[str, Any], key: str) -> str:
    """One measure; a dash where it was not measured, and why there is no interval where there is none."""
    before, after, paired = result["before"].get(key), result["after"].get(key), result["paired"].get(key)
    if before is None or after is None or paired is None:
        return "–"
    found = interval_of(paired)
    interval = f"no interval: {why_none(paired)}" if found is None else f"{found[0]:+.3f} to {found[1]:+.3f}"
    return f"{before:.3f} → **{after:.3f}** ({paired['difference']:+.3f}, {interval})"


def name_of(result: dict[str, Any]) -> str:
    """The file of a result: its recipe and its seed."""
    return f"{result['command'].split()[2].replace('/', '-')}-seed{result['seed']}.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; nothing is replaced that was not to be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the figures go (default: docs/results)")
    parser.add_argument("--overwrite", action="store_true", help="replace figures that are there")
    args = parser.parse_args(argv)
    results = [figures(run_dir) for run_dir in args.run_dirs]
    places = [args.out / name_of(result) for result in results]
    there = [str(place) for place in places if place.exists()]
    if there and not args.overwrite:
        parser.error(f"{', '.join(there)} would be replaced: add --overwrite, or name another --out")
    if len(set(places)) < len(places):
        parser.error("two of these runs have the same recipe and seed: collect them one by one, each with its --out")
    print("| seed | " + " | ".join(MEASURES.values()) + " | training |\n|" + "---|" * (len(MEASURES) + 2))
    for result, place in zip(results, places, strict=True):
        write_json_atomic(place, result)
        print(row(result))


if __name__ == "__main__":
    main()
