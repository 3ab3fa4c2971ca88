"""Short runs of every method by the command line alone, boiled down to what a change of the house must not change.

``python tests/pinned_runs.py`` writes tests/pinned.json; ``--against REV`` runs this checkout and REV (in a worktree)
in turn and compares metrics and weights bit for bit. Only the command line and the files of a run are used, so that the
same script runs on any commit.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).with_name("pinned.json")
TIMES = ("seconds", "samples_per_second")

EVALUATION = ["--eval.limit", "3", "--eval.compare-limit", "3", "--eval.compare-samples", "1", "--eval.every", "2"]
SMALL = [*EVALUATION, "--data.prompts-per-iteration", "2", "--data.group-size", "4", "--optimizer.micro-batch", "3"]
SMALL += ["--iterations", "3", "--checkpoint.every", "2", "--rollout.max-think-tokens", "16"]
GIVEN = [*EVALUATION, "--data.batch-size", "6", "--optimizer.micro-batch", "4", "--iterations", "3"]
GIVEN += ["--optimizer.warmup", "1", "--checkpoint.every", "2"]
TINY = [
    "--iterations",
    "2",
    "--rollout.image-size",
    "64",
    "--rollout.max-think-tokens",
    "8",
    "--rollout.num-points",
    "7",
]
TINY += ["--data.prompts-per-iteration", "2", "--data.group-size", "2", "--model.path", "tiny", *EVALUATION]
TINY += ["--eval.num-points", "4", "--checkpoint.every", "2"]

CASES = {
    "unigrpo": ("shapes/unigrpo", SMALL),
    "text_grpo": ("paper/textgrpo", SMALL),
    "flow_grpo": ("paper/flowgrpo", SMALL),
    "fpo": ("paper/fpo", SMALL),
    "unifpo": ("paper/unifpo", SMALL),
    "refl": ("paper/refl", SMALL),
    "diffusion_nft": ("shapes/diffusion-nft", SMALL),
    "supervised": ("shapes/sft", GIVEN),
    "sliding window": ("shapes/mixgrpo", SMALL),
    "latent KL": ("paper/regulariser", [*SMALL, "--method.regulariser.kind", "latent_kl"]),
    "guided": ("shapes/unigrpo", [*SMALL, "--rollout.guidance", "2"]),
    "tiny BAGEL, full": ("bagel/unigrpo", [*TINY, "--model.dtype", "float32"]),
    "tiny BAGEL, LoRA": ("bagel/unigrpo-lora-1gpu", TINY),
}


def unigrpo(source: Path, folder: Path, *arguments: str) -> None:
    """Run the command line of one checkout in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "unigrpo", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def run(name: str, source: Path = ROOT) -> dict:
    """Make one run; its metric lines without times, and of every tensor of its last checkpoint hash, sum and norm."""
    recipe, overrides = CASES[name]
    with tempfile.TemporaryDirectory(prefix="unigrpo-pinned-") as place:
        folder = Path(place)
        if "tiny" in overrides:
            unigrpo(source, folder, "make-tiny-bagel", "tiny")
        unigrpo(source, folder, "train", recipe, "--out", "run", *overrides)
        lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
        newest = max((folder / "run/checkpoints").glob("iteration-*"))
        metrics = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
        return {"recipe": recipe_of(folder / "run"), "metrics": metrics, "tensors": tensors_of(newest)}


def recipe_of(run_dir: Path) -> dict:
    """The run's recipe, without the paths that differ from place to place."""
    import yaml

    recipe = yaml.safe_load((run_dir / "recipe.yaml").read_text())
    recipe["model"]["path"] = Path(recipe["model"]["path"]).name
    return recipe


def tensors_of(folder: Path) -> dict:
    """Hash, sum and norm (fp64) of every tensor of a checkpoint: weights and the optimizer's state."""
    import torch
    from safetensors.torch import load_file

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            raw = tensor.contiguous().reshape(-1)
            digest, wide = hashlib.sha256(raw.view(torch.uint8).numpy().tobytes()).hexdigest(), raw.double()
            found[f"{path.stem}/{name}"] = [digest[:16], float(wide.sum()), float(wide.norm())]
    return found


def against(revision: str) -> int:
    """Compare this checkout with a revision, case by case; 1 where any number differs in any bit."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="unigrpo-revision-") as place:
        other = Path(place) / "checkout"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "-q", "--detach", other, revision], check=True)
        try:
            for name in CASES:
                ours, theirs = run(name), run(name, other)
                lines = [{k: v for k, v in line.items() if k != "no_signal"} for line in ours["metrics"]]
                same = lines == theirs["metrics"] and ours["tensors"] == theirs["tensors"]
                failed += not same
                print(f"{'same' if same else 'DIFFERENT':10} {name}: {len(ours['tensors'])} tensors", flush=True)
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", other], check=True)
    return 1 if failed else 0


def main() -> int:
    """Write the record, or compare with a revision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", metavar="REV", help="compare with a revision bit for bit, and write nothing")
    asked = parser.parse_args()
    if asked.against:
        return against(asked.against)
    RECORD.write_text(json.dumps({name: run(name) for name in CASES}, indent=0) + "\n", encoding="utf-8")
    print(f"wrote {RECORD.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
