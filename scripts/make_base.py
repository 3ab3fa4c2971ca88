"""Make the shipped base checkpoints again, from nothing (`make base`; about an hour and three quarters of one core).

    python scripts/make_base.py [--work DIR] [--world shapes|words]

For every world its autoencoder (scripts/train_autoencoder.py) and its recipes: shapes/pretrain, shapes/sft, and
shapes/rounds-sft and shapes/edits-sft, which are also measured in two rounds (scripts/measure_rounds.py), words/sft;
for shapes also the preference model (scripts/train_preference.py). The folders go to src/unigrpo/assets. An interrupted
run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "src" / "unigrpo" / "assets"
STAGES = {"shapes": ("pretrain", "sft", "rounds-sft", "edits-sft"), "words": ("sft",)}
NAMES = {"shapes-rounds-sft": "shapes-rounds", "shapes-edits-sft": "shapes-edits"}
"""Checkpoints that are not called by their recipe: those that look."""
EDITED = ("shapes-edits",)
"""Those that are measured on edits, too."""
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "autoencoder.json", "ae.safetensors")


def call(*command: str) -> None:
    """Run one step with one thread (two contended ones are slower), or stop."""
    print("+", " ".join(command), flush=True)
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def train(recipe: str, run: Path) -> None:
    """Train a recipe, or go on with it."""
    going_on = ("--resume",) if (run / "recipe.yaml").is_file() else ()
    call("-m", "unigrpo", "train", recipe, "--out", str(run), *going_on)


def ship(run: Path, name: str) -> None:
    """Copy a run's last checkpoint and what made it into the package."""
    last = sorted((run / "checkpoints").glob("iteration-*"))[-1]
    target = ASSETS / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in MODEL_FILES:
        shutil.copy(last / file, target / file)
    shutil.copy(run / "recipe.yaml", target / "recipe.yaml.txt")
    after = json.loads((run / "evaluations" / "summary.json").read_text(encoding="utf-8"))["after"]
    (target / "evaluation.json").write_text(json.dumps(after, indent=1) + "\n", encoding="utf-8")


def look(target: Path) -> None:
    """Measure a shipped checkpoint that looks, and add what was found to its figures."""
    more = measured(target)
    told = json.loads((target / "evaluation.json").read_text(encoding="utf-8"))
    told |= {"two_rounds": more["seen"]["look"], "understanding": more["understanding"]}
    if target.name in EDITED:
        told["edits"] = measured(target, "--suite", "shapes:edit-held-out")["seen"]["look"]
    (target / "evaluation.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def measured(target: Path, *further: str) -> dict[str, Any]:
    """What scripts/measure_rounds.py says of a checkpoint."""
    found = target.parent / "rounds.json"
    call("scripts/measure_rounds.py", str(target), "--out", str(found), *further)
    told = json.loads(found.read_text(encoding="utf-8"))
    found.unlink()
    return told


def make(world: str, work: Path) -> None:
    """Make the checkpoints of one world."""
    if not (work / "autoencoder" / "ae.safetensors").is_file():
        call("scripts/train_autoencoder.py", str(work / "autoencoder"), "--world", world)
    shutil.copytree(work / "autoencoder", ASSETS / f"{world}-autoencoder", dirs_exist_ok=True)
    for stage in STAGES[world]:
        train(f"{world}/{stage}", work / stage)
        name = f"{world}-{stage}"
        ship(work / stage, NAMES.get(name, name))
        if name in NAMES:
            look(ASSETS / NAMES[name])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "base")
    parser.add_argument("--world", choices=list(STAGES), help="this world alone")
    args = parser.parse_args()
    for world in STAGES if args.world is None else (args.world,):
        make(world, args.work / world)
    if args.world != "words":
        call("scripts/train_preference.py", str(ASSETS / "shapes-preference"))


if __name__ == "__main__":
    main()
