"""Training with a reward behind HTTP whose server is killed: the run waits, or goes on later; the same weights."""

import threading
import time

import pytest

import reward_server
import tiny_runs
from unigrpo.reports import runlog
from unigrpo.rewards import registry
from unigrpo.rewards.remote import RemoteHttp
from unigrpo.training import checkpoint

SLOW = """
import time
from pathlib import Path
from unigrpo.rewards import registry
verifier = registry.build("shapes/verifier")

def judge(images, prompts, metadata, thinking):
    with open(Path(__file__).with_name("calls"), "a") as calls:
        calls.write("x")
    time.sleep(0.1)
    return verifier(images, prompts, metadata, thinking)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a reward that takes its time, and the name remote/http."""
    (tmp_path / "slow.py").write_text(SLOW)
    with registry.meaning({"remote/http": RemoteHttp}):
        yield tmp_path


def calls(folder):
    return len((folder / "calls").read_text()) if (folder / "calls").exists() else 0


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def words(url, **other):
    args = ", ".join(f"{key}: {value}" for key, value in {"url": url, "batch": 1, "concurrency": 1, **other}.items())
    return tiny_runs.overrides(reward__train=f"[{{name: remote/http, args: {{{args}}}}}]")


def train(folder, *more):
    return tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", folder / "run", *more)


@pytest.mark.slow  # a server starts four times
def test_a_server_that_is_killed_three_times_changes_nothing(folder):
    port, servers = reward_server.free_port(), []

    def start():
        servers.append(reward_server.Process("slow.py:judge", folder, port=port))

    def kill():
        for limit in (4, 11, 18):  # of 24 calls and the trial's
            wait_until(lambda limit=limit: calls(folder) >= limit)
            servers[-1].stop()
            start()

    start()
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert train(folder, *words(servers[0].url)) == 0
        killer.join(60)
        assert len(servers) == 4 and calls(folder) > 25  # those that were cut off were made again
    finally:
        servers[-1].stop()
    tiny_runs.assert_same_run(folder / "run", tiny_runs.finished_run(), "remote/http")


@pytest.mark.slow  # a server starts twice
def test_a_server_that_stays_away_stops_the_run_which_goes_on_later(folder, capsys):
    port = reward_server.free_port()
    first = reward_server.Process("slow.py:judge", folder, port=port)
    killer = threading.Thread(target=lambda: (wait_until(lambda: calls(folder) >= 15), first.stop()))
    killer.start()
    assert train(folder, *words(first.url, deadline_s=1.0, retries=1)) == 2
    killer.join(60)
    shown = capsys.readouterr()
    assert "reward 'remote/http' failed on" in shown.err and f"no connection to {first.url}" in shown.err
    assert "Traceback" not in shown.err and "to go on: unigrpo train" in shown.out
    done = len(runlog.read_metrics(folder / "run"))
    assert 0 < done < tiny_runs.ITERATIONS and checkpoint.complete(folder / "run")
    assert train(folder, "--resume") == 2 and "cannot be used" in capsys.readouterr().err  # it is still away
    assert len(runlog.read_metrics(folder / "run")) == done
    second = reward_server.Process("slow.py:judge", folder, port=port)
    try:
        assert train(folder, "--resume") == 0
    finally:
        second.stop()
    tiny_runs.assert_same_run(folder / "run", tiny_runs.finished_run(), "remote/http")
