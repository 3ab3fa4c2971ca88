"""The verb ``doctor``: every check says ok here, and each fails for the fault that it is there for."""

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny_runs
from unigrpo.commands import doctor
from unigrpo.policy import Replayed
from unigrpo.tools.doctor import devices, examining, limits, machine, packages, pair, planned, selftest
from unigrpo.tools.doctor.devices import Devices, Gpu
from unigrpo.tools.doctor.finding import Finding
from unigrpo.tools.doctor.machine import Threads
from unigrpo.tools.doctor.packages import Requirement

CALM = Threads(cores=4, affinity=4, quota=None, torch=1, settings={}, load=0.5)
ROOM = {"here": 10**11, "temporary files": 10**11, "/dev/shm": 10**10, "models": 10**11}
H100 = Gpu("H100", 85 * 10**9, 80 * 10**9, bfloat16=True)


def failed(finding, *words):
    said = f"{finding.said} | {finding.todo}"
    assert finding.verdict == "failed" and finding.todo and all(word in said for word in words), said


# ---------------------------------------------------------------- the verb


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """A tiny run that the self-test's steps look at; none of the tests below changes it."""
    return selftest.Trial.begin(tmp_path_factory.mktemp("trial"))


@pytest.mark.slow
def test_all_checks_run_here_and_the_verdicts_are_plain_data(capsys):
    code = tiny_runs.unigrpo("doctor", "--json")
    found = json.loads(capsys.readouterr().out)
    by_name = {one["check"]: one for one in found["findings"]}
    for name in ("packed = separate", "first ratio 1", "checkpoint", "gloo pair", "matmul", "writing"):
        assert by_name[name]["verdict"] == "ok", by_name[name]
    assert {"python", "packages", "extras", "devices", "nccl", "threads", "memory", "disk", "terminal"} <= set(by_name)
    assert [name for name in by_name if name.startswith("auto: ")] == [f"auto: {name}" for name in planned.RECIPES]
    assert code == (1 if found["failed"] else 0) and found["ok"] is not bool(found["failed"])


def test_a_failed_check_is_exit_1_and_says_what_to_do(monkeypatch, capsys):
    bad = [Finding("disk", "failed", "no [room]", "make room"), Finding("python", "ok", "3.11")]
    monkeypatch.setattr(doctor, "examine", lambda **_: bad)
    assert tiny_runs.unigrpo("doctor") == 1
    said = capsys.readouterr().out
    assert "no [room]" in said and "disk: make room" in said and "1 of 2 checks failed: disk" in said


def test_a_check_that_breaks_has_failed_and_the_others_go_on():
    def broken():
        raise OSError(errno.EIO, "a broken disk")

    failed(*examining.answered("memory", broken), "a broken disk")


def test_who_fails_without_advice_is_refused():
    with pytest.raises(ValueError, match="what to do"):
        Finding("x", "failed", "broken")


@pytest.mark.parametrize(
    "words", [("--gpus", "8"), ("--gpus", "0", "--gpu-gb", "80"), ("--gpus", "8", "--gpu-gb", "nan")]
)
def test_plans_for_no_machine_are_refused(words, capsys):
    assert tiny_runs.unigrpo("doctor", "--no-self-test", *words) == 2
    assert "--gpu-gb" in capsys.readouterr().err


def test_a_plan_for_other_gpus(capsys):
    tiny_runs.unigrpo("doctor", "--no-self-test", "--gpus", "64", "--gpu-gb", "80")
    said = " ".join(capsys.readouterr().out.split())
    assert "shard on 64 GPUs: replicate would take 289 GB" in said and "gloo" not in said
    assert "set parallel.replicas 8, too" in said


# ---------------------------------------------------------------- what is here


def test_an_old_python():
    failed(packages.check_python((3, 10, 4)), "3.11")


NEEDS = packages.requirements(
    ["torch>=2.11", "rich>=13.7", "unigrpo[bagel]; extra == 'dev'", 'peft>=0.18; extra == "lora"']
)


def test_metadata_is_read():
    assert NEEDS[0] == Requirement("torch", "2.11", "") and NEEDS[3] == Requirement("peft", "0.18", "lora")
    assert [one.extra for one in NEEDS] == ["", "", "dev", "lora"]


def test_packages_that_are_missing_or_old():
    have = {"torch": "2.9.1+cu128"}
    failed(packages.check_packages(NEEDS, have.get), "torch 2.9.1+cu128 is older", "rich is missing", "'torch>=2.11'")
    assert packages.check_packages(NEEDS, {"torch": "2.11.0a0", "rich": "14"}.get).verdict == "ok"


def test_an_extra_that_is_missing_is_a_note_with_its_command():
    found = packages.check_extras(NEEDS, lambda name: None)
    assert found.verdict == "note" and "pip install '.[lora]'" in found.todo and "dev" not in found.said
    assert found.figures["missing"]["lora"]["lacks"] == ["peft is missing"]
    assert packages.check_extras(NEEDS, lambda name: "9").verdict == "ok"


def test_gpus_that_torch_does_not_use():
    failed(devices.check_devices(Devices((), 2, None), "2.13+cpu"), "2 GPUs", "CUDA")
    failed(devices.check_devices(Devices((), 1, "12.8"), "2.13"), "12.8", "driver")
    assert devices.check_devices(Devices((H100,), 1, "12.8"), "2.13").verdict == "ok"
    old = replace(H100, bfloat16=False)
    assert "float32" in devices.check_devices(Devices((H100, old), 2, "12.8"), "2.13").todo
    assert Devices((H100, replace(old, total=10)), 2, None).memory == 10


def test_a_gpu_that_multiplies_wrong_or_not():
    failed(devices.check_products(2, lambda index: 0.001 + index), "GPU 1", "CUDA_VISIBLE_DEVICES")
    failed(devices.check_products(1, lambda index: float("nan")), "nan")

    def broken(index):
        raise RuntimeError("CUDA error: an illegal memory access\nsecond line")

    failed(devices.check_products(1, broken), "illegal memory access")
    assert devices.check_products(1, lambda index: 0.002).verdict == "ok"


def test_several_gpus_without_nccl():
    failed(devices.check_nccl(2, None), "NCCL")
    assert devices.check_nccl(1, None).verdict == devices.check_nccl(2, "2.27.3").verdict == "ok"


def test_more_threads_than_cores():
    failed(machine.check_threads(replace(CALM, torch=8)), "8 threads on 4", "OMP_NUM_THREADS=4")
    failed(machine.check_threads(replace(CALM, torch=4, quota=1.5)), "grants 1.5", "OMP_NUM_THREADS=2")
    failed(machine.check_threads(replace(CALM, torch=2, affinity=1)), "OMP_NUM_THREADS=1")
    assert machine.check_threads(replace(CALM, torch=4, quota=4.0)).verdict == "ok"


def test_threads_on_a_busy_machine():
    busy = machine.check_threads(replace(CALM, torch=2, load=9.0, settings={"OMP_NUM_THREADS": "2"}))
    assert busy.verdict == "note" and "OMP_NUM_THREADS=1" in busy.todo and "OMP_NUM_THREADS=2" in busy.said


def test_little_memory():
    failed(machine.check_memory(10**9), "1.0 GB", "limit")
    assert machine.check_memory(4 * 10**9).verdict == "ok" and machine.check_memory(None).verdict == "note"


@pytest.mark.parametrize(("place", "advice"), [("here", "another folder"), ("temporary files", "TMPDIR")])
def test_a_full_disk(place, advice):
    failed(machine.check_disk({**ROOM, place: 10**8}), place, advice)


def test_shared_memory_matters_to_several_gpus_alone():
    small = {**ROOM, "/dev/shm": 64 * 2**20}
    failed(machine.check_disk(small, gpus=2), "--shm-size")
    assert machine.check_disk(small, gpus=1).verdict == "ok"
    assert machine.check_disk({**ROOM, "here": 10**9}).verdict == "note"


def test_a_folder_that_takes_no_file(tmp_path):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    failed(machine.check_writing(tmp_path, full), "No space left")
    failed(machine.check_writing(tmp_path / "nowhere"), "nowhere")
    assert machine.check_writing(tmp_path).verdict == "ok" and not list(tmp_path.iterdir())


def test_a_terminal_without_letters():
    found = machine.check_terminal("ANSI_X3.4-1968", "utf-8", is_terminal=True, columns=80)
    assert found.verdict == "note" and "C.UTF-8" in found.todo
    assert machine.check_terminal("UTF-8", "utf-8", is_terminal=False, columns=80).verdict == "ok"


# ---------------------------------------------------------------- limits of a container


def written(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_limits_of_a_control_group_of_version_2(tmp_path):
    root = written(
        tmp_path,
        {
            "proc/self/cgroup": "0::/job/step\n",
            "proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n",
            "sys/fs/cgroup/job/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/job/step/cpu.max": "max 100000\n",
            "sys/fs/cgroup/job/step/memory.max": "4000000000\n",
            "sys/fs/cgroup/job/step/memory.current": "3000000000\n",
            "sys/fs/cgroup/job/step/memory.stat": "anon 5\ninactive_file 500000000\n",
        },
    )
    assert limits.cpu_quota(root) == 1.5 and limits.free_memory(root) == 1_500_000_000


def test_limits_of_a_control_group_of_version_1(tmp_path):
    root = written(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/job\n4:cpu,cpuacct:/job\n0::/\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "2000000000\n",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "500000000\n",
        },
    )
    assert limits.cpu_quota(root) == 0.5 and limits.free_memory(root) == 1_500_000_000


def test_a_system_that_says_nothing_has_no_limits(tmp_path):
    assert limits.cpu_quota(tmp_path) is None and limits.free_memory(tmp_path) is None
    assert 1 <= limits.affinity() <= (os.cpu_count() or 1)


# ---------------------------------------------------------------- what is tried


def test_a_replay_that_is_another_in_a_batch(trial, monkeypatch):
    real = selftest.replay

    def shifted(policy, batch, temperature):
        answers = real(policy, batch, temperature)
        return [replace(a, log_probs=a.log_probs + 0.001 * (len(batch) > 1)) for a in answers]

    assert selftest.packed_is_separate(trial).verdict == "ok"
    monkeypatch.setattr(selftest, "replay", shifted)
    failed(selftest.packed_is_separate(trial), "differ by 0.001")


def test_a_difference_that_is_no_number_fails():
    nothing = torch.zeros(0)
    nan = Replayed(torch.tensor([float("nan")]), nothing, nothing, (torch.ones(1),))
    assert not selftest._apart(nan, nan) <= selftest.APART
    assert not selftest._largest([1.0, float("nan"), 2.0]) <= selftest.APART


def test_a_first_ratio_that_is_not_1_is_a_failure_and_the_checkpoint_is_tried(tmp_path):
    def moved(folder):
        made = selftest.Trial.begin(folder)
        annotate = made.trainer.annotate

        def other(*arguments):
            ready = annotate(*arguments)
            with torch.no_grad():
                next(iter(made.policy.parameter_groups()["reasoning"].values())).mul_(1.5)
            return ready

        made.trainer.annotate = other
        return made

    found = {one.check: one for one in selftest.self_test(moved)}
    failed(found["first ratio 1"], "ratios must be 1")
    assert found["packed = separate"].verdict == found["checkpoint"].verdict == "ok"


def test_a_checkpoint_that_comes_back_changed(trial, monkeypatch):
    def forgets(made):
        real = selftest.Trainer.resume

        def resume(trainer):
            done = real(trainer)
            with torch.no_grad():
                next(trainer.parts.policy.module.parameters()).view(-1)[0] += 1e-7
            return done

        return resume

    monkeypatch.setattr(selftest.Trainer, "resume", forgets(trial))
    failed(selftest.checkpoint_comes_back(trial), "1 of", "weights.")


def test_no_temporary_folder_and_no_model(monkeypatch):
    def broken(folder):
        raise ValueError("the assets are damaged")

    for found in selftest.self_test(broken):
        failed(found, "the assets are damaged")

    def none(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(selftest.tempfile, "TemporaryDirectory", none)
    for found in selftest.self_test():
        failed(found, "Read-only", "TMPDIR")


# ---------------------------------------------------------------- two ranks


def started(code):
    return pair.Pair((sys.executable, "-c", code))


def test_ranks_that_hang_get_a_sentence_and_are_ended():
    both = started("import time; time.sleep(600)")
    began = time.monotonic()
    failed(both.finding(seconds=1.0), "within 1 s", "GLOO_SOCKET_IFNAME")
    assert time.monotonic() - began < 60 and all(process.poll() is not None for process in both.started)


def test_a_rank_that_waits_for_ever_is_ended_by_its_alarm():
    failed(started("import signal, time; signal.alarm(1); time.sleep(600)").finding(), "no way to each other")


def test_a_rank_that_fails_says_why():
    failed(started("raise SystemExit('unable to resolve hostname')").finding(), "unable to resolve hostname")
    failed(started("import os; os._exit(7)").finding(), "ended with 7")


def test_no_port_to_be_had(monkeypatch):
    def refused():
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pair, "free_port", refused)
    failed(pair.Pair().finding(), "Permission denied", "127.0.0.1")


@pytest.mark.slow
def test_gloo_that_cannot_bind_is_told(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuchinterface0")
    failed(pair.Pair().finding(), "GLOO_SOCKET_IFNAME")


def test_the_program_of_a_rank_is_a_module():
    words = [sys.executable, "-c", "import unigrpo.tools.doctor.pair as p; print(p.TALKING)"]
    source = str(Path(pair.__file__).parents[3])
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": source})
    assert done.stdout.strip() == str(pair.TALKING)
