"""Keep the figures of finished runs in docs/results, and print the README's table of them.

python scripts/collect_results.py RUN_DIR [RUN_DIR ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from unigrpo import config
from unigrpo.reports import runlog

RESULTS = Path(__file__).parents[1] / "docs" / "results"
MEASURES = {"score": "score", "plan_right": "plan right", "follow": "follow"}


def figures(run_dir: Path) -> dict[str, Any]:
    """What is worth keeping of a run: the figures, how long it trained, on what, and the recipe."""
    recipe = config.from_yaml((run_dir / runlog.RECIPE).read_text(encoding="utf-8"))
    lines = runlog.read_metrics(run_dir)
    return {
        "command": f"unigrpo train {recipe.name} --seed {recipe.seed}",
        "seed": recipe.seed,
        "iterations": recipe.iterations,
        "training_seconds": round(sum(line["seconds"]["total"] for line in lines), 1),
        **runlog.read_json(run_dir / runlog.SUMMARY),
        "environment": {k: v for k, v in runlog.read_json(run_dir / runlog.ENVIRONMENT).items() if k != "command"},
        "recipe": config.to_yaml(recipe),
    }


def row(result: dict[str, Any]) -> str:
    """One line of the table: before -> after, and the difference with its interval, for every measure."""
    cells = [cell(result, key) for key in MEASURES]
    return "| " + " | ".join([str(result["seed"]), *cells, f"{result['training_seconds']:.0f} s"]) + " |"


def cell(result: dict[str, Any], key: str) -> str:
    """One measure; a dash where it was not measured, and no interval where there is none."""
    before, after, paired = result["before"].get(key), result["after"].get(key), result["paired"].get(key)
    if before is None or after is None or paired is None:
        return "–"
    interval = "" if paired["low"] is None else f", {paired['low']:+.3f} to {paired['high']:+.3f}"
    return f"{before:.3f} → **{after:.3f}** ({paired['difference']:+.3f}{interval})"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dirs", type=Path, nargs="+")
    results = [figures(run_dir) for run_dir in parser.parse_args().run_dirs]
    print("| seed | " + " | ".join(MEASURES.values()) + " | training |\n|" + "---|" * (len(MEASURES) + 2))
    for result in results:
        name = result["command"].split()[2].replace("/", "-")
        runlog.write_json_atomic(RESULTS / f"{name}-seed{result['seed']}.json", result)
        print(row(result))


if __name__ == "__main__":
    main()
