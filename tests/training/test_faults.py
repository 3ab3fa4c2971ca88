"""A reward that fails, and numbers not to learn from: the last complete iteration is kept, and a person is told why."""

import math

import pytest
import torch

import tiny_runs
from unigrpo import build
from unigrpo.reports import runlog
from unigrpo.rewards import registry
from unigrpo.rewards.protocol import RewardOutput
from unigrpo.training import checkpoint
from unigrpo.training.optimizer import TrainingFault

FAULTY = "[{name: tests/faulty}]"


class Faulty:
    """The verifier of the shapes, until its ``nth`` call in training; None: it never fails."""

    def __init__(self, nth, fault):
        self.nth, self.fault, self.calls = nth, fault, 0
        self.verifier = registry.build("shapes/verifier")

    def __call__(self, images, prompts, metadata, thinking):
        output = self.verifier(images, prompts, metadata, thinking)
        self.calls += len(prompts) > 1  # the trial at the start has one picture
        return self.fault(output) if self.calls == self.nth and len(prompts) > 1 else output


def breaks(output):
    raise RuntimeError("the judge is out")


def gives_nan(output):
    return RewardOutput([*output.values[:4], math.nan, *output.values[5:]], output.parts)


def misses_one(output):
    return RewardOutput(output.values, output.parts, {3: "no answer in 30 s"})


def use(monkeypatch, nth, fault):
    """Register the reward for one test, as a user's own."""
    assert build.rewards.registry is registry
    monkeypatch.setitem(registry._FACTORIES, "tests/faulty", lambda: Faulty(nth, fault))


def saved(run_dir):
    return [folder.name for folder in checkpoint.complete(run_dir)]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (breaks, ["raised RuntimeError: the judge is out"]),
        (gives_nan, ["gave nan for picture 4 ('", "must be a finite number"]),
        (misses_one, ["failed on 1 of 6 pictures; picture 3 ('", "no answer in 30 s"]),
    ],
)
def test_a_faulty_reward_saves_what_was_finished_and_is_named(tmp_path, monkeypatch, quick, capsys, fault, said):
    use(monkeypatch, 3, fault)
    settings = tiny_runs.overrides(reward__train=FAULTY, checkpoint__every=25)
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path, *settings) == 2
    shown = capsys.readouterr()
    assert all(part in shown.err for part in ["unigrpo: error: reward 'tests/faulty'", *said]), shown.err
    assert "Traceback" not in shown.err
    assert "stopped by an error after 2 finished iterations; to go on: register the reward 'tests/faulty'" in shown.out
    assert f"call unigrpo.cli.main(['train', '{tiny_runs.UNIGRPO}', '--out', '{tmp_path}', '--resume'])" in shown.out
    assert saved(tmp_path) == ["iteration-000002"]
    assert [line["iteration"] for line in runlog.read_metrics(tmp_path)] == [0, 1]
    if fault is not gives_nan:  # once is enough for what follows
        return
    use(monkeypatch, None, fault)
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path, "--resume") == 0
    tiny_runs.assert_same_run(tmp_path, tiny_runs.finished_run(), "tests/faulty")


def test_a_reward_that_fails_at_once_leaves_a_start_to_resume_from(tmp_path, monkeypatch):
    use(monkeypatch, 1, breaks)
    trainer = tiny_runs.trainer_of(tmp_path, reward__train=FAULTY)
    with pytest.raises(ValueError, match="the judge is out"):
        tiny_runs.train(trainer)
    assert saved(tmp_path) == ["iteration-000000"]
    start = tiny_runs.final_state(tmp_path)
    model = checkpoint.load_file(tiny_runs.model_folder() / "model.safetensors")
    assert all(torch.equal(start[f"model/{name}"], value) for name, value in model.items())
    use(monkeypatch, None, breaks)
    resumed = tiny_runs.trainer_of(tmp_path, reward__train=FAULTY)
    assert resumed.resume() == 0
    assert tiny_runs.train(resumed)
    tiny_runs.assert_same_run(tmp_path, tiny_runs.finished_run(), "tests/faulty")


def spoil_gradient(trainer, nth):
    """Put a NaN into a gradient just before the ``nth`` optimizer step of a run."""
    whole, calls = trainer.optimizer.step, []

    def step(**learning):
        calls.append(None)
        if len(calls) == nth:
            parameter = trainer.parts.policy.denoising_parameters()["llm2vae.weight"]
            parameter.grad[0, 0] = math.nan
        return whole(**learning)

    trainer.optimizer.step = step


def test_a_gradient_of_nan_saves_what_was_finished(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path, checkpoint__every=25, optimizer__ppo_epochs=1)
    spoil_gradient(trainer, 3)
    with pytest.raises(TrainingFault, match=r"denoising parameters is nan \(first in llm2vae.weight\)"):
        tiny_runs.train(trainer)
    assert saved(tmp_path) == ["iteration-000002"]
    resumed = tiny_runs.trainer_of(tmp_path, checkpoint__every=25, optimizer__ppo_epochs=1)
    assert resumed.resume() == 2
    ours, theirs = (t.parts.policy.model.state_dict() for t in (trainer, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)  # the step with the NaN changed nothing


def test_half_an_iteration_is_not_saved_as_a_whole_one(tmp_path):
    """A fault in the second step of an iteration: the weights are no iteration's, and the last checkpoint stands."""
    trainer = tiny_runs.trainer_of(tmp_path, checkpoint__every=1, optimizer__ppo_epochs=2)
    spoil_gradient(trainer, 4)  # the second step of the second iteration
    with pytest.raises(TrainingFault):
        tiny_runs.train(trainer)
    assert saved(tmp_path) == ["iteration-000001"]
    resumed = tiny_runs.trainer_of(tmp_path)
    assert resumed.resume() == 1
    assert tiny_runs.train(resumed)
    tiny_runs.assert_same_run(tmp_path, tiny_runs.finished_run(), "tests/faulty")


def test_half_an_iteration_without_a_checkpoint_saves_nothing(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path, checkpoint__every=25, optimizer__ppo_epochs=2)
    spoil_gradient(trainer, 4)
    with pytest.raises(TrainingFault):
        tiny_runs.train(trainer)
    assert saved(tmp_path) == []
    resumed = tiny_runs.trainer_of(tmp_path)
    assert resumed.resume() == 0 and runlog.read_metrics(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError("the cable is out"), ValueError("line 7 has no image")])
def test_any_other_fault_saves_what_was_finished_too(tmp_path, monkeypatch, error):
    trainer = tiny_runs.trainer_of(tmp_path, checkpoint__every=25)
    collect, calls = trainer.parts.source.collect, []

    def fails(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise error
        return collect(*arguments)

    object.__setattr__(trainer.parts, "source", type("Source", (), {"collect": staticmethod(fails)})())
    with pytest.raises(type(error)):
        tiny_runs.train(trainer)
    assert saved(tmp_path) == ["iteration-000002"]


def test_an_error_in_the_middle_of_a_step_saves_nothing(tmp_path, monkeypatch):
    """The moment at which some weights have moved and others not: no checkpoint may say that this is an iteration."""
    trainer = tiny_runs.trainer_of(tmp_path, checkpoint__every=25)

    def dies(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(trainer.optimizer.adam, "step", dies)
    with pytest.raises(RuntimeError):
        tiny_runs.train(trainer)
    assert saved(tmp_path) == []
