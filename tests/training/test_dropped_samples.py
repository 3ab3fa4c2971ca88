"""reward.on_error: drop_sample. A sample that could not be scored gives no gradient, and is never a zero."""

import math

import pytest
import torch

import tiny_runs
from unigrpo.reports import runlog
from unigrpo.rewards import registry
from unigrpo.rewards.composite import CompositeReward, WeightedReward
from unigrpo.rewards.protocol import RewardOutput
from unigrpo.training import checkpoint
from unigrpo.training.clock import Clock

NAMED = "[{name: tests/some-fail}]"


class SomeFail:
    """The mean of a picture; NaN for the pictures of ``which``, counted over calls with more than one picture."""

    def __init__(self, which, fault="nan"):
        self.which, self.fault, self.seen = set(which), fault, 0

    def __call__(self, images, prompts, metadata, thinking):
        if len(prompts) == 1:
            return images.mean((1, 2, 3))
        failed = [i for i in range(len(prompts)) if self.seen + i in self.which]
        self.seen += len(prompts)
        if failed and self.fault == "raise":
            raise ConnectionError("the judge is out")
        values = [math.nan if i in failed else float(v) for i, v in enumerate(images.mean((1, 2, 3)))]
        if self.fault == "errors":
            return RewardOutput([0.0 if v != v else v for v in values], {}, dict.fromkeys(failed, "no answer"))
        return values


def use(monkeypatch, *which, fault="nan"):
    monkeypatch.setitem(registry._FACTORIES, "tests/some-fail", lambda: SomeFail(which, fault))


def settings(**other):
    return {"reward__train": NAMED, "reward__on_error": "drop_sample", "eval__every": 1, **other}


def collected(tmp_path, **other):
    trainer = tiny_runs.trainer_of(tmp_path, **settings(**other))
    return trainer.parts.source.collect(trainer.parts.policy, 0, Clock())


@pytest.mark.parametrize("fault", ["nan", "errors"])
def test_a_failed_sample_leaves_its_group(monkeypatch, tmp_path, fault):
    use(monkeypatch, 1, fault=fault)
    some = collected(tmp_path, reward__max_failed_share=0.5)
    use(monkeypatch)
    whole = collected(tmp_path)
    left = [t for i, t in enumerate(whole.trajectories) if i != 1]
    assert [(t.prompt.position, t.sample, t.reward) for t in some.trajectories] == [
        (t.prompt.position, t.sample, t.reward) for t in left
    ]
    first, third = (t.advantage for t in some.trajectories[:2])
    assert first == -third  # two are compared with each other, as if there were no third
    assert [t.advantage for t in some.trajectories[2:]] == [t.advantage for t in left[2:]]
    assert some.samples[1].reward is None and some.samples[1].advantage is None and some.samples[1].failure
    assert some.metrics["failed_share"] == 1 / 6 and "failed_share" not in whole.metrics
    assert some.metrics["reward_mean"] == pytest.approx(sum(t.reward for t in left) / 5)


def test_a_group_with_one_valid_sample_gives_none(monkeypatch, tmp_path):
    use(monkeypatch, 0, 2)
    some = collected(tmp_path, reward__max_failed_share=0.5)
    assert {t.prompt.position for t in some.trajectories} == {some.samples[3].prompt.position}
    assert [bool(t.failure) for t in some.samples] == [True, True, True, False, False, False]
    assert "the other samples of its prompt could not be scored" in some.samples[1].failure


def test_no_two_samples_that_could_be_scored_stop_it(monkeypatch, tmp_path):
    use(monkeypatch, 0, 2, 3, 4)
    with pytest.raises(ValueError, match="no prompt has two samples that could be scored"):
        collected(tmp_path, reward__max_failed_share=1)


def test_a_run_goes_on_without_them_and_says_so(monkeypatch, tmp_path, capsys):
    use(monkeypatch, 4)
    words = tiny_runs.overrides(**settings())
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", *words) == 0
    shown = capsys.readouterr()
    assert "could not be scored are left out of training, 1 of 6: reward 'tests/some-fail' gave nan" in (
        shown.out + shown.err
    )
    lines = runlog.read_metrics(tmp_path / "run")
    assert lines[0]["failed_share"] == pytest.approx(1 / 6) and "failed_share" not in lines[1]
    records = runlog.read_records(tmp_path / "run/samples/iteration-000001.jsonl")
    assert records[4]["reward"] is None and "gave nan" in records[4]["failure"] and records[4]["correct"] is None


@pytest.mark.parametrize("fault", ["nan", "raise"])
def test_too_many_failures_stop_the_run_with_a_checkpoint(monkeypatch, tmp_path, capsys, fault):
    use(monkeypatch, 6, 7, fault=fault)  # of the second iteration
    words = tiny_runs.overrides(**settings(checkpoint__every=25))
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", *words) == 2
    said = capsys.readouterr().err
    count = (
        "2 of 6 pictures could not be scored (33%)" if fault == "nan" else "6 of 6 pictures could not be scored (100%)"
    )
    assert f"{count}, more than reward.max_failed_share = 0.2; most often" in said and "tests/some-fail" in said
    assert [folder.name for folder in checkpoint.complete(tmp_path / "run")] == ["iteration-000001"]


def test_a_number_is_never_made_up():
    reward = CompositeReward((WeightedReward("r", SomeFail([0])),), "drop_sample")
    from unigrpo.rewards.protocol import RewardInput

    scored = reward(RewardInput(torch.ones(2, 3, 4, 4), ["a", "b"], [{}, {}], [None, None]))
    assert scored.values[0] != scored.values[0] and scored.values[1] == 1.0
    assert list(scored.failures) == [0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"reward__train": "[{name: shapes/verifier, teaches: drawing}]"}, "nothing that teaches the thinking"),
        ({"reward__train": "[{name: shapes/verifier, teaches: thinking}]"}, "nothing that teaches the drawing"),
        ({"reward__train": "[{name: shapes/verifier, teaches: words}]"}, "choose one of both, thinking, drawing"),
        ({"reward__train": "[{name: shapes/verifier, args: [1]}]"}, "is no mapping of names to values"),
        ({"reward__train": "[{name: shapes/verifier, args: {a b: 1}}]"}, "which no argument can have"),
        (
            {"reward__train": "[{name: shapes/verifier, args: {power: 1}}]"},
            "args has 'power', which it does not take: it takes tidy",
        ),
        ({"reward__train": "[{name: shapes/verifier, value: exat}]"}, "has no value 'exat' (did you mean exam?)"),
        ({"rollout__images_per_thinking": 2}, "does not divide data.group_size = 3"),
        ({"rollout__images_per_thinking": 3}, "every prompt has one thought"),
        ({"rollout__images_per_thinking": 3, "rollout__think": False}, "there is no thinking to share"),
        ({"method__advantage": "{within: thought}"}, "a picture alone on its thought"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(tmp_path, capsys, words, said):
    if "rollout__think" in words:
        words = {**words, "method": "{name: flow_grpo}"}
    asked = tiny_runs.overrides(**words)
    if "method" in words:
        asked = [w for w in asked]
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", *asked) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_shared_thoughts_train_with_every_ratio_1_and_resume(tmp_path):
    words = {"rollout__images_per_thinking": 2, "data__group_size": 4, "method__advantage": "{within: thought}"}
    whole = tiny_runs.trainer_of(tmp_path / "whole", **words)
    assert tiny_runs.train(whole)
    lines = runlog.read_metrics(tmp_path / "whole")
    assert all(line["first_update"]["text_log_ratio_max"] < 1e-5 for line in lines)
    records = runlog.read_records(tmp_path / "whole/samples/iteration-000002.jsonl")
    assert records[0]["thinking"] == records[1]["thinking"] and "advantage_thinking" in records[0]
    cut = tiny_runs.trainer_of(tmp_path / "cut", **words)
    cut_at = lambda line: setattr(cut.stop, "requested", line["iteration"] == 1)  # noqa: E731
    assert not tiny_runs.train(cut, cut_at)
    again = tiny_runs.trainer_of(tmp_path / "cut", **words)
    assert again.resume() == 2 and tiny_runs.train(again)
    tiny_runs.assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_portions_that_are_scored_while_others_are_drawn_change_no_number(tmp_path):
    for name, batch in (("whole", "null"), ("parts", 2)):
        assert tiny_runs.train(tiny_runs.trainer_of(tmp_path / name, rollout__batch=batch))
    rewards = [[line["reward_mean"] for line in runlog.read_metrics(tmp_path / name)] for name in ("whole", "parts")]
    assert rewards[0][0] == pytest.approx(rewards[1][0], abs=1e-6)
    assert all(line["seconds"]["reward_wait"] >= 0 for line in runlog.read_metrics(tmp_path / "parts"))
