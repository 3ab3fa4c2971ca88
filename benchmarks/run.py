"""The benchmarks: one command, one table, one JSON.

    python benchmarks/run.py [--only rollout,replay] [--against REV] [--out FILE] [--quick]

Speed, on a CPU with one thread (--threads), in medians over --repeat processes of each section:
    rollout     bench-256, a random BAGEL: one group of 8 and 4 groups of 8; prefill, thinking, drawing
    batching    the demo's 96 rollouts together against one by one
    replay      their packed replay, forward and backward, against separate passes
    iteration   of shapes/unigrpo, by phase
    ranks       an iteration with --nproc 2 against one process
    scaling     exponents of cost beside those of the counted FLOPs; what finished rows cost the others
    memory      the peak of a replay with 1, 2 and 4 pictures to score after one thinking, by allocation
    threads     an iteration as the command does it unasked, alone and beside a busy process for each core
With --all, or by name: other scripts of this folder, each of which also runs by itself (--help says more).
--against REV measures that revision in turns with this tree, from a temporary git worktree; ratios are ours over
theirs. GFLOP/s are counted FLOPs (torch.utils.flop_counter) a CPU second, of_peak is of the fp32 matmul peak at these
sizes in the same process. A section that fails is named and the others go on; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from speed.sides import OURS, ROOT, Failed, Side, against, compared, git

from unigrpo.files import write_json_atomic

SPEED = ("rollout", "batching", "replay", "iteration", "ranks", "scaling", "memory", "threads")
SCRIPTS = ("verifier", "judge", "serve", "detectors", "image_signal", "bagel_7b")
WITHOUT_GPU = {"bagel_7b": ["--tiny"]}
ONCE = ("ranks", "threads")
"""Sections that are whole runs, and measured once unless --repeat says more."""


def main() -> int:
    """Measure what is asked for; 1 where a section failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="sections, with commas between them")
    parser.add_argument("--all", action="store_true", help="the other scripts, too")
    parser.add_argument("--against", metavar="REV", help="a revision of this repository to compare with")
    parser.add_argument("--repeat", type=int, help="processes of each section and side (default: 3; of runs, 1)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write everything there, as JSON")
    parser.add_argument("--quick", action="store_true", help="in small, to see that it runs: figures mean nothing")
    asked = parser.parse_args()
    names = [name for name in asked.only.split(",") if name] or [*SPEED, *(SCRIPTS if asked.all else ())]
    if unknown := [name for name in names if name not in SPEED + SCRIPTS]:
        parser.error(f"--only {unknown[0]}: there is no such section; there are {', '.join(SPEED + SCRIPTS)}")
    if asked.threads < 1 or (asked.repeat is not None and asked.repeat < 1):
        parser.error("--threads and --repeat are at least 1")
    try:
        with against(asked.against) as other:
            return measured(names, asked, other)
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def measured(names: Sequence[str], asked: argparse.Namespace, other: Side | None) -> int:
    """Measure section after section, and tell and keep each at once."""
    result = {**described(asked), "against": other.name if other is not None else None, "sections": {}}
    print(f"{asked.threads} thread{'s' * (asked.threads != 1)} of {result['cores']} cores, load {result['load']:.1f}")
    for name in names:
        try:
            found = section(name, asked, other)
        except Failed as error:
            found = {"failed": str(error)}
        result["sections"][name] = found
        print("\n".join(["", *table(name, found, other)]), flush=True)
        if asked.out is not None:
            write_json_atomic(asked.out, result)
    failed = [name for name, found in result["sections"].items() if "failed" in found]
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return 1 if failed else 0


def section(name: str, asked: argparse.Namespace, other: Side | None) -> dict[str, Any]:
    """What is found in one section."""
    if name in SCRIPTS:
        return scripted(name, quick=asked.quick)
    sides = [OURS] if other is None else [OURS, other]
    repeat = asked.repeat or (1 if asked.quick or name in ONCE else 3)
    return compared(name, sides, repeat=repeat, threads=asked.threads, quick=asked.quick)


def scripted(name: str, *, quick: bool) -> dict[str, Any]:
    """What a script of this folder prints."""
    command = [sys.executable, str(Path(__file__).parent / f"{name}.py"), *(["--quick"] if quick else [])]
    command += WITHOUT_GPU.get(name, []) if not gpu() else []
    path = os.pathsep.join([str(OURS.source), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Failed(f"{name}: exit code {done.returncode}\n{done.stdout[-2000:]}")
    return {"printed": done.stdout.strip().splitlines()}


def gpu() -> bool:
    """Whether there is one."""
    import torch

    return torch.cuda.is_available()


def described(asked: argparse.Namespace) -> dict[str, Any]:
    """How and where it was measured."""
    import torch

    return {
        "command": " ".join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        "revision": git("-C", str(ROOT), "describe", "--always", "--dirty", check=False),
        "threads": asked.threads,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "quick": asked.quick,
    }


def table(name: str, found: dict[str, Any], other: Side | None) -> list[str]:
    """The lines of one section."""
    if "failed" in found:
        return [f"{name}: FAILED", *(f"  {line}" for line in found["failed"].splitlines())]
    if "printed" in found:
        return [name, *(f"  {line}" for line in found["printed"])]
    figures, ratios = found["figures"], found.get("ratios", {})
    missing = [f"  {side}: does not have this section" for side in found["absent"]]
    heads = f"{name:<42}" + "".join(f"{side:>12}" for side in figures) + ("       ratio" if ratios else "")
    rows = [
        f"  {key:<40}"
        + "".join(f"{figures[side].get(key, float('nan')):>12.4g}" for side in figures)
        + (f"{ratios[key]:>12.2f}" if key in ratios else "")
        for key in figures[OURS.name]
    ]
    return [heads, *rows, *missing]


if __name__ == "__main__":
    sys.exit(main())
