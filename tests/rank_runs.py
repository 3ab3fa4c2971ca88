"""Runs of several ranks in processes of their own, under a watchdog, and how far two runs are apart."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import torch

import rank_worker
import tiny_runs
from unigrpo.training import checkpoint, shards

SOURCE = Path(__file__).parents[1] / "src"


def environment(**more):
    """One thread a rank, and this checkout's package."""
    paths = os.pathsep.join([str(SOURCE), str(Path(__file__).parent)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


def unigrpo(*words, seconds=120, **more):
    """The command line in a process of its own: (exit code, stdout, stderr); past ``seconds`` its ranks are killed."""
    return _finished(["-m", "unigrpo", *map(str, words)], seconds, environment(**more))


def begun(command, environ=None):
    """A process in a session of its own, which hears Ctrl-C even where the tests themselves run in the background."""
    return subprocess.Popen(
        command,
        env=environ or environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def end(process):
    """End a process, and the ranks that it started: children first, which else would go on alone."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for child in listed.read_text().split() if process.poll() is None else ():
        os.kill(int(child), signal.SIGKILL)
    process.kill()
    return process.communicate()


def _finished(words, seconds, environ):
    process = begun([sys.executable, *words], environ)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        out, err = end(process)
        raise AssertionError(f"no end after {seconds} s: ranks wait for each other\n{out}{err}") from None
    return process.returncode, out, err


def together(size, script, *words, seconds=60):
    """Run a script's ``main`` as ``size`` gloo ranks; what each printed, in order; a hang or a failure fails."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    ranks = []
    for rank in range(size):
        environ = environment(
            GLOO_SOCKET_IFNAME="lo",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        command = [sys.executable, str(script), *map(str, words)]
        ranks.append(subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    said = []
    try:
        for process in ranks:
            said.append(process.communicate(timeout=seconds))
    except subprocess.TimeoutExpired:
        raise AssertionError(f"no end after {seconds} s: ranks wait for each other") from None
    finally:
        for process in ranks:
            process.kill()
    for rank, (process, (out, err)) in enumerate(zip(ranks, said, strict=True)):
        assert process.returncode == 0, f"rank {rank} failed\n{out}{err}"
    return [out for out, _ in said]


WORKER = Path(__file__).with_name("rank_worker.py")


def worker(folder, name, size, mode="replicate", **keys):
    """A small run (rank_worker.py) of ``size`` ranks: lines, weights and what was drawn; one rank runs right here.

    keys: of the recipe, and recipe, iterations (3), seconds (of the watchdog, 60), stretch (rank: tokens), sheet.
    """
    recipe, iterations = keys.pop("recipe", tiny_runs.UNIGRPO), keys.pop("iterations", 3)
    seconds, stretch, sheet = keys.pop("seconds", 60), keys.pop("stretch", None), keys.pop("sheet", False)
    out = Path(folder) / f"{name}.pt"
    overrides = {key.replace("__", "."): str(value) for key, value in keys.items()}
    spec = {
        "recipe": recipe,
        "overrides": overrides,
        "iterations": iterations,
        "mode": mode,
        "out": str(out),
        "stretch": stretch or {},
        "sheet": sheet,
    }
    if size == 1:
        rank_worker.main(spec)
    else:
        out.with_suffix(".json").write_text(json.dumps(spec))
        together(size, WORKER, out.with_suffix(".json"), seconds=seconds)
    return torch.load(out, weights_only=False)


def assert_alike(ours, theirs, *, metrics=1e-5, weights=1e-5, latents=1e-6):
    """The same trajectories, metrics and weights, but for rounding; texts must be equal.

    latents: relative distance of a picture's; those of the first iteration are drawn with the same weights, later ones
    with weights as far apart as these may be.
    """
    assert [row[0] for row in ours["drawn"]] == [row[0] for row in theirs["drawn"]]
    for (key, ids, x, _), (_, other_ids, y, _) in zip(ours["drawn"], theirs["drawn"], strict=True):
        assert ids == other_ids, f"{key}: other words"
        gap = float((x - y).norm() / y.norm())
        assert gap <= (latents if key[0] == 0 else weights), f"{key}: latents differ by {gap}"
    gap, where = gap_of(ours["lines"], theirs["lines"])
    assert gap <= metrics, where
    gap, worst = gap_of_weights(ours["weights"], theirs["weights"])
    assert gap <= weights, worst


# How far two runs are apart


def numbers_of(line, at=""):
    """Every number of a metric line by its path; times left out."""
    if isinstance(line, dict):
        for key, value in line.items():
            if key not in tiny_runs.TIMES:
                yield from numbers_of(value, f"{at}/{key}")
    elif isinstance(line, list):
        for index, value in enumerate(line):
            yield from numbers_of(value, f"{at}/{index}")
    elif isinstance(line, bool) or line is None or isinstance(line, str):
        yield at, line
    else:
        yield at, float(line)


def metric_gap(ours, theirs):
    """:func:`gap_of` of two run folders."""
    return gap_of(tiny_runs.lines_of(ours), tiny_runs.lines_of(theirs))


def gap_of(first, second):
    """The largest difference of two runs' metrics, relative to 1 or the number, and where; names must agree."""
    worst, where = 0.0, ""
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        a, b = dict(numbers_of(one)), dict(numbers_of(other))
        assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())
        for name, value in a.items():
            if not isinstance(value, float):
                assert value == b[name], name
            elif not (math.isnan(value) and math.isnan(b[name])):
                # what is measured on pictures of 8 bits may see one that is rounded to the next byte
                gap = abs(value - b[name]) / max(1.0, abs(b[name])) / (10 if "/canaries/" in name else 1)
                if gap > worst:
                    worst, where = gap, f"{name} of iteration {one['iteration']}: {value} and {b[name]}"
    return worst, where


def weights_of(run_dir):
    """All weights of a run's newest checkpoint."""
    newest = checkpoint.complete(Path(run_dir))[-1]
    found = {}
    for name in ("model.safetensors", "ema.safetensors", "adapter_model.safetensors"):
        if (newest / name).is_file():
            found |= checkpoint.load_file(newest / name)
    return found or checkpoint.unprefixed("model", shards.read_whole(newest))


def weight_gap(ours, theirs):
    """:func:`gap_of_weights` of two run folders."""
    return gap_of_weights(weights_of(ours), weights_of(theirs))


def gap_of_weights(first, second):
    """The relative distance of two runs' weights, over all of them, in the L2 norm; and of the worst tensor."""
    assert first.keys() == second.keys() and first
    apart = {name: float((first[name].double() - second[name].double()).norm()) for name in first}
    size = {name: float(second[name].double().norm()) for name in first}
    whole = math.sqrt(sum(gap**2 for gap in apart.values())) / math.sqrt(sum(norm**2 for norm in size.values()))
    worst = max(first, key=lambda name: apart[name] / max(size[name], 1e-30))
    return whole, (worst, apart[worst] / max(size[worst], 1e-30))


def assert_same_runs(ours, theirs, bound=1e-5):
    """Two run folders have the same metrics and weights, but for rounding."""
    gap, where = metric_gap(ours, theirs)
    assert gap <= bound, where
    gap, worst = weight_gap(ours, theirs)
    assert gap <= bound, worst


def drawn(run_dir, name="samples"):
    """What was thought and earned in the samples that a run keeps."""
    files = sorted((Path(run_dir) / name).glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def same_weights(ours, theirs):
    first, second = weights_of(ours), weights_of(theirs)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
