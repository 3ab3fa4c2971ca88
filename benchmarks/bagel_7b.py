"""BAGEL at its real size on one GPU, in at most 8 minutes: thinking, drawing, the LoRA replay, and a whole iteration.

    python benchmarks/bagel_7b.py                       # an H100 or H200; 7B random weights made on it, bfloat16
    python benchmarks/bagel_7b.py --tiny                # the same code on a CPU in seconds, at the tiny model's sizes

Nothing is downloaded: speed does not depend on what weights say. Thinking ends where UniRL saw it end (mean 217 tokens,
p99 577, at most 1024: quantiles of a log-normal), for a random model would never end. Every part has a time that it
takes on an H100; one that would not fit into what is left of --minutes is skipped with a word, one that fails (out of
memory, too) is named, and the results so far are written to --out as JSON after every part. Exit 1 if a part failed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from real_size.measures import Bench, drawing, iterating, replaying, settle, taken, thinking
from real_size.model import REAL, SMALL, Scale, random_bagel, recipe_of, trainer_of

from unigrpo.files import write_text_atomic

PEAK_TFLOPS = 989.0  # an H100's or H200's, dense bfloat16
BUILDING = 45.0  # seconds, on an H100
Part = tuple[str, float, Callable[[Bench], dict[str, Any]]]


def parts_of(scale: Scale) -> list[Part]:
    """What is measured, in order, and the seconds that each is taken to need on an H100."""
    few, many = scale.batches
    (small, rows), (large, fewer) = zip(scale.sides, scale.drawn, strict=True)
    return [
        (f"thinking, batch {few}", 30.0, partial(thinking, batch=few)),
        (f"drawing, {small} px", 15.0, partial(drawing, side=small, rows=rows)),
        (f"replay, {small} px", 15.0, partial(replaying, side=small)),
        ("iteration", 120.0, iterating),
        (f"thinking, batch {many}", 45.0, partial(thinking, batch=many)),
        (f"drawing, {large} px", 20.0, partial(drawing, side=large, rows=fewer)),
        (f"replay, {large} px", 20.0, partial(replaying, side=large)),
    ]


def measured(parts: Sequence[Part], bench: Bench, left: Callable[[], float], keep: Callable[[str, Any], None]) -> bool:
    """Measure what there is time for, and keep each answer at once; whether no part failed."""
    fine = True
    for name, needs, part in parts:
        if left() < needs:
            keep(name, {"skipped": f"{max(0.0, left()):.0f} s are left, and it takes about {needs:.0f}"})
            continue
        try:
            found = part(bench)
        except torch.OutOfMemoryError as error:
            found = {"failed": f"out of memory in {name}: {str(error)[:200]}", "peak_gb": taken()}
        except Exception as error:  # the other parts may still be had
            found = {"failed": f"{name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"}
        fine = fine and "failed" not in found
        keep(name, found)
        for parameter in bench.policy.model.parameters():
            parameter.grad = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return fine


def run(arguments: argparse.Namespace) -> int:
    """Make the model, measure, write."""
    began, scale = time.perf_counter(), SMALL if arguments.tiny else REAL
    device = torch.device("cpu" if arguments.tiny else "cuda")
    result: dict[str, Any] = {
        "command": " ".join(["benchmarks/bagel_7b.py", *sys.argv[1:]]),
        "device": f"CPU ({platform.machine()})" if arguments.tiny else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "tflops_peak": arguments.tflops,
        "weights": "random",
        "parts": {},
    }

    def left() -> float:
        return 60 * arguments.minutes - (time.perf_counter() - began)

    def keep(name: str, found: Any) -> None:
        result["parts"][name] = found
        result["minutes"] = (time.perf_counter() - began) / 60
        print(f"{name}: {json.dumps(found)}", flush=True)
        if arguments.out is not None:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(arguments.out, json.dumps(result, indent=1) + "\n")

    if left() < BUILDING and not arguments.tiny:
        keep("model", {"skipped": f"making it takes about {BUILDING:.0f} s: give --minutes more"})
        return 1
    with tempfile.TemporaryDirectory() as folder:
        try:
            policy, recipe = random_bagel(scale, device), recipe_of(scale)
            trainer = trainer_of(recipe, policy, Path(folder))
        except torch.OutOfMemoryError as error:
            keep("model", {"failed": f"out of memory in making it: {str(error)[:200]}", "peak_gb": taken()})
            return 1
        settle()
        parameters = list(policy.model.parameters())
        counts = (sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad))
        keep("model", {"parameters": counts[0], "trained": counts[1], "held_gb": taken()})
        bench = Bench(scale, recipe, trainer, policy, arguments.tflops)
        return 0 if measured(parts_of(scale), bench, left, keep) else 1


def main() -> None:
    """Read the options, and leave with 0 or 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", "--quick", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--minutes", type=float, default=8.0, help="parts that would take longer are skipped")
    parser.add_argument("--tflops", type=float, default=PEAK_TFLOPS, help="of the GPU at its best")
    parser.add_argument("--out", type=Path, default=None, help="default benchmarks/results/bagel_7b.json; tiny: none")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("the 7B model needs a GPU (about 45 GB): give --tiny to try the script on a CPU")
    if arguments.out is None and not arguments.tiny:
        arguments.out = Path(__file__).parent / "results" / "bagel_7b.json"
    sys.exit(run(arguments))


if __name__ == "__main__":
    main()
