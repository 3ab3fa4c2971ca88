"""Scoring beside drawing: given up with the run, nothing is kept that is done, and no number changes."""

import asyncio
import gc
import subprocess
import sys
import threading
import weakref

import pytest
import torch

import tiny_runs
from unigrpo.reports.curves import phases
from unigrpo.rewards import registry
from unigrpo.rewards.calling import Worker
from unigrpo.rewards.protocol import RewardFault, RewardInput, RewardOutput, call
from unigrpo.training.clock import Clock
from unigrpo.training.figures import _means

NAMED = "[{name: tests/watched}]"


class Watched:
    """Counts its calls; ``at``: what is done in the n-th one with more than one picture."""

    def __init__(self, at=lambda n: None):
        self.at, self.calls = at, 0

    def __call__(self, images, prompts, metadata, thinking):
        if len(prompts) > 1:
            self.calls += 1
            self.at(self.calls)
        return images.mean((1, 2, 3))


def source_of(tmp_path, monkeypatch, reward, **other):
    monkeypatch.setitem(registry._FACTORIES, "tests/watched", lambda: reward)
    trainer = tiny_runs.trainer_of(tmp_path, reward__train=NAMED, rollout__batch=2, **other)
    return trainer.parts.source, trainer.parts.policy


def test_a_fault_of_a_portion_ends_the_scoring_of_all(tmp_path, monkeypatch):
    told = threading.Event()

    def breaks(n):
        if n == 1:
            raise RuntimeError("the judge is out")
        told.wait(60)

    reward = Watched(breaks)
    source, policy = source_of(tmp_path, monkeypatch, reward, data__group_size=2, data__prompts_per_iteration=3)
    with pytest.raises(RewardFault, match="the judge is out"):
        source.collect(policy, 0, Clock())
    told.set()
    assert reward.calls < 3  # the second of three portions may have been begun


def test_what_was_given_up_is_neither_scored_nor_waited_for(tmp_path, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def hangs(n):
        if n == 1:
            begun.set()
            go_on.wait(60)

    reward = Watched(hangs)
    source, policy = source_of(tmp_path, monkeypatch, reward)

    class Stopped(Clock):
        def phase(self, name):
            if name == "reward_wait":
                assert begun.wait(60)
                raise KeyboardInterrupt
            return super().phase(name)

    with pytest.raises(KeyboardInterrupt):
        source.collect(policy, 0, Stopped())
    reward.at = lambda n: None
    again = source.collect(policy, 0, Clock())  # while the first call still hangs
    assert len(again.trajectories) == 6 and reward.calls == 3  # two portions of 2, two of 1
    go_on.set()


def test_a_coroutine_that_takes_too_long_is_cancelled():
    ended = threading.Event()

    async def sleepy(images, prompts, metadata, thinking):
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    given = RewardInput(torch.rand(1, 3, 4, 4), ["a"], [{}], [None])
    with pytest.raises(RewardFault, match=r"did not answer within 0\.05 s"):
        call("sleepy", sleepy, given, timeout_s=0.05)
    assert ended.wait(30)


def test_a_worker_keeps_nothing_of_what_is_done():
    class Thing:
        pass

    thing, worker = Thing(), Worker("test")
    seen = weakref.ref(thing)
    assert worker.submit(lambda kept=thing: kept is not None).result(30)
    worker.submit(lambda: None).result(30)
    del thing
    gc.collect()
    assert seen() is None


def test_a_command_ends_well_beside_a_reward_that_hangs_in_torch():
    """Python's way out aborts the process (SIGABRT) where a thread is inside of torch."""
    script = """
import sys, torch
from unigrpo import cli
from unigrpo.rewards.calling import Worker
def forever():
    a = torch.rand(300, 300)
    while True:
        a = (a @ a).clamp(0, 1)
Worker("hangs").submit(forever)
sys.argv[1:] = WORDS
cli.console()
"""
    for words, code in ((["--version"], 0), (["recipe", "no/such"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", script.replace("WORDS", repr(words))], capture_output=True, timeout=120
        )
        assert done.returncode == code and (done.stdout or done.stderr)


def test_parts_may_differ_from_portion_to_portion(tmp_path, monkeypatch):
    def named(images, prompts, metadata, thinking):
        values = [float(v) for v in images.mean((1, 2, 3))]
        return RewardOutput(values, {prompts[0].replace(" ", "-"): values})

    source, policy = source_of(tmp_path, monkeypatch, named, data__group_size=2, data__prompts_per_iteration=3)
    batch = source.collect(policy, 0, Clock())
    assert len(batch.metrics["reward_parts"]) > 1
    assert _means([{"a": 1.0}, {"a": 3.0, "b": 5.0}]) == {"a": 2.0, "b": 5.0}


def test_seconds_are_counted_once(tmp_path, monkeypatch):
    source, policy = source_of(tmp_path, monkeypatch, Watched())
    clock = Clock()
    source.collect(policy, 0, clock)
    assert {"reward", "reward_wait", "reward_hidden"} <= set(clock.seconds)
    assert clock.seconds["reward_wait"] <= clock.seconds["reward"]
    total = clock.seconds["rollout"] + clock.seconds["reward"]
    found = phases([{"iteration": 0, "seconds": {**clock.seconds, "total": total}}])
    assert sum(float(y.sum()) for _, y in found.values()) == pytest.approx(total)


def test_the_reward_of_evaluations_is_not_the_one_that_was_tried(tmp_path, monkeypatch):
    made = []
    monkeypatch.setitem(registry._FACTORIES, "tests/watched", lambda: made.append(Counted()) or made[-1])
    trainer = tiny_runs.trainer_of(tmp_path, reward__validation=NAMED)
    held = trainer.parts.evaluator.reward.rewards[0].function
    assert held in made and held.calls == 0 and any(one.calls for one in made)


class Counted:
    """Counts all its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, images, prompts, metadata, thinking):
        self.calls += 1
        return images.mean((1, 2, 3))
