"""Make the shipped base checkpoints again, from nothing (`make base`; a little more than half an hour of one core).

    python scripts/make_base.py [--work DIR]

1. the autoencoder (scripts/train_autoencoder.py), 2. recipe shapes/pretrain, 3. recipe shapes/sft, 4. the preference
model (scripts/train_preference.py); the folders go to src/unigrpo/assets. An interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "src" / "unigrpo" / "assets"
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "base")
    work = parser.parse_args().work
    if not (work / "autoencoder" / "ae.safetensors").is_file():
        call("scripts/train_autoencoder.py", str(work / "autoencoder"))
    shutil.copytree(work / "autoencoder", ASSETS / "shapes-autoencoder", dirs_exist_ok=True)
    for stage in ("pretrain", "sft"):
        train(f"shapes/{stage}", work / stage)
        ship(work / stage, f"shapes-{stage}")
    call("scripts/train_preference.py", str(ASSETS / "shapes-preference"))


if __name__ == "__main__":
    main()
