"""Paths in a recipe are relative to its file, on the command line to the working folder; the rest are names."""

from pathlib import Path

import pytest

from unigrpo.ranges import ConfigError
from unigrpo.recipe.paths import absolute, absolute_name, absolute_overrides, split_path

BASE = Path("/recipes")


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [
        ("data.prompts", "mine.jsonl", "/recipes/mine.jsonl"),
        ("data.prompts", "sub/mine.TXT", "/recipes/sub/mine.TXT"),
        ("data.prompts", "/abs/mine.txt", "/abs/mine.txt"),
        ("data.prompts", "hf:./folder:train:words", "hf:/recipes/folder:train:words"),
        ("data.prompts", "hf:owner/name:train", "hf:owner/name:train"),
        ("data.prompts", "shapes:train", "shapes:train"),
        ("eval.prompts", "geneval", "geneval"),
        ("data.demonstrations", "shapes", "shapes"),
        ("data.demonstrations", "pairs.jsonl", "/recipes/pairs.jsonl"),
        ("model.path", "builtin:shapes-sft", "builtin:shapes-sft"),
        ("model.path", "stage:draw", "stage:draw"),
        ("model.path", "owner/name", "owner/name"),
        ("model.path", "./model", "/recipes/model"),
        ("model.path", "~/model", str(Path("~/model").expanduser())),
        ("data.prompts", 3, 3),
    ],
)
def test_what_is_a_path_and_what_a_name(key, name, said):
    assert absolute_name(key, name, BASE) == said


def test_a_folder_that_is_there_is_a_path(tmp_path):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert absolute_name("model.path", "owner/name", tmp_path) == str(tmp_path / "owner" / "name")
    assert absolute_name("data.prompts", "hf:owner/name:test", tmp_path) == f"hf:{tmp_path / 'owner' / 'name'}:test"


@pytest.mark.parametrize(("key", "name"), [("data.prompts", "mine.txt"), ("model.path", "mine")])
def test_what_lies_only_in_the_working_folder_is_refused_in_words(tmp_path, key, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=rf"relative to that file, and /recipes/{name} is not there; for {tmp_path}"):
        absolute_name(key, name, BASE, tmp_path)


def test_all_paths_of_a_recipe_also_of_its_stages():
    inner = {"data": {"prompts": "a.txt"}, "reward": {"train": [{"name": "r.py:f"}, "odd"], "on_error": "raise"}}
    written = {**inner, "stages": [inner, "odd"], "model": 3, "eval": {"prompts": "b.txt", "limit": 2}}
    done = {
        "data": {"prompts": "/recipes/a.txt"},
        "reward": {"train": [{"name": "/recipes/r.py:f"}, "odd"], "on_error": "raise"},
    }
    assert absolute(written, BASE) == {
        **done,
        "stages": [done, "odd"],
        "model": 3,
        "eval": {"prompts": "/recipes/b.txt", "limit": 2},
    }


def test_overrides_are_relative_to_the_working_folder():
    words = [
        "--data.prompts",
        "a.txt",
        "--stages.2.eval.prompts=b.txt",
        "--reward.train",
        "[{name: r.py:f, weight: 2}]",
    ]
    words += ["--model", "{path: ./m}", "--optimizer.lr-reasoning", "1e-5"]
    assert absolute_overrides(words, Path("/here")) == [
        "--data.prompts=/here/a.txt",
        "--stages.2.eval.prompts=/here/b.txt",
        "--reward.train=[{name: '/here/r.py:f', weight: 2}]",
        "--model={path: /here/m}",
        "--optimizer.lr_reasoning=1e-5",
    ]


def test_the_parts_of_a_name():
    assert split_path("data.prompts", "hf:a/b:train") == ("hf:", "a/b", ":train")
    assert split_path("reward", "a/b.py:f") == ("", "a/b.py", ":f")
