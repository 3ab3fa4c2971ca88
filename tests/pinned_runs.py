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
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).with_name("pinned.json")
TIMES = ("seconds", "samples_per_second", "utilization", "flops")  # flops: REV may not count them

EVALUATION = ["--eval.limit", "3", "--eval.compare-limit", "3", "--eval.compare-samples", "1", "--eval.every", "2"]
SMALL = [*EVALUATION, "--data.prompts-per-iteration", "2", "--data.group-size", "4", "--optimizer.micro-batch", "3"]
SMALL += ["--iterations", "3", "--checkpoint.every", "2", "--rollout.max-think-tokens", "16"]
DEMO = [*SMALL, "--method.text.kl-weight", "0", "--optimizer.lr-denoising", "5e-4"]
DEMO += ["--method.regulariser.weight", "0.01"]  # what it was pinned with; the recipe may be tuned
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
    "unigrpo": ("shapes/unigrpo", DEMO),
    "text_grpo": ("paper/textgrpo", SMALL),
    "flow_grpo": ("paper/flowgrpo", SMALL),
    "fpo": ("paper/fpo", SMALL),
    "unifpo": ("paper/unifpo", SMALL),
    "refl": ("paper/refl", SMALL),
    "diffusion_nft": ("shapes/diffusion-nft", SMALL),
    "supervised": ("shapes/sft", GIVEN),
    "sliding window": ("shapes/mixgrpo", SMALL),
    "latent KL": ("paper/regulariser", [*SMALL, "--method.regulariser.kind", "latent_kl"]),
    "guided": ("shapes/unigrpo", [*DEMO, "--rollout.guidance", "2"]),
    "tiny BAGEL, full": ("bagel/unigrpo", [*TINY, "--model.dtype", "float32"]),
    "tiny BAGEL, LoRA": ("bagel/unigrpo-lora-1gpu", TINY),
}


def machine() -> dict:
    """What decides how sums are rounded here."""
    import platform

    import torch

    names = ("MKL_CBWR", "ATEN_CPU_CAPABILITY")
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = next((line.partition(":")[2].strip() for line in cpu.splitlines() if line.startswith("model name")), "")
    settings = {name: os.environ.get(name) for name in names}
    return {"torch": torch.__version__, "cpu": model or platform.processor(), **settings}


def unigrpo(source: Path, folder: Path, *arguments: str) -> None:
    """Run the command line of one checkout in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "unigrpo", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def here(folder: Path, *arguments: str) -> None:
    """Run the command line of this process' package in a folder, with one thread as in a process of its own."""
    import torch

    from unigrpo.cli import main

    before, threads = os.getcwd(), torch.get_num_threads()
    os.chdir(folder)
    torch.set_num_threads(1)
    try:
        if code := main(arguments):
            raise RuntimeError(f"{' '.join(arguments)}: exit code {code}")
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)


def run(name: str, command: Callable[..., None]) -> dict:
    """Make one run; its metric lines without times, and of every tensor of its last checkpoint hash, sum and norm."""
    recipe, overrides = CASES[name]
    with tempfile.TemporaryDirectory(prefix="unigrpo-pinned-") as place:
        folder = Path(place)
        if "tiny" in overrides:
            command(folder, "make-tiny-bagel", "tiny")
        command(folder, "train", recipe, "--out", "run", *overrides)
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
    """Number, hash, sum and norm (fp64) of the tensors of every file of a checkpoint: weights, optimizer's state."""
    import torch
    from safetensors.torch import load_file

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        digest, total, squares, tensors = hashlib.sha256(), 0.0, 0.0, load_file(path)
        for name, tensor in sorted(tensors.items()):
            raw = tensor.contiguous().reshape(-1)
            digest.update(name.encode() + raw.view(torch.uint8).numpy().tobytes())
            total, squares = total + float(raw.double().sum()), squares + float(raw.double().square().sum())
        found[path.stem] = {"n": len(tensors), "sha256": digest.hexdigest(), "sum": total, "norm": squares**0.5}
    return found


def against(revision: str) -> int:
    """Compare this checkout with a revision, case by case; 1 where any number differs in any bit."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="unigrpo-revision-") as place:
        other = Path(place) / "checkout"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "-q", "--detach", other, revision], check=True)
        try:
            for name in CASES:
                ours, theirs = run(name, partial(unigrpo, ROOT)), run(name, partial(unigrpo, other))
                failed += ours != theirs
                parts = [part for part in ours if ours[part] != theirs[part]] or ["same"]
                print(f"{name}: {', '.join(parts)}", flush=True)
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
    record = {"made on": machine(), "cases": {name: run(name, partial(unigrpo, ROOT)) for name in CASES}}
    RECORD.write_text(json.dumps(record) + "\n", encoding="utf-8")
    print(f"wrote {RECORD.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
