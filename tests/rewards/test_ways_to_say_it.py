"""Rewards as TRL and flow_grpo write them, with arguments, several values, from other packages; and one that hangs."""

import threading
from importlib.metadata import EntryPoint

import pytest
import torch
from PIL import Image

import unigrpo.build  # noqa: F401  # it knows the names of the rewards that ship
from unigrpo.ranges import ConfigError
from unigrpo.rewards import registry
from unigrpo.rewards.making import made
from unigrpo.rewards.protocol import RewardFault, RewardInput, RewardOutput, call

IMAGES = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
GIVEN = RewardInput(IMAGES, ["dark", "light"], [{"word": "a", "n": 1}, {"word": "b"}], ["hm", None])


def said(thing, args=None, **options):
    return call("mine", made("mine", thing, args or {}), GIVEN, **options)


# The three signatures


def trl(prompts, completions, word, **columns):
    assert all(isinstance(picture, Image.Image) and picture.size == (4, 4) for picture in completions)
    assert prompts == ["dark", "light"] and word == ["a", "b"]
    assert columns == {"n": [1, None], "thinking": ["hm", None]}
    return [picture.getpixel((0, 0))[0] / 255 for picture in completions]


def flow_grpo(images, prompts, metadata):
    assert [m["word"] for m in metadata] == ["a", "b"]
    return images.mean((1, 2, 3)), {"anything": "else"}


async def flow_grpo_later(images, prompts, metadata):
    return images.mean((1, 2, 3)), {}


async def trl_later(completions, prompts):
    return [float(picture.getpixel((0, 0))[0] > 0) for picture in completions]


def trl_without_prompts(completions, word, **columns):
    assert columns["prompts"] == ["dark", "light"] and word == ["a", "b"]
    return [float(picture.getpixel((0, 0))[0] > 0) for picture in completions]


@pytest.mark.parametrize("reward", [trl_without_prompts, trl, flow_grpo, flow_grpo_later, trl_later])
def test_rewards_of_others_work_as_they_are(reward):
    assert said(reward).values == [0.0, 1.0]


def test_a_column_that_is_not_there_is_named():
    def reward(prompts, completions, colour):
        return [0.0, 0.0]

    with pytest.raises(
        RewardFault, match=r"'mine' asks for the column 'colour', and these 2 prompts have: prompts, thinking, word, n"
    ):
        said(reward)


def test_a_misspelt_name_does_not_swap_the_others():
    def swapped(prompts, images, meta, thinking):
        return [float(len(prompt)) for prompt in prompts]

    with pytest.raises(ConfigError, match=r"'meta' is none of images, .* .did you mean metadata"):
        said(swapped)


def test_a_reward_that_raises_what_ctrl_c_raises_is_named():
    def stops(images, prompts, metadata, thinking):
        raise KeyboardInterrupt

    with pytest.raises(RewardFault, match="'mine' raised KeyboardInterrupt"):
        said(stops)


def test_what_fits_none_is_told_all_three():
    with pytest.raises(ConfigError, match=r"\(completions, \*\*columns\).*flow_grpo's \(images, prompts, metadata"):
        said(lambda pictures, texts: [0.0, 0.0])


# Arguments


class Power:
    def __init__(self, *, power: float, floor: float = 0.0):
        self.power, self.floor = power, floor

    def __call__(self, images, prompts, metadata, thinking):
        return images.mean((1, 2, 3)) * self.power + self.floor


def scaled(images, prompts, metadata, thinking, *, by=1.0):
    return images.mean((1, 2, 3)) * by


def plain(images, prompts, metadata, thinking):
    return images.mean((1, 2, 3))


def test_arguments_build_a_class_and_set_a_functions_own():
    assert said(Power, {"power": 3.0}).values == [0.0, 3.0]
    assert said(scaled, {"by": 2.0}).values == [0.0, 2.0] and said(scaled).values == [0.0, 1.0]


@pytest.mark.parametrize(
    ("thing", "args", "words"),
    [
        (Power, {}, "needs power: set its args"),
        (Power, {"powr": 2}, r"args has 'powr' \(did you mean power\?\), which it does not take"),
        (scaled, {"to": 2}, "args has 'to', which it does not take: it takes by"),
        (plain, {"to": 2}, "is a function without arguments of its own"),
        (Power, {"power": 1, "images": 2}, "args has 'images'"),
    ],
)
def test_wrong_arguments_are_refused(thing, args, words):
    with pytest.raises(ConfigError, match=words):
        made("mine", thing, args)


# Several values


def several(images, prompts, metadata, thinking):
    return {"light": images.mean((1, 2, 3)), "dark": 1 - images.mean((1, 2, 3))}


def test_one_of_several_values_is_chosen_and_all_are_kept():
    output = said(several, value="dark")
    assert output.values == [1.0, 0.0] and output.parts == {"light": [0.0, 1.0], "dark": [1.0, 0.0]}
    whole = said(lambda *given: RewardOutput([9.0, 9.0], {"exact": [0.0, 1.0]}), value="exact")
    assert whole.values == [0.0, 1.0]


def test_a_choice_is_asked_for_and_must_exist():
    with pytest.raises(RewardFault, match=r"several values \(light, dark\): say which one counts, with value: NAME"):
        said(several)
    with pytest.raises(RewardFault, match=r"no value 'drak' \(did you mean dark\?\); it has: light, dark"):
        said(several, value="drak")
    assert said(lambda *given: {"only": [1.0, 2.0]}).values == [1.0, 2.0]


# What fails


def test_pictures_that_could_not_be_judged_have_no_number_and_a_reason():
    output = said(lambda *given: [None, 2.0], strict=False)
    assert output.errors == {0: "gave None for a picture: it must be a finite number"} and output.values[1] == 2.0
    assert output.values[0] != output.values[0]  # NaN
    output = said(lambda *given: RewardOutput([0.0, 2.0], {}, {0: "too dark"}), strict=False)
    assert output.errors == {0: "too dark"} and output.values[0] != output.values[0]


@pytest.mark.parametrize("strict", [True, False])
def test_one_that_hangs_is_a_fault_with_a_name_and_the_next_call_works(strict):
    wait = threading.Event()
    with pytest.raises(RewardFault, match=r"'mine' did not answer within 0.05 s: does it hang") as caught:
        said(lambda *given: wait.wait(20), timeout_s=0.05, strict=strict)
    assert caught.value.of_pictures
    assert said(lambda *given: [1.0, 2.0]).values == [1.0, 2.0]
    wait.set()


def test_a_timeout_of_its_own_is_told_as_what_it_is():
    def reward(*given):
        raise TimeoutError("the judge sleeps")

    with pytest.raises(RewardFault, match="raised TimeoutError: the judge sleeps"):
        said(reward)


def test_gradients_are_on_or_off_as_where_it_is_called():
    def reward(*given):
        return [float(torch.is_grad_enabled())] * 2

    with torch.no_grad():
        assert said(reward).values == [0.0, 0.0]
    assert said(reward).values == [1.0, 1.0]


# Other packages


def test_rewards_of_installed_packages_have_names(monkeypatch):
    entries = [EntryPoint("other/dark", f"{__name__}:several", registry.GROUP)]
    entries.append(EntryPoint("other/broken", "no_such_module:reward", registry.GROUP))
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    assert "other/dark" in registry.names() and "shapes/verifier" in registry.names()
    assert call("r", registry.build("other/dark"), GIVEN, value="light").values == [0.0, 1.0]
    with pytest.raises(ConfigError, match=r"'other/broken' of an installed package .*cannot be loaded"):
        registry.build("other/broken")
    with pytest.raises(ConfigError, match="did you mean other/dark or"):
        registry.build("other/drak")
