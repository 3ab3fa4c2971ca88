"""What a second rank is worth on two cores: the demo's iteration with --nproc 2 against one process with one thread.

    python benchmarks/ranks.py [--repeat 3] [--iterations 4] [--quick]

Both train the same iterations of shapes/unigrpo from the same start, one after the other in turns; of each run the
median iteration counts (the first one, which warms up, does not), and of the runs the median. The goal is a ratio of at
most 0.60. The last line is one JSON object; ``threads`` is one process with two threads, for comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE, GOAL = "shapes/unigrpo", 0.60
EVALUATION = ["--eval.limit", "2", "--eval.compare-limit", "2", "--eval.compare-samples", "1", "--eval.every", "1000"]
WAYS = {"one": (1, "1"), "ranks": (2, "1"), "threads": (1, "2")}
"""Ranks, and threads of each."""


def seconds(way: str, iterations: int, small: list[str]) -> float:
    """Wall seconds of the median iteration of one run."""
    ranks, threads = WAYS[way]
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    with tempfile.TemporaryDirectory(prefix="unigrpo-ranks-") as place:
        folder = Path(place) / "run"
        command = [sys.executable, "-m", "unigrpo", "train", RECIPE, "--out", str(folder), "--nproc", str(ranks)]
        command += ["--iterations", str(iterations), *EVALUATION, *small]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["seconds"]["total"] for line in lines[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="in small, to see that it runs")
    asked = parser.parse_args()
    small = ["--data.prompts-per-iteration", "2", "--data.group-size", "2"] if asked.quick else []
    repeat, iterations = (1, 2) if asked.quick else (asked.repeat, asked.iterations)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeat):
        for way, times in found.items():
            times.append(seconds(way, iterations, small))
            print(f"{way}: {times[-1]:.3f} s an iteration", flush=True)
    medians = {way: statistics.median(times) for way, times in found.items()}
    ratio = medians["ranks"] / medians["one"]
    print(f"two ranks take {ratio:.2f} of one process with one thread (goal: at most {GOAL})")
    print(json.dumps({"seconds": found, "medians": medians, "ratio": ratio, "goal": GOAL, "cores": os.cpu_count()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
