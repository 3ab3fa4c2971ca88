"""The verb ``rewards``: what there is, and one tried on pictures."""

import json
import math
import random
import sys

import pytest
import torch
from PIL import Image

from unigrpo import build, cli
from unigrpo.recipe import Model, Scorer
from unigrpo.rewards import registry
from unigrpo.rewards.protocol import DifferentiableReward, RewardInput
from unigrpo.tools.tiny_bagel import make_tiny_bagel
from unigrpo.worlds import shapes


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Two pictures of one size and one of another; what is imported from beside them is forgotten again."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, size, colour in (("a", (32, 32), "red"), ("b", (32, 32), "black"), ("c", (48, 16), "red")):
        Image.new("RGB", size, colour).save(tmp_path / f"{name}.png")
    return tmp_path


def said(capsys, *argv):
    """What a command says as JSON."""
    assert cli.main(["rewards", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *argv):
    """The sentence with which a command is refused."""
    assert cli.main(["rewards", *map(str, argv)]) == 2
    return capsys.readouterr().err


def test_every_shipped_reward_is_listed_with_what_it_lacks(capsys, monkeypatch):
    monkeypatch.setattr("unigrpo.build.rewards.find_spec", lambda name: None if name == "httpx2" else 1)
    rows = {row["name"]: row for row in said(capsys)["rewards"]}
    assert set(build.SHIPPED) <= set(rows)
    assert "pip install '.[judge]'" in rows["judge/exam"]["needs"] and rows["clip/score"]["needs"] is None
    assert rows["clip/score"]["gradient"] and not rows["ocr/text"]["gradient"]
    assert cli.main(["rewards", "list"]) == 0
    assert "shapes/preference" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in build.SHIPPED if not name.endswith(":NAME")])
def test_the_table_of_shipped_rewards_is_true(name):
    """The place exists; what says that it gives gradients does; what does not take arguments can be built."""
    thing = registry._shipped(name)
    assert callable(thing)
    gradient = isinstance(thing, type) and issubclass(thing, DifferentiableReward)
    assert gradient == build.SHIPPED[name].gradient


def test_an_edit_is_tried_with_the_picture_that_it_was_made_from(capsys, pictures):
    source = shapes.Scene((shapes.Object("ring", "red", "b2"), shapes.Object("cross", "cyan", "d1")))
    edited = shapes.Scene((shapes.Object("ring", "blue", "b2"), shapes.Object("cross", "cyan", "d1")))
    for name, scene in (("in", source), ("out", edited)):
        pixels = (shapes.render([scene])[0] * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(pictures / f"{name}.png")
    words = ["try", "shapes/edit", "--prompt", "Make the ring blue.", "--image", pictures / "out.png"]
    words += ["--image", pictures / "in.png"]
    found = said(capsys, *words, "--source", pictures / "in.png")
    assert found["values"] == pytest.approx([1, 0], abs=0.02) and found["parts"]["kept"] == pytest.approx(
        [1, 1], abs=0.02
    )
    assert "needs the one picture of 32 x 32 pixels that was edited: --source FILE" in refused(capsys, *words)
    (pictures / "mine.py").write_text(
        "def mine(images, prompts, metadata, thinking):\n"
        "    return [float(m['images'][1].shape[2] + m['k']) for m in metadata]\n"
    )
    more = ["--source", pictures / "in.png", "--source", pictures / "c.png", "--metadata", "{k: 0.5}"]
    assert said(capsys, "try", f"{pictures / 'mine.py'}:mine", "--image", pictures / "a.png", *more)["values"] == [48.5]


def test_a_family_is_named_with_its_member(monkeypatch):
    with pytest.raises(ValueError, match="there is no reward 'imscore:Pick'"):
        registry.build("imscore:Pick")
    with pytest.raises(ValueError, match="no module imscores to import"):
        registry.build("imscores:PickScorer")


def test_a_name_that_ships_is_not_taken_by_another():
    with pytest.raises(ValueError, match="there is already a reward called 'clip/score'"):
        registry.register("clip/score", lambda images, prompts, metadata, thinking: [0.0] * len(images))


def test_one_reward_with_the_same_arguments_serves_while_it_is_in_use():
    first = registry.build("shapes/preference")
    assert registry.build("shapes/preference") is first
    short, long = (registry.build("think/length", {"high": high}) for high in (5, 500))
    assert short is not long


def test_pictures_are_scored_and_values_told_by_name(capsys, pictures):
    (pictures / "mine.py").write_text(
        "class Brightness:\n"
        "    def __init__(self, scale=1.0): self.scale = scale\n"
        "    def __call__(self, images, prompts, metadata, thinking):\n"
        "        assert prompts == ['red'] * 2 and thinking == ['so'] * 2 and metadata == [{'word': 'HI'}] * 2\n"
        "        return [self.scale * float(image.mean()) for image in images]\n"
    )
    words = ("--prompt", "red", "--thinking", "so", "--metadata", "{word: HI}", "--args", "{scale: 3}")
    images = ("--image", pictures / "a.png", "--image", pictures / "b.png")
    found = said(capsys, "try", f"{pictures}/mine.py:Brightness", *images, *words)
    assert found["values"] == pytest.approx([1.0, 0.0]) and not found["gradient"]
    jpeg = said(capsys, "try", "image/jpeg-compressibility", *images)
    assert jpeg["parts"]["kilobytes"] == [-value for value in jpeg["values"]]


def test_a_world_reads_its_own_prompts(capsys, tmp_path):
    prompt = shapes.fixed("held-out", 1)[0]
    scene = shapes.sample_scene(prompt.metadata, random.Random(0))
    pixels = (shapes.render([scene])[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    found = said(capsys, "try", "shapes/verifier", "--image", tmp_path / "scene.png", "--prompt", prompt.text)
    assert found["values"] == pytest.approx([1.0], abs=1e-3)
    assert "'cat' stands where an object" in refused(
        capsys, "try", "shapes/verifier", "--image", tmp_path / "scene.png", "--prompt", "a cat"
    )


def test_a_reward_of_several_values_is_told_which_counts(capsys, pictures):
    (pictures / "mine.py").write_text(
        "def both(images, prompts, metadata, thinking): return {'a': [1.0] * len(images), 'b': [2.0] * len(images)}\n"
    )
    words = ("try", f"{pictures}/mine.py:both", "--image", pictures / "a.png")
    assert "say which one counts" in refused(capsys, *words)
    assert said(capsys, *words, "--value", "b")["values"] == [2.0]
    assert "--timeout-s 0: it must be above 0" in refused(capsys, *words, "--timeout-s", "0")


WRONG = {
    "say which picture to score: --image FILE": ("image/jpeg-compressibility",),
    "there is no reward called 'image/jpg'": ("image/jpg", "--image", "a.png"),
    "cannot be read as a picture": ("image/jpeg-compressibility", "--image", "none.png"),
    "32x32 pixels and c.png 48x16": ("image/jpeg-compressibility", "--image", "a.png", "--image", "c.png"),
    "--args is '[3]': write a mapping": ("think/length", "--image", "a.png", "--args", "[3]"),
    "args has 'lo' (did you mean low?)": ("think/length", "--image", "a.png", "--args", "{lo: 3}"),
    "'judge/score' needs url and model: set its args, {url: ..., model: ...}": ("judge/score", "--image", "a.png"),
    "judges pictures of 16 x 48 pixels, and these have 32 x 32: is it a sheet": (
        "words/ocr",
        "--image",
        "a.png",
        "--prompt",
        "write the word cab",
    ),
    "judges pictures of 32 x 32 pixels, and these have 16 x 48": (
        "shapes/verifier",
        "--image",
        "c.png",
        "--prompt",
        "a red circle",
    ),
    "there is no folder ./none: correct the path": ("clip/score", "--image", "a.png", "--args", "{model: ./none}"),
    "it has no thinking": ("think/length", "--image", "a.png"),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_what_cannot_work_is_told_in_a_sentence(capsys, pictures, monkeypatch, sentence):
    monkeypatch.chdir(pictures)
    assert sentence in refused(capsys, "try", *WRONG[sentence])


def test_bagel_self_begins_from_the_model_that_draws(tmp_path):
    make_tiny_bagel(tmp_path / "bagel")
    scorer = Scorer("bagel/self", args={"dtype": "float32"})
    with pytest.raises(ValueError, match="needs a model"):
        build.reward([scorer])
    read = build.reward([scorer], model=Model(str(tmp_path / "bagel")))
    with pytest.raises(ValueError, match="no vision tower"):
        build.reward([scorer], model=Model("builtin:shapes-sft"))
    scored = read(RewardInput(torch.rand(2, 3, 32, 32), ["a red circle", "a cat"], [{}] * 2, [None] * 2))
    assert all(math.isfinite(value) and value < 0 for value in scored.values)
