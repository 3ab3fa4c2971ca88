"""Runs of several rounds: resumed, killed, of two ranks, of two stages; and what such a run writes."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

import rank_runs
import tiny_runs
import toy_family
from unigrpo import build
from unigrpo.build.sampling import check_shares
from unigrpo.ranges import ConfigError
from unigrpo.recipe import load_stages
from unigrpo.reports import runlog
from unigrpo.rollout.episode import Episode
from unigrpo.rollout.looking import others
from unigrpo.runs import training
from unigrpo.training.parallel import World
from unigrpo.training.sharing import portions_of
from unigrpo.worlds.shapes import vocabulary

RED = f"{Path(toy_family.__file__)}:redness"
TWO = {
    "rollout__rounds": 2,
    "rollout__stop": "said",
    "rollout__stop_words": "[over]",
    "method__advantage__credit": "improvement",
    "reward__train": f"[{{name: '{RED}'}}]",
    "eval__every": 9,
}
# one word is thought, which is as likely from this half of the vocabulary as not
WORDS = {
    "method": "{name: flow_grpo, regulariser: {weight: 0.1}}",
    "rollout.rounds": 2,
    "rollout.stop": "said",
    "rollout.stop_words": json.dumps([word for word in vocabulary()[::2] if "think>" not in word]),
    "rollout.max_think_tokens": 1,
    "method.advantage.credit": "per_picture",
}


@pytest.fixture
def ending(monkeypatch):
    """Random words say stop where their letters are even in number."""
    monkeypatch.setattr(Episode, "ends", lambda self, words: len(words) % 2 == 0)


def plain(options):
    return {key.replace(".", "__"): value for key, value in options.items()}


def test_stopped_and_resumed_equals_uninterrupted(tmp_path, ending):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert tiny_runs.train(tiny_runs.trainer_of(whole, iterations=3, **TWO))
    lines = runlog.read_metrics(whole)
    assert any(1.0 < line["rounds"] < 2.0 for line in lines)  # samples of one batch have different numbers of rounds
    trainer = tiny_runs.trainer_of(cut, iterations=3, checkpoint__every=25, **TWO)
    assert not tiny_runs.train(trainer, lambda line: setattr(trainer.stop, "requested", line["iteration"] == 1))
    trainer = tiny_runs.trainer_of(cut, iterations=3, checkpoint__every=25, **TWO)
    assert trainer.resume() == 2 and tiny_runs.train(trainer)
    tiny_runs.assert_same_run(cut, whole)


def test_what_a_run_of_rounds_says(tmp_path):
    """Scores of the first and the last picture, ratios by round, and every round of a sample."""
    options = {**TWO, "rollout__stop": "never", "rollout__stop_words": "[]", "eval__every": 2}
    assert tiny_runs.train(tiny_runs.trainer_of(tmp_path, iterations=2, **options))
    line = runlog.read_metrics(tmp_path)[-1]
    assert line["rounds"] == 2.0 and line["revision"] == pytest.approx(line["score_last"] - line["score_first"])
    assert line["score_last"] == pytest.approx(line["reward_mean"])
    for part in ("text", "flow"):
        largest = [one[f"{part}_ratio_max_abs_log"] for one in line["by_round"]]
        assert len(largest) == 2 and max(largest) == pytest.approx(line[part]["ratio_max_abs_log"])
        means = [one[f"{part}_ratio_mean"] for one in line["by_round"]]
        assert min(means) <= line[part]["ratio_mean"] <= max(means) if part == "flow" else means
    (file,) = (tmp_path / "samples").glob("*.jsonl")
    for text in file.read_text().splitlines():
        record = json.loads(text)
        first, last = record["rounds"]
        assert last["reward"] == record["reward"] and last["thinking"] == record["thinking"]
        assert first["advantage"] != last["advantage"] and first["advantage_thinking"] == first["advantage"]
    validation = line["validation"]
    assert validation["rounds"] == 2.0 and validation["revision"] is not None
    records = [json.loads(text) for text in (tmp_path / "evaluations/after.jsonl").read_text().splitlines()]
    assert all(len(record["rounds"]) == 2 and record["rounds"][1]["reward"] == record["reward"] for record in records)


def test_first_thinkings_that_are_shared(tmp_path):
    """Nothing has changed before the first update, and both pictures of a thought go on by themselves."""
    options = {**TWO, "rollout__images_per_thinking": 2, "data__group_size": 4, "method__advantage__within": "thought"}
    assert tiny_runs.train(tiny_runs.trainer_of(tmp_path, iterations=1, **options))
    (line,) = runlog.read_metrics(tmp_path)
    assert max(line["first_update"].values()) < 1e-5
    assert line["flops"] > 0


def test_a_run_of_one_round_says_nothing_of_rounds():
    for line in runlog.read_metrics(tiny_runs.finished_run()):
        assert not {"rounds", "score_first", "score_last", "revision", "by_round"} & line.keys()


def test_a_killed_run_goes_on(tmp_path, quick):
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    words = tiny_runs.overrides(iterations=3, eval__every=9, **plain(WORDS))
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", whole, *words) == 0
    assert any(1.0 < line["rounds"] < 2.0 for line in runlog.read_metrics(whole))
    tiny_runs.killed_after_its_first_checkpoint(run_dir, tiny_runs.UNIGRPO, *words)
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume") == 0
    tiny_runs.assert_same_run(run_dir, whole)


def test_two_ranks_do_what_one_process_does(tmp_path):
    """Groups are drawn one at a time, so that both ways decode and look at batches of one size (8 bits round)."""
    options = {
        **{"model.path": tiny_runs.model_folder(), "data.prompts_per_iteration": 2, "data.group_size": 4},
        **{"optimizer.micro_batch": 2, "rollout.num_points": 6, "rollout.window": [0, 4], "rollout.batch": 4, **WORDS},
    }
    alone, pair = (
        rank_runs.worker(tmp_path, f"of-{size}", size, iterations=2, seconds=300, sheet=True, **options)
        for size in (1, 2)
    )
    one, two = (Image.open(tmp_path / f"of-{size}/samples/iteration-000002.png") for size in (1, 2))
    assert one.size == two.size and one.width > 6 * 168  # earlier pictures stand beside the last ones
    apart = ImageChops.difference(one.convert("RGB"), two.convert("RGB"))
    assert torch.tensor(list(apart.tobytes()), dtype=torch.uint8).max() <= 2
    assert any(1.0 < line["rounds"] < 2.0 for line in alone["lines"])
    rank_runs.assert_alike(pair, alone)


STAGED = """
name: tiny/rounds
iterations: 2
model: {{path: {model}, dtype: float32}}
data: {{prompts: shapes:train, prompts_per_iteration: 2, group_size: 3}}
rollout: {{num_points: 6, shift: 4.0, window: [0, 3], window_size: 2, max_think_tokens: 6}}
reward: {{train: [{{name: '{red}'}}], validation: [{{name: '{red}'}}]}}
optimizer: {{lr_reasoning: 2.0e-3, lr_denoising: 1.0e-3, micro_batch: 6}}
eval: {{every: 25, prompts: shapes:held-out, limit: 6, compare_limit: 6, compare_samples: 1, num_points: 6}}
method: {{name: unigrpo}}
stages:
  - name: one
  - name: two
    rollout: {{rounds: 2}}
    method: {{advantage: {{credit: per_picture}}}}
"""


def test_a_stage_of_one_round_and_one_of_two(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "write_report", lambda run_dir: run_dir)
    path = tmp_path / "staged.yaml"
    path.write_text(STAGED.format(model=tiny_runs.model_folder(), red=RED))
    assert [stage.rollout.rounds for stage in load_stages(str(path))] == [1, 2]
    assert tiny_runs.unigrpo("train", path, "--out", tmp_path / "run") == 0
    first, second = (runlog.read_metrics(tmp_path / "run" / name) for name in ("1-one", "2-two"))
    assert "rounds" not in first[0] and second[0]["rounds"] == 2.0


def test_a_later_stage_without_another_picture_to_look_at_is_refused_before_the_first(tmp_path, capsys):
    path = tmp_path / "staged.yaml"
    alone = "rounds: 2, look: other"  # three prompts, two at a time
    words = STAGED.format(model=tiny_runs.model_folder(), red=RED).replace("rounds: 2", alone)
    path.write_text(words.replace("prompts_per_iteration: 2", "prompts_per_iteration: 3"))
    assert tiny_runs.unigrpo("train", path, "--out", tmp_path / "run", "--rollout.batch", "6") == 2
    assert "of 3 prompts x 3 samples, at most 6 at a time" in capsys.readouterr().err
    assert not (tmp_path / "run" / "1-one").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "{name: refl}", "reward__train": "[{name: shapes/preference}]"}, "into one picture"),
        (
            {"rollout__rounds": 1, "method__advantage__credit": "improvement"},
            "credit = improvement with rollout.rounds",
        ),
        ({"rollout__rounds": 1, "rollout__look": "grey"}, "rollout.look = grey with one round"),
        ({"rollout__rounds": 1, "eval__rethink": "fine"}, "eval.rethink = fine with one round"),
        ({"rollout__stop": "said"}, "rollout.stop_words is empty"),
        ({"rollout__stop": "said", "rollout__stop_words": "fine"}, r"is not a list: write it as \[a, b\]"),
        ({"rollout__stop_words": "[fine]"}, "set stop to said, or leave them out"),
        ({"rollout__stop": "said", "rollout__stop_words": "['<think> </think>']"}, "would end every empty thinking"),
        (
            {"rollout__stop": "said", "rollout__stop_words": "[fine]", "rollout__rethink": "none"},
            "no thinking of its own follows a look",
        ),
        ({"rollout__look": "other", "rollout__batch": 3}, "set it to 6 or more"),
        ({"rollout__look": "other", "data__prompts_per_iteration": 1}, "prompts_per_iteration is 1: set it to 2"),
        ({"rollout__rounds": 65}, "at most 64"),
    ],
)
def test_what_cannot_go_through_rounds_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        tiny_runs.tiny_recipe(**{"rollout__rounds": 2, **options})


def test_demonstrations_have_the_rounds_that_they_have():
    with pytest.raises(ConfigError, match="draws no training samples"):
        tiny_runs.tiny_recipe(tiny_runs.PRETRAIN, rollout__rounds=2)
    assert tiny_runs.tiny_recipe(tiny_runs.PRETRAIN, eval__rounds=2).eval.rounds == 2


def test_words_that_a_model_does_not_know_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"eval\.rethink = 'xyzzy'"):
        tiny_runs.trainer_of(tmp_path, rollout__rounds=2, eval__rethink="xyzzy")


OTHER = {"rollout__rounds": 2, "rollout__look": "other", "reward__train": f"[{{name: '{RED}'}}]"}


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (2, {}, "of 2 prompts x 3 samples over 2 ranks some would be drawn with no other prompt: .* to 4, or"),
        (2, {"data__prompts_per_iteration": 3}, "to 4, or change the number of ranks"),
        (1, {"data__prompts_per_iteration": 3, "rollout__batch": 6}, r"6 at a time \(rollout.batch\).* to 4, or"),
        (4, {"data__prompts_per_iteration": 8, "eval__limit": 6}, "or the prompts of eval .each of 4 ranks"),
        (1, {"rollout__rounds": 3, "rollout__stop": "said", "rollout__stop_words": "[over]"}, "or stop to never"),
    ],
)
def test_a_rank_that_would_draw_a_prompt_alone_is_refused_before_a_model_is_loaded(monkeypatch, size, options, message):
    """Where a look shows another prompt's picture; whichever rank it is."""
    recipe = tiny_runs.tiny_recipe(**{**OTHER, **options})
    monkeypatch.setattr("unigrpo.build.runs.trained", lambda *_: pytest.fail("a model was loaded"))
    for rank in range(size):
        with pytest.raises(ConfigError, match=message):
            build.parts(recipe, World(rank, size))


def test_ranks_with_two_prompts_each_look_at_other_pictures(tmp_path):
    recipe = tiny_runs.tiny_recipe(**OTHER, data__prompts_per_iteration=4, data__group_size=2)
    for rank in range(2):
        check_shares(recipe, World(rank, 2))
        for portion in portions_of(World(rank, 2), 4, 2):
            assert len(others(list(portion.prompts))) == 2  # as a rollout asks for them


def test_pictures_of_one_thinking_are_not_parted_where_others_are_looked_at():
    """Five groups of one thought each: a rank draws two of them, the other three, and none of them halves."""
    sharing = {"data__prompts_per_iteration": 5, "rollout__images_per_thinking": 3}
    method = {"method": "{name: flow_grpo, regulariser: {weight: 0.3}}"}
    recipe = tiny_runs.tiny_recipe(**{**OTHER, **sharing, **method})
    for rank in range(2):
        check_shares(recipe, World(rank, 2))
        assert len(portions_of(World(rank, 2), 5, 3, together=3)) == 1


def test_words_that_nobody_could_say_are_refused(tmp_path):
    stop = {"rollout__rounds": 2, "rollout__stop": "said", "rollout__max_think_tokens": 3}
    with pytest.raises(ConfigError, match="has 4 tokens, and a thinking is cut after 3"):
        tiny_runs.trainer_of(tmp_path, **stop, rollout__stop_words='["red blue red blue"]')
    tiny_runs.trainer_of(tmp_path, **stop, rollout__stop_words='["red <think> blue </think> red"]')  # marks need not be
