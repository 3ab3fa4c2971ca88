"""Kill a run of two ranks again and again, resume it by the same command, and compare it with one that nobody killed.

python scripts/chaos.py [--kills 100] [--seed 0] [--seconds N] [--mode replicate|shard] [--work DIR] [--out FILE]

SIGKILL comes at a random moment: while processes start and read, between two iterations, or in the middle of writing a
checkpoint; to all of a run's processes, to one rank alone, or to
the process that started the ranks. After each kill every complete checkpoint is read, and
the newest may not be gone. --seconds ends the kills early. The result is docs/results/chaos.json, and with --mode shard
(both ranks write every checkpoint) chaos-shard.json beside it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from unigrpo.files import write_json_atomic
from unigrpo.reports import runlog
from unigrpo.training import checkpoint, shards

RESULTS = Path(__file__).parents[1] / "docs" / "results"
MODES = {"replicate": RESULTS / "chaos.json", "shard": RESULTS / "chaos-shard.json"}
RECIPE = "shapes/unigrpo"
TINY = {
    "data.prompts_per_iteration": 2,
    "data.group_size": 2,
    "rollout.max_think_tokens": 6,
    "rollout.num_points": 5,
    "rollout.window": "[0, 3]",
    "rollout.window_size": 2,
    "optimizer.minibatches": 1,
    "optimizer.micro_batch": 2,
    "eval.every": 1_000_000,
    "eval.limit": 2,
    "eval.compare_limit": 2,
    "eval.compare_samples": 1,
    "checkpoint.every": 1,
    "checkpoint.keep": 2,
}
MOMENTS = ("starting", "training", "saving")
VICTIMS = ("all", "all", "rank 0", "rank 1", "launcher")
ENDLESS, MORE, PATIENCE = 100_000, 2, 180.0
TIMES = ("seconds", "samples_per_second", "utilization")


@dataclass(frozen=True)
class Kill:
    """One kill: when, whom, how long after the start, and the newest complete checkpoint before and after it.

    ``torn``: a checkpoint was being written, and its half-made folder is what is left of it.
    """

    moment: str
    victim: str
    after_s: float
    before: int
    left: int
    torn: bool


class Chaos(AssertionError):
    """Something was lost, damaged, or did not go on."""


def command(run_dir: Path, iterations: int, mode: str) -> list[str]:
    """The one line that starts a run and goes on with it."""
    words = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]
    line = ["train", RECIPE, "--out", str(run_dir), "--resume", "--nproc", "2", "--quiet", "--parallel.mode", mode]
    return [sys.executable, "-m", "unigrpo", *line, "--iterations", str(iterations), *words]


def ranks_of(launcher: int) -> dict[int, int]:
    """The processes of the ranks: {rank: process}."""
    found = {}
    try:
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        for child in children:
            entries = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            found |= {int(e.removeprefix(b"RANK=")): int(child) for e in entries if e.startswith(b"RANK=")}
    except OSError:  # one of them has just ended
        return {}
    return found


def wait_for(moment: str, run_dir: Path, process: subprocess.Popen[bytes], rng: random.Random, start_s: float) -> None:
    """Return at a random moment of the kind asked for, or where the process has ended."""
    if moment == "starting":
        time.sleep(rng.uniform(0.0, start_s))
        return
    before, end = checkpoint.finished(run_dir), time.monotonic() + PATIENCE
    folder = run_dir / "checkpoints"
    while process.poll() is None and time.monotonic() < end:
        new = checkpoint.finished(run_dir) > before
        if new and (moment == "training" or any(folder.glob(f"{checkpoint.PARTIAL}*"))):
            break
        time.sleep(0.002)
    time.sleep(rng.uniform(0.0, 1.0 if moment == "training" else 0.01))


def strike(victim: str, process: subprocess.Popen[bytes]) -> str:
    """Kill, and wait until nothing of the run is left; return who was killed (all, where the rank is not there yet)."""
    ranks = ranks_of(process.pid)
    alone = {"launcher": process.pid, **{f"rank {rank}": pid for rank, pid in ranks.items()}}.get(victim)
    for pid in [process.pid, *ranks.values()] if alone is None else [alone]:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    process.wait(timeout=PATIENCE)
    end = time.monotonic() + PATIENCE
    while any(alive(pid) for pid in ranks.values()):
        if time.monotonic() > end:
            raise Chaos(f"after the kill of {victim} these ranks run on: {ranks}")
        time.sleep(0.01)
    return "all" if alone is None else victim


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def look_through(run_dir: Path, before: int) -> int:
    """Read every complete checkpoint; the newest one's iterations. Chaos where one is damaged, or gone."""
    for folder in checkpoint.complete(run_dir):
        try:
            tensors_of(folder)
        except Exception as error:
            raise Chaos(f"{folder} is damaged: {error}") from error
    if (left := checkpoint.finished(run_dir)) < before:
        raise Chaos(f"the checkpoint after {before} iterations is gone, the newest is after {left}")
    return left


def killed(run_dir: Path, rng: random.Random, kills: int, seconds: float, mode: str) -> list[Kill]:
    """Start and kill the run until there are enough kills, or the time is over."""
    done, end, start_s = [], time.monotonic() + seconds, 8.0
    with (run_dir.parent / "killed.log").open("ab") as log:
        while len(done) < kills and time.monotonic() < end:
            moment, victim, before = rng.choice(MOMENTS), rng.choice(VICTIMS), checkpoint.finished(run_dir)
            begun = time.monotonic()
            process = subprocess.Popen(command(run_dir, ENDLESS, mode), start_new_session=True, stdout=log, stderr=log)
            wait_for(moment, run_dir, process, rng, start_s)
            if process.poll() is not None:
                raise Chaos(f"the run ended by itself with exit code {process.returncode}: see {log.name}")
            newest = checkpoint.finished(run_dir)
            after = time.monotonic() - begun
            victim = strike(victim, process)
            torn = any((run_dir / "checkpoints").glob(f"{checkpoint.PARTIAL}*"))
            left = look_through(run_dir, max(before, newest))
            done.append(Kill(moment, victim, round(after, 3), newest, left, torn))
            start_s = max(start_s, after) if moment == "training" else start_s
            print(f"kill {len(done)}: {done[-1]}", flush=True)
    return done


def finish(run_dir: Path, iterations: int, mode: str) -> None:
    """Run to the end."""
    done = subprocess.run(command(run_dir, iterations, mode), capture_output=True, text=True, check=False)
    if done.returncode:
        raise Chaos(f"{run_dir} could not be finished: {done.stderr}")


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    """The metric lines without wall-clock times."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in runlog.read_metrics(run_dir)]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint, whoever wrote it."""
    whole = folder / "model.safetensors"
    weights = checkpoint.prefixed("model", load_file(whole)) if whole.is_file() else {}
    found = {**shards.read_whole(folder), **weights}
    if not any(name.startswith("model/") for name in found):
        raise Chaos(f"{folder} has no model")
    return found


def compared(ours: Path, theirs: Path) -> dict[str, Any]:
    """What two runs differ in: metric lines, and tensors of the last checkpoint, bit for bit."""
    first, second = (tensors_of(checkpoint.complete(run_dir)[-1]) for run_dir in (ours, theirs))
    other = [
        n
        for n in first.keys() | second.keys()
        if n not in first or n not in second or not torch.equal(first[n], second[n])
    ]
    lines = (lines_of(ours), lines_of(theirs))
    summaries = [runlog.read_json(run_dir / runlog.SUMMARY) for run_dir in (ours, theirs)]
    evaluations = [{when: summary[when] for when in ("before", "after")} for summary in summaries]
    return {
        "iterations": len(lines[0]),
        "metric_lines_equal": lines[0] == lines[1],
        "evaluations_equal": evaluations[0] == evaluations[1],
        "tensors": len(first),
        "tensors_that_differ": sorted(other),
    }


def chaos(work: Path, *, kills: int, seed: int, seconds: float, mode: str = "replicate") -> dict[str, Any]:
    """Both runs, and what came of it."""
    started = time.monotonic()
    run_dir, untouched = work / "killed", work / "untouched"
    done = killed(run_dir, random.Random(seed), kills, seconds, mode)
    iterations = checkpoint.finished(run_dir) + MORE
    finish(run_dir, iterations, mode)
    finish(untouched, iterations, mode)
    result = compared(run_dir, untouched)
    if not result["metric_lines_equal"] or not result["evaluations_equal"] or result["tensors_that_differ"]:
        raise Chaos(f"the killed run is not the one that nobody killed: {result}")
    limit = f" --seconds {seconds:g}" if seconds < float("inf") else ""
    limit += f" --mode {mode}" if mode != "replicate" else ""
    return {
        "command": f"python scripts/chaos.py --kills {kills} --seed {seed}{limit}",
        "kills": len(done),
        "by_moment": dict(sorted(Counter(kill.moment for kill in done).items())),
        "by_victim": dict(sorted(Counter(kill.victim for kill in done).items())),
        "while_a_checkpoint_was_written": sum(kill.torn for kill in done),
        "checkpoints_lost": 0,
        "checkpoints_damaged": 0,
        **result,
        "seconds": round(time.monotonic() - started),
        "torch": torch.__version__,
        "list": [asdict(kill) for kill in done],
    }


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--work", type=Path)
    parser.add_argument("--mode", choices=sorted(MODES), default="replicate")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(words)
    out = asked.out or MODES[asked.mode]
    work = asked.work or Path(tempfile.mkdtemp(prefix="unigrpo-chaos-"))
    work.mkdir(parents=True, exist_ok=True)
    result = chaos(work, kills=asked.kills, seed=asked.seed, seconds=asked.seconds, mode=asked.mode)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(out, result)
    print(f"{result['kills']} kills, nothing lost: {out}")
    if asked.work is None:
        shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
