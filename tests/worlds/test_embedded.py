"""What holds for every embedded world, whatever it draws."""

from __future__ import annotations

import pytest
import torch

from unigrpo import build, data_names
from unigrpo.build import data, models
from unigrpo.build.checks import check_data, opened
from unigrpo.build.row_checks import metadata_check
from unigrpo.build.worlds import EMBEDDED, SHAPES, WORDS, judging, named, speaking, started_by
from unigrpo.ranges import ConfigError
from unigrpo.recipe import DemonstrationData, Model, Scorer, load_recipe
from unigrpo.training.parallel import ONE_PROCESS
from unigrpo.worlds.demonstrations import DemonstrationMix
from unigrpo.worlds.prompt_files import Row

MIX = DemonstrationMix(bad_plan=0.3, mismatch=0.3, no_think=0.1, unconditional=0.1, dense=0.2, plan_only=0.2)
WORLDS = pytest.mark.parametrize("world", EMBEDDED.values(), ids=list(EMBEDDED))


def test_the_names_that_recipes_know_are_those_of_the_worlds():
    assert tuple(EMBEDDED) == data_names.EMBEDDED


@WORLDS
def test_a_new_micro_model_reads_the_worlds_prompts_and_plans_and_draws_its_size(world):
    policy = build.policy(Model(world.start), seed=1)
    assert policy.spec.image_size == world.image_size
    assert speaking(policy.words) is world and started_by(world.start) is world
    stream = world.stream("train", 0)
    for index, prompt in enumerate(stream.batch(0, 30)):
        assert policy.encode_text(prompt.text).numel()
        [shown] = world.teacher.batch(0, index, 1, DemonstrationMix(no_think=0, unconditional=0))
        written = world.teacher.write(shown.plan)
        assert policy.decode_text(policy.encode_text(written)) == written
    assert opened(world.start).words == policy.words and opened(world.start).image_size == world.image_size


@WORLDS
def test_demonstrations_become_trajectories_with_their_targets(world):
    policy = build.policy(Model(world.start), seed=1)
    made = world.teacher.batch(0, 0, 20, MIX)
    assert {item.form for item in made} == {"think", "no_think", "unconditional", "dense", "plan_only"}
    for item, trajectory in zip(made, world.teacher.trajectories(policy, made), strict=True):
        targets = [type(segment).__name__ for segment in trajectory.segments if getattr(segment, "target", False)]
        written = ["Text"] if item.form in ("think", "plan_only") else []
        assert targets == written + ([] if item.picture is None else ["Image"])
    assert world.teacher.batch(0, 0, 20, MIX) == made != world.teacher.batch(1, 0, 20, MIX)


@WORLDS
def test_its_autoencoder_keeps_its_pictures(world):
    policy = build.policy(Model(world.start))
    pictures = world.teacher.render([item.picture for item in world.teacher.batch(0, 0, 8, DemonstrationMix())])
    assert pictures.shape[2:] == world.image_size
    with torch.no_grad():
        again = policy.decode_image(policy.encode_image(pictures))
    assert float((again - pictures).square().mean()) < 1e-2


@WORLDS
def test_its_names_lead_to_its_prompts_and_its_judge(world):
    assert named(world.name) is named(f"{world.name}:train") is world and named("own.txt") is None
    suite = build.suite(world.name)
    assert suite.judged and suite.prompts(6) == world.fixed("held-out", 6)
    assert build.prompts(f"{world.name}:train", 3).batch(0, 4) == world.stream("train", 3).batch(0, 4)
    with pytest.raises(ConfigError, match="words:held-out"):
        build.prompts(f"{world.name}:test", 0)
    assert all(world.requires in prompt.metadata for prompt in suite.prompts(6))
    text, known = world.understand(suite.prompts(1)[0].text.upper())
    assert text == suite.prompts(1)[0].text and known == suite.prompts(1)[0].metadata


@WORLDS
def test_its_reward_asks_for_its_metadata(world):
    name = next(name for name, reads in world.rewards.items() if reads)
    assert judging(name) is world
    with pytest.raises(ConfigError, match="line 7"):
        metadata_check([Scorer(name)])(Row("line 7", "a picture", {}))
    metadata_check([Scorer(name)])(Row("line 7", "a picture", world.fixed("train", 1)[0].metadata))
    metadata_check([Scorer("image/jpeg-compressibility")])(Row("line 7", "a picture", {}))


@pytest.mark.parametrize(("recipe", "world"), [("shapes/unigrpo", SHAPES), ("words/unigrpo", WORDS)])
def test_a_world_is_drawn_at_its_own_size_alone(recipe, world):
    other = next(w for w in EMBEDDED.values() if w is not world)
    high, wide = world.image_size
    with pytest.raises(ConfigError, match=f"the {world.name} world, whose pictures have {high} x {wide}"):
        check_data([load_recipe(recipe, ["--model.path", other.start])])


def test_demonstrations_of_a_world_take_its_mix_and_others_none():
    recipe = load_recipe("words/sft")
    assert isinstance(recipe.data, DemonstrationData)
    made = data.demonstration_maker(recipe, recipe.data)(models.policy(Model(WORDS.start)), 0, ONE_PROCESS)
    assert len(made) == recipe.data.batch_size
