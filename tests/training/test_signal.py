"""A run in which nothing is learned says so, and why; a healthy one says nothing."""

from dataclasses import replace

import pytest
import torch

import tiny_runs
from formulas import METHODS, group_advantages
from unigrpo.reports import runlog
from unigrpo.rewards import registry
from unigrpo.training.optimizer import TrainingFault
from unigrpo.training.signal import SignalWatch, missing_signal
from unigrpo.training.update import Updated

HEALTHY = {"zero_variance_share": 0.1, "advantage_std": 0.98, "reward_mean": 0.5, "reward_group_std": 0.2}
STEP = Updated({"text/clip_low": 0.3, "text/clip_high": 0.4, "flow/clip_low": 0.5}, {"reasoning": 1.0}, 1.0)


def train(folder, monkeypatch, capsys, reward, **settings):
    """Three iterations by the command line with a reward of one's own; what was printed."""
    monkeypatch.setitem(registry._FACTORIES, "tests/own", lambda: reward)
    tiny_runs.finished_run()
    capsys.readouterr()
    chosen = {"iterations": 3, "reward__train": "[{name: tests/own}]", **settings}
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", folder, *tiny_runs.overrides(**chosen)) == 0
    return capsys.readouterr().out


def constant(images, prompts, metadata, thinking):
    return [0.25] * len(prompts)


def of_the_prompt(images, prompts, metadata, thinking):
    return [float(len(prompt)) for prompt in prompts]


def faint(images, prompts, metadata, thinking):
    return (1e-9 * images.mean((1, 2, 3))).tolist()


@pytest.mark.parametrize(
    ("reward", "said"),
    [(constant, "the same reward (mean 0.25)"), (of_the_prompt, "the same reward"), (faint, "advantage.epsilon")],
)
def test_a_reward_that_tells_no_samples_apart_is_named(tmp_path, monkeypatch, capsys, quick, reward, said):
    shown = train(tmp_path / "run", monkeypatch, capsys, reward)
    assert shown.count("warning: for 3 iterations (up to iteration 3)") == 1 and said in shown
    assert all("no_signal" in line for line in runlog.read_metrics(tmp_path / "run"))


def test_rewards_that_overflow_stop_the_run(tmp_path, monkeypatch, capsys, quick):
    monkeypatch.setitem(
        registry._FACTORIES, "tests/own", lambda: lambda i, p, m, t: (1e200 * i.double().mean((1, 2, 3))).tolist()
    )
    chosen = tiny_runs.overrides(reward__train="[{name: tests/own}]")
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", *chosen) == 2
    assert "spread overflows" in capsys.readouterr().err


def test_the_spread_of_a_group_overflows_or_is_told():
    assert group_advantages([1e150, 2e150], "aa").tolist() == pytest.approx([-1.0, 1.0])
    with pytest.raises(ValueError, match=r"1e\+200.*scale the reward down"):
        group_advantages([1e200, 2e200], "aa")


@pytest.mark.parametrize("expert", ["reasoning", "denoising"])
def test_weights_that_do_not_move_are_named(tmp_path, expert):
    trainer = tiny_runs.trainer_of(tmp_path, iterations=1)
    parameters = trainer.optimizer.parameters[expert]
    for group in trainer.optimizer.adam.param_groups:
        group["base_lr"] *= 0.0 if group["expert"] == expert else 1.0
    before = {name: p.detach().clone() for name, p in parameters.items()}
    line = trainer.iterate(0)
    assert all(torch.equal(before[name], p) for name, p in parameters.items())
    assert any(
        f"the weights of the {expert} expert have not moved: its steps are too small" in w for w in line["no_signal"]
    )
    assert not any("denoising" in w for w in line["no_signal"] if expert == "reasoning")


def test_an_adapter_that_its_gradient_does_not_reach_stops_the_run(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path, iterations=1, model__lora="{rank: 2, alpha: 4.0}")
    for parameter in trainer.optimizer.parameters["denoising"].values():
        parameter.register_hook(torch.zeros_like)
    with pytest.raises(TrainingFault, match=r"the denoising expert has no gradient.*nothing was updated"):
        trainer.iterate(0)
    still = missing_signal(HEALTHY, METHODS["unigrpo"], [replace(STEP, grad_norm={"denoising": 0.0})], ["denoising"])
    assert still == ["the weights of the denoising expert have not moved: it has no gradient"]


def test_a_healthy_run_says_nothing():
    assert not any(
        "no_signal" in line and "moved" in str(line) for line in tiny_runs.lines_of(tiny_runs.finished_run())
    )
    assert missing_signal(HEALTHY, METHODS["unigrpo"], [STEP], []) == []


@pytest.mark.parametrize(
    ("stats", "said"),
    [
        ({"flow/clip_low": 0.6, "flow/clip_high": 0.35}, "95% of the ratios of denoising steps are clipped"),
        ({"text/clip_low": 0.91}, "91% of the ratios of tokens"),
        ({"fpo/clip": 1.0}, "method.fpo.clip_range is too small"),
    ],
)
def test_ratios_that_are_nearly_all_clipped_are_named(stats, said):
    (reason,) = missing_signal(HEALTHY, METHODS["unigrpo"], [STEP, Updated(stats, {}, None)], [])
    assert said in reason


def test_thinking_that_never_ends_is_named():
    assert "cut by rollout.max_think_tokens" in str(
        missing_signal({**HEALTHY, "think_cut_share": 1.0}, METHODS["unigrpo"], [STEP], [])
    )


def test_a_method_without_advantages_does_not_mind_equal_rewards():
    assert missing_signal({}, METHODS["supervised"], [STEP], []) == []


def test_a_person_is_told_once_after_three_in_a_row():
    watch = SignalWatch()
    notes = [watch.note(reasons, n) for n, reasons in enumerate([["a"], ["a"], [], ["a"], ["a"], ["b", "c"], ["a"]])]
    assert [n for n, note in enumerate(notes) if note] == [5]
    assert notes[5].endswith("(up to iteration 6) something is not learning: b; c")
