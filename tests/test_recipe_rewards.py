"""What a recipe says of rewards and cannot mean is refused before anything is built; what it can is not."""

import json
import sys

import pytest

import tiny_runs
from unigrpo import build
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Scorer, load_recipe

VERIFIER = "{name: shapes/verifier}"
LENGTH = "name: think/length"


def recipe(train=f"[{VERIFIER}]", **other):
    return tiny_runs.tiny_recipe(reward__train=train, **other)


@pytest.mark.parametrize(
    "train",
    [
        f"[{VERIFIER}, {{{LENGTH}, teaches: thinking}}, {{{LENGTH}, teaches: drawing, weight: -1}}]",
        "[{name: ocr/text, value: similarity}, {name: ocr/text, value: exact, weight: -1}]",
        f"[{{{LENGTH}, args: {{high: 9}}}}, {{{LENGTH}, args: {{high: 99}}, weight: -1}}]",
    ],
)
def test_weights_cancel_only_of_the_very_same_reward(train):
    recipe(train)


CANNOT = {
    "0, or cancel for each reward that teaches the drawing": {
        "train": f"[{{name: shapes/verifier, weight: 0, teaches: drawing}}, {{{LENGTH}, teaches: thinking}}]"
    },
    "cancel for each reward that teaches the thinking": {
        "train": "[{name: shapes/verifier}, {name: shapes/verifier, weight: -1}]"
    },
    "teaches the thinking alone, which flow_grpo does not train": {
        "train": f"[{VERIFIER}, {{{LENGTH}, teaches: thinking}}]",
        "method": "{name: flow_grpo}",
    },
    "reward.validation has teaches": {"reward__validation": "[{name: shapes/verifier, teaches: drawing}]"},
    "compares pictures, and text_grpo trains the thinking alone": {
        "method": "{name: text_grpo, advantage: {within: thought}}",
        "rollout__images_per_thinking": 3,
        "data__group_size": 6,
    },
    "rollout.batch = 1 is less than rollout.images_per_thinking = 3": {
        "rollout__batch": 1,
        "rollout__images_per_thinking": 3,
        "data__group_size": 6,
    },
    "method.advantage.combine = gdpo: refl compares no rewards": {
        "train": "[{name: shapes/preference}]",
        "method": "{name: refl, advantage: {combine: gdpo}}",
    },
    "all pictures of a thought would be the same": {
        "method": "{name: diffusion_nft, nft: {pairs: 2}}",
        "rollout__same_initial_noise": True,
        "rollout__images_per_thinking": 3,
        "data__group_size": 6,
    },
}


@pytest.mark.parametrize("sentence", CANNOT)
def test_what_would_teach_nothing_is_refused(sentence):
    with pytest.raises(ConfigError, match=sentence.replace(".", r"\.")):
        recipe(**CANNOT[sentence])


def test_a_reward_of_the_thinking_needs_some():
    thoughtless = recipe(f"[{{{LENGTH}}}]", method="{name: flow_grpo}", rollout__think=False)
    with pytest.raises(ConfigError, match=r"rollout\.think = false, and the reward think/length judges the thinking"):
        build.check_rewards(thoughtless)


def test_paths_in_args_are_relative_to_the_recipe(tmp_path):
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "mine.yaml"
    file.write_text(
        "extends: shapes/unigrpo\n"
        "reward:\n  train:\n"
        "    - {name: clip/score, args: {model: ./clip, head: a/b, batch: 4}}\n"
        "    - {name: judge/score, args: {cache: ../c.db}}\n"
    )
    first, second = load_recipe(str(file)).reward.train
    assert first.args == {"model": str(tmp_path / "sub" / "clip"), "head": "a/b", "batch": 4}
    assert second.args == {"cache": str(tmp_path / "c.db")}


def test_a_world_whose_judge_is_not_installed_is_told_before_anything_is_drawn(monkeypatch):
    monkeypatch.setattr("unigrpo.build.worlds.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"the judge of the words world needs the package rapidocr: pip install"):
        build.suite("words")


def test_bagel_self_takes_path_and_device_of_the_model(monkeypatch):
    asked = {}
    monkeypatch.setattr("unigrpo.build.self_reward.BagelSelf.__init__", lambda self, **args: asked.update(args))
    monkeypatch.setattr(
        "unigrpo.build.self_reward.BagelSelf.__call__", lambda self, images, prompts, metadata, thinking: []
    )
    build.reward([Scorer("bagel/self", args={"batch": 2})], model=recipe().model)
    assert asked == {"model": str(tiny_runs.model_folder()), "device": recipe().model.device, "batch": 2}


def test_eval_takes_a_reward_as_a_recipe_writes_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(
        "class Both:\n"
        "    def __init__(self, up): self.up = up\n"
        "    def __call__(self, images, prompts, metadata, thinking):\n"
        "        return {'a': [0.0] * len(images), 'b': [self.up] * len(images)}\n"
    )
    (tmp_path / "p.txt").write_text("a red circle\n")
    words = ("eval", "--suite", "p.txt", "--samples", 1, "--model", tiny_runs.model_folder(), "--json", "--reward")
    assert tiny_runs.unigrpo(*words, "{name: mine.py:Both, value: b, args: {up: 0.25}}") == 0
    assert json.loads(capsys.readouterr().out)["reward"] == 0.25
    assert tiny_runs.unigrpo(*words, "{nam: mine.py:Both}") == 2
    assert "--reward[0]" in capsys.readouterr().err


def test_a_suite_of_another_world_than_the_default_model_is_told(capsys):
    assert tiny_runs.unigrpo("eval", "--suite", "words", "--limit", 2) == 2
    assert (
        "--suite words with the default model builtin:shapes-sft: give --model builtin:words-sft"
        in capsys.readouterr().err
    )
