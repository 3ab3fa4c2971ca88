"""How many threads a command computes with: the user's number, that of the run, or what is measured."""

import json
import os
import subprocess
import sys

import pytest
import torch

import tiny_runs
from unigrpo import threads
from unigrpo.runs import measuring
from unigrpo.runs import threads as choosing

TINY = ["train", tiny_runs.UNIGRPO, *tiny_runs.overrides(iterations=1)]


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """Nobody has set anything, and what is chosen here does not last."""
    for name in (*threads.COUNTS, *threads.WAITING):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_process", {"own": True})
    monkeypatch.setattr(choosing, "_chosen", {"by": "torch's own choice"})
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rates(monkeypatch):
    """What is measured: so much by so many threads."""
    found = {1: 100.0, 2: 170.0}
    monkeypatch.setattr(measuring, "by_threads", lambda most: found)
    return found


def test_the_faster_number_is_taken_and_said(rates):
    said = choosing.settle()
    assert torch.get_num_threads() == 2 and said.startswith("2 threads (measured, of the work of 1 thread by 2: 1.70;")
    assert choosing.facts()["threads_chosen"] == "measured, of the work of 1 thread by 2: 1.70"
    rates[2] = 104.0  # as beside others
    assert choosing.settle().startswith("1 thread (") and torch.get_num_threads() == 1


def test_more_threads_must_be_worth_it():
    assert measuring.fastest({1: 100.0, 2: 109.0, 4: 108.0}) == 1
    assert measuring.fastest({1: 100.0, 2: 170.0, 4: 180.0}) == 2
    assert measuring.fastest({1: 100.0, 2: 90.0, 4: 150.0}) == 4


@pytest.mark.parametrize("name", threads.COUNTS)
def test_what_the_user_set_holds(name, rates, monkeypatch):
    monkeypatch.setenv(name, "1")
    torch.set_num_threads(1)
    assert choosing.settle() == "" and choosing.settle(begun=2) == "" and torch.get_num_threads() == 1
    assert choosing.facts()["threads_chosen"] == f"{name}=1"


def test_a_program_that_calls_the_command_keeps_its_threads(rates, monkeypatch):
    monkeypatch.setattr(threads, "_process", {"own": False})
    torch.set_num_threads(1)
    assert choosing.settle() == "" and torch.get_num_threads() == 1
    assert choosing.facts()["threads_chosen"] == "torch's own choice"


def test_a_run_goes_on_with_the_threads_it_began_with(rates, monkeypatch):
    monkeypatch.setattr(measuring, "cores", lambda: 2)
    assert choosing.settle(begun=1) == "" and torch.get_num_threads() == 1
    said = choosing.settle(begun=3)
    assert torch.get_num_threads() == 3 and "3 threads, as the run began, on 2 cores" in said
    assert choosing.facts()["threads_chosen"] == "as the run began"


def test_a_folder_says_with_how_many_it_began(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: mine")
    assert choosing.began_with(tmp_path) is None
    (tmp_path / "environment.json").write_text('{"threads": 3, "resumed": [{"threads": 1}]}')
    assert choosing.began_with(tmp_path) == 3


def test_all_numbers_are_measured_once_and_none_stays():
    torch.set_num_threads(1)
    measuring.by_threads.cache_clear()
    found = measuring.by_threads(2)
    assert list(found) == [1, 2] and min(found.values()) > 0 and torch.get_num_threads() == 1
    assert measuring.by_threads(2) is found


def command(*words, **environment):
    """The command as a process of its own."""
    known = {k: v for k, v in os.environ.items() if k not in (*threads.COUNTS, *threads.WAITING)}
    done = subprocess.run(
        [sys.executable, "-m", "unigrpo", *map(str, words)],
        env={**known, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def facts(folder):
    return json.loads((folder / "environment.json").read_text())


def test_threads_sleep_while_they_wait_unless_somebody_has_decided():
    code = "from unigrpo import threads; threads.prepare(); import os; print(os.environ.get('OMP_WAIT_POLICY'))"
    for given, wanted in (
        ({}, "PASSIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "9"}, "None"),
    ):
        said = subprocess.run([sys.executable, "-c", code], env={**os.environ, **given}, capture_output=True, text=True)
        assert said.stdout.strip() == wanted


def test_help_measures_nothing_and_imports_no_torch():
    code = "import sys; from unigrpo.cli import main; main(['train', '--help']); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip().endswith("False")


@pytest.mark.slow
def test_beside_a_busy_process_for_each_core_a_run_says_what_it_took_and_goes_on_with_it(tmp_path):
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        said = command(*TINY, "--out", tmp_path / "run")
    finally:
        for other in busy:
            other.kill()
            other.wait()
    found = facts(tmp_path / "run")
    assert f"{found['threads']} thread" in said and found["threads_wait"] == "OMP_WAIT_POLICY=PASSIVE"
    assert found["threads_chosen"].startswith(("measured", "one core"))
    command("train", tiny_runs.UNIGRPO, "--iterations", "2", "--out", tmp_path / "run", "--resume")
    (resumed,) = facts(tmp_path / "run")["resumed"]
    assert resumed["threads"] == found["threads"] and resumed["threads_chosen"] == "as the run began"
    command(*TINY, "--out", tmp_path / "mine", OMP_NUM_THREADS="1")
    assert facts(tmp_path / "mine")["threads_chosen"] == "OMP_NUM_THREADS=1"


@pytest.mark.parametrize("value", ["0", "abc", "-1", "2,x"])
def test_a_number_of_threads_that_is_none_is_refused(value, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert tiny_runs.unigrpo("generate", "a red circle") == 2
    assert f"OMP_NUM_THREADS = {value!r} is no number of threads" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", "1", "2,2"])
def test_a_number_of_threads_that_is_one_is_not(value):
    threads.check({"OMP_NUM_THREADS": value})
