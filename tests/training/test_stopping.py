"""A signal is answered in time: what would take longer is given up, and what was finished is saved."""

import signal
import threading

import pytest

import tiny_runs
from unigrpo import doing
from unigrpo.reports import runlog
from unigrpo.rewards import registry
from unigrpo.runs.signals import stoppable
from unigrpo.training import checkpoint
from unigrpo.training.parallel import World
from unigrpo.training.stopping import Haste, Stop

SLOW = "[{name: tests/slow}]"


class Slow:
    """The shapes' verifier; its ``nth`` call in training brings a SIGTERM, and is then waited for half a minute."""

    def __init__(self, nth, waits):
        self.nth, self.calls, self.waits = nth, 0, waits
        self.verifier = registry.build("shapes/verifier")

    def __call__(self, images, prompts, metadata, thinking):
        self.calls += len(prompts) > 1
        if self.calls == self.nth and len(prompts) > 1:
            signal.raise_signal(signal.SIGTERM)
            self.waits.wait(30)
        return self.verifier(images, prompts, metadata, thinking)


@pytest.fixture
def waits():
    event = threading.Event()
    yield event
    event.set()


def stopped(trainer):
    """Train under the command's handlers of signals; whether it came to the end."""
    with stoppable(trainer, tiny_runs.Silent()):
        return tiny_runs.train(trainer)


def goes_on(tmp_path, monkeypatch, waits, name="tests/slow"):
    """The rest of the run, undisturbed, makes it the one that was never stopped."""
    monkeypatch.setitem(registry._FACTORIES, "tests/slow", lambda: Slow(None, waits))
    resumed = tiny_runs.trainer_of(tmp_path, reward__train=SLOW)
    resumed.resume()
    assert tiny_runs.train(resumed)
    tiny_runs.assert_same_run(tmp_path, tiny_runs.finished_run(), name)


def test_a_reward_that_is_waited_for_does_not_hold_up_a_stop(tmp_path, monkeypatch, waits):
    monkeypatch.setitem(registry._FACTORIES, "tests/slow", lambda: Slow(3, waits))
    keys = {"checkpoint__every": 25, "checkpoint__stop_within_s": 1, "reward__train": SLOW}
    trainer = tiny_runs.trainer_of(tmp_path, **keys)
    assert not stopped(trainer)
    assert trainer.stop.by == signal.SIGTERM and trainer.done == 2 and not waits.is_set()
    assert [folder.name for folder in checkpoint.complete(tmp_path)] == ["iteration-000002"]
    goes_on(tmp_path, monkeypatch, waits)


def test_an_iteration_that_would_take_too_long_is_given_up_before_its_step(tmp_path, monkeypatch, waits):
    """By the longest one so far: nothing is waited for."""
    trainer = tiny_runs.trainer_of(tmp_path, checkpoint__every=25)
    collect, seen = trainer.parts.source.collect, []

    def late(*given):
        if given[1] == 2:
            trainer.haste.longest = 1000.0
            signal.raise_signal(signal.SIGTERM)
        seen.append(given[1])
        return collect(*given)

    object.__setattr__(trainer.parts, "source", type("Source", (), {"collect": staticmethod(late)})())
    assert not stopped(trainer)
    assert seen == [0, 1, 2] and trainer.done == 2 and trainer.saver.saved == 2
    assert [line["iteration"] for line in runlog.read_metrics(tmp_path)] == [0, 1]
    resumed = tiny_runs.trainer_of(tmp_path)
    assert resumed.resume() == 2 and tiny_runs.train(resumed)
    tiny_runs.assert_same_run(tmp_path, tiny_runs.finished_run())


def test_after_the_first_step_it_is_finished_while_there_is_time(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path, checkpoint__every=25)
    step, steps = trainer.optimizer.step, []

    def signalled(**given):
        norms = step(**given)
        steps.append(1)
        if len(steps) == 3:  # of two an iteration
            trainer.haste.longest = 1000.0
            signal.raise_signal(signal.SIGTERM)
        return norms

    trainer.optimizer.step = signalled
    assert not stopped(trainer)
    assert trainer.done == 2 and trainer.saver.saved == 2


def test_half_an_iteration_that_is_given_up_is_not_saved(tmp_path):
    """Its first step is done, and the time is over: the last checkpoint stands."""
    trainer = tiny_runs.trainer_of(tmp_path, checkpoint__every=1)
    step, steps = trainer.optimizer.step, []

    def signalled(**given):
        norms = step(**given)
        steps.append(1)
        if len(steps) == 5:
            signal.raise_signal(signal.SIGTERM)
            trainer.stop.asked -= 1000.0
        return norms

    trainer.optimizer.step = signalled
    assert not stopped(trainer)
    assert trainer.done == 2 and checkpoint.finished(tmp_path) == 2
    resumed = tiny_runs.trainer_of(tmp_path)
    assert resumed.resume() == 2 and tiny_runs.train(resumed)
    tiny_runs.assert_same_run(tmp_path, tiny_runs.finished_run())


def test_an_evaluation_is_given_up_too(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path)
    trainer.stop.ask(signal.SIGHUP)
    trainer.stop.asked -= 1000.0
    assert not tiny_runs.train(trainer)
    assert "before" not in runlog.read_json(tmp_path / runlog.SUMMARY) and trainer.saver.saved == 0


def test_when_it_is_too_late():
    now, stop = [100.0], Stop()
    haste = Haste(stop, 60.0, clock=lambda: now[0])
    haste.begin()
    assert not haste.late(changed=False)  # nobody asked
    stop.ask(signal.SIGTERM)
    stop.asked = 100.0
    assert not haste.late(changed=False)  # nothing is known of how long it takes
    now[0] = 148.0  # a fifth is kept for saving
    assert haste.late(changed=False) and haste.late(changed=True)
    now[0], haste.longest = 101.0, 49.0  # would end at 149
    assert haste.late(changed=False) and not haste.late(changed=True)
    haste.longest = 47.0
    assert not haste.late(changed=False)
    haste.saved(20.0)  # 30 s are kept
    assert haste.late(changed=False)
    haste.over = True
    assert not haste.late(changed=False)


def test_where_ranks_wait_for_each_other_nothing_is_broken_off():
    def breaks():
        raise doing.GivenUp

    with doing.checked(breaks), doing.breakable(False):
        doing.say("a collective")
        with pytest.raises(doing.GivenUp), World().together():
            doing.say("work apart")


def test_what_cannot_be_broken_off_is_ended(monkeypatch, capfd, tmp_path):
    codes, ended = [], threading.Event()
    monkeypatch.setattr("unigrpo.runs.signals.os._exit", lambda code: (codes.append(code), ended.set()))
    trainer = tiny_runs.trainer_of(tmp_path)
    trainer.done, trainer.saver.saved = 3, 2
    with stoppable(trainer, tiny_runs.Silent(), within_s=0.01):
        signal.raise_signal(signal.SIGINT)
        assert ended.wait(30)
    assert codes == [130]
    assert (
        "ended 0.01 s after the signal; 1 finished iteration since the last checkpoint is lost"
        in capfd.readouterr().err
    )
