"""Runs of several ranks: the same trajectories, metrics and weights as one process, without a hang.

Quick: two ranks, a few updates, and the traps of shared-out weights. The whole matrix is slow.
"""

import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import rank_runs
import rank_traps
import rank_worker
import tiny_runs
from unigrpo.plurals import counted
from unigrpo.reports.runlog import read_metrics
from unigrpo.training import checkpoint

TRAPS = Path(__file__).parents[1] / "rank_traps.py"
SECONDS = 300
"""The watchdog of a quick test: it is about a hang, not about speed."""
SMALL = {
    "model.path": "builtin:shapes-sft",
    "data.prompts_per_iteration": 2,
    "data.group_size": 3,
    "optimizer.micro_batch": 2,
    "optimizer.ppo_epochs": 1,
    "rollout.max_think_tokens": 8,
    "rollout.num_points": 6,
    "rollout.window": [0, 4],
}


def small(folder, name, size, mode="replicate", **more):
    return rank_runs.worker(folder, name, size, mode, **{"seconds": SECONDS, **SMALL, **more})


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Three updates in one process."""
    return small(tmp_path_factory.mktemp("alone"), "one", 1)


@pytest.mark.parametrize("mode", ["replicate", pytest.param("shard", marks=pytest.mark.slow)])
def test_two_ranks_do_what_one_process_does(tmp_path, alone, mode):
    rank_runs.assert_alike(small(tmp_path, mode, 2, mode), alone)


@pytest.mark.slow
@pytest.mark.parametrize("trap", rank_traps.TRAPS, ids=lambda trap: trap.__name__)
def test_a_trap_of_shared_out_weights(trap):
    said = rank_runs.together(2, TRAPS, trap.__name__, seconds=SECONDS)
    assert all(trap.__name__ in out for out in said)


QUICK = (
    "each_expert_gets_its_gradient",
    "written_by_all_ranks",
    "one_rank_draws_much_longer",
    "summed_as_one_process",
    "a_fault_on_one_rank_is_all_ranks",
    "messages_arrive",
    "a_copy_below_fp32_says_what_the_shares_say",
    "failures_are_counted_over_all_ranks",
)


def test_each_expert_learns_what_it_learns_in_one_process():
    said = rank_runs.together(2, TRAPS, *QUICK, seconds=SECONDS)
    assert all(set(out.split()) >= set(QUICK) for out in said)


# The matrix

# With the recipes' epsilon of 1e-15 a gradient that is nothing but rounding moves its weight by a whole learning rate;
# and at the learning rates of shapes, rounding grows tenfold in as many updates.
CALM = {"optimizer.eps_denoising": 1e-7, "optimizer.lr_reasoning": 3e-5, "optimizer.lr_denoising": 1e-4}
SHAPES = {
    **SMALL,
    **CALM,
    "data.prompts_per_iteration": 4,
    "data.group_size": 2,
    "optimizer.ppo_epochs": 2,
    "optimizer.minibatches": 1,
}
BAGEL = {
    "rollout.image_size": 64,
    "rollout.max_think_tokens": 8,
    "rollout.num_points": 7,
    "data.prompts_per_iteration": 2,
    "data.group_size": 4,
    "optimizer.micro_batch": 2,
    "model.dtype": "float32",
    # of words: a byte of a picture that is rounded otherwise changes its brightness by 1e-6, and a JPEG's size by 1e-3
    "reward.train": f"[{{name: '{Path(rank_worker.__file__)}:letters'}}]",
    "optimizer.eps_denoising": CALM["optimizer.eps_denoising"],
}
WAYS = {
    "replicate": ("replicate", {}),
    "shard": ("shard", {}),
    "hsdp": ("shard", {"parallel.replicas": 2}),
    "lockstep": ("shard", {"parallel.rollout_weights": "sharded"}),
    "offload": ("shard", {"parallel.cpu_offload": "true"}),
}
LORA = {"model.lora": "{rank: 4, alpha: 8, experts: [reasoning, denoising]}"}


@pytest.fixture(scope="module")
def tiny_bagel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bagel") / "tiny"
    assert tiny_runs.unigrpo("make-tiny-bagel", folder) == 0
    return folder


def matrix_keys(what, kind, tiny_bagel):
    adapters = LORA if kind == "lora" else {}
    if what == "shapes":
        return {**SHAPES, **adapters, "recipe": tiny_runs.UNIGRPO, "iterations": 10}  # two updates each
    return {**BAGEL, **adapters, "recipe": "bagel/unigrpo", "model.path": tiny_bagel, "iterations": 10}


@pytest.fixture(scope="module")
def references(tmp_path_factory, tiny_bagel):
    """Twenty updates in one process, by what is trained; made when they are first asked for."""
    made = {}

    def of(what, kind):
        if (what, kind) not in made:
            folder = tmp_path_factory.mktemp("reference")
            made[what, kind] = rank_runs.worker(folder, "one", 1, **matrix_keys(what, kind, tiny_bagel))
        return made[what, kind]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("what", ["shapes", "bagel"])
@pytest.mark.parametrize(
    ("way", "size"),
    [("replicate", 2), ("replicate", 4), ("shard", 2), ("shard", 4), ("hsdp", 4), ("lockstep", 2), ("offload", 2)],
)
def test_the_number_of_ranks_changes_no_number(tmp_path, references, tiny_bagel, way, size, what, kind):
    mode, more = WAYS[way]
    keys = matrix_keys(what, kind, tiny_bagel)
    found = rank_runs.worker(tmp_path, way, size, mode, seconds=1800, **{**keys, **more})
    rank_runs.assert_alike(found, references(what, kind))


# One rank whose thinking is ten times longer


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("way", ["replicate", "shard", "lockstep"])
def test_a_long_thinking_on_one_rank_hangs_nobody(tmp_path, tiny_bagel, way, checkpointing):
    mode, more = WAYS[way]
    keys = {**matrix_keys("bagel", "full", tiny_bagel), "iterations": 1, "optimizer.micro_batch": 1, **more}
    keys |= {"model.activation_checkpointing": str(checkpointing).lower(), "data.group_size": 2}
    found = rank_runs.worker(tmp_path, way, 2, mode, seconds=60, stretch={"1": 80}, **keys)
    lengths = [len(ids[0]) for _, ids, *_ in found["drawn"]]
    assert max(lengths) == 80 and min(lengths) <= 8


# By the command line


def words(run_dir, *more, **keys):
    asked = tiny_runs.overrides(**{"iterations": 2, "eval__limit": 2, "eval__compare_limit": 2, **keys})
    asked += [word for key, value in CALM.items() for word in (f"--{key}", str(value))]
    asked += ["--model.path", SMALL["model.path"]]  # one that earns something: without advantages all is rounding
    return ["train", tiny_runs.UNIGRPO, "--out", run_dir, *asked, *more]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["replicate", "shard"])
def test_the_command_trains_in_ranks_and_goes_on_in_one_process(tmp_path, mode):
    code, out, err = rank_runs.unigrpo(*words(tmp_path / "two"), "--nproc", 2, "--parallel.mode", mode, seconds=SECONDS)
    assert code == 0, err
    assert f"2 ranks, parallel.mode {mode}" in out and out.count("evaluating before training") == 1
    made_by = json.loads((tmp_path / "two" / "environment.json").read_text(encoding="utf-8"))["command"]
    assert "--nproc 2" in made_by and f"--parallel.mode {mode}" in made_by
    assert tiny_runs.unigrpo(*words(tmp_path / "one")) == 0
    rank_runs.assert_same_runs(tmp_path / "two", tmp_path / "one")
    apart = () if mode == "replicate" else ("checkpoints/",)  # which ranks that share weights out write in pieces
    files = [[n for n in tiny_runs.listed(tmp_path / run) if not n.startswith(apart)] for run in ("two", "one")]
    assert files[0] == files[1]
    # on in one process, and the other way round, in the other mode
    on = ["--resume", "--iterations", 3]
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path / "two", *on) == 0
    command = ("train", tiny_runs.UNIGRPO, "--out", tmp_path / "one", *on, "--nproc", 2)
    assert rank_runs.unigrpo(*command, "--parallel.mode", "shard", seconds=SECONDS)[0] == 0
    rank_runs.assert_same_runs(tmp_path / "two", tmp_path / "one")


@contextmanager
def started(run_dir, *more):
    """A run of two ranks that has saved something; whatever happens, no rank of it is left."""
    command = [sys.executable, "-m", "unigrpo", *map(str, words(run_dir, "--nproc", 2, *more, iterations=500))]
    process = rank_runs.begun(command)
    try:
        end = time.monotonic() + SECONDS
        while not checkpoint.complete(run_dir) and time.monotonic() < end:
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        yield process
    finally:
        rank_runs.end(process)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_stops_all_ranks_and_saves(tmp_path, number, code):
    with started(tmp_path / "run") as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == code, err
    done = checkpoint.finished(tmp_path / "run")
    assert f"saved after {counted(done, 'iteration')}" in out and "--nproc 2" in out
    assert len(read_metrics(tmp_path / "run")) == done


@pytest.mark.slow
def test_a_rank_that_dies_is_named(tmp_path):
    with started(tmp_path / "run") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ranks = {_rank_of(int(pid)): int(pid) for pid in children if _rank_of(int(pid)) is not None}
        os.kill(ranks["1"], signal.SIGKILL)
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1 and f"rank 1 (process {ranks['1']}) was ended by SIGKILL" in err
    assert "another rank has ended or did not answer" in err and "Traceback" not in err


def _rank_of(pid):
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = [entry.partition(b"=")[2].decode() for entry in environ if entry.startswith(b"RANK=")]
    return found[0] if found else None


@pytest.mark.slow
def test_plain_torchrun_works(tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "unigrpo"]
    command += [str(word) for word in words(tmp_path / "run")]
    code, out, err = rank_runs._finished(command, SECONDS, rank_runs.environment(GLOO_SOCKET_IFNAME="lo"))
    assert code == 0, err
    assert out.count("evaluating before training") == 1 and checkpoint.finished(tmp_path / "run") == 2
