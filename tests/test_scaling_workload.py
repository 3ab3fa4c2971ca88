"""What the dry run says of given pictures, of groups that are drawn in parts, and of evaluations in rounds."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image as Picture

from test_scaling import SIZES, Live, size_of
from test_scaling_rounds import EDITS, Rounds, given_of
from unigrpo.costs.sizes import BAGEL_7B, EXPERTS
from unigrpo.recipe import load_recipe
from unigrpo.rollout.sample import portions as cut
from unigrpo.tools.planning.given import given_looks
from unigrpo.tools.planning.look_memory import reading
from unigrpo.tools.planning.looks import look_sizes, sizes_of
from unigrpo.tools.planning.scaling import estimate, scaling_report
from unigrpo.tools.planning.workload import Layout, workload
from unigrpo.trajectory import Prompt


def seconds_of_an_evaluation(*overrides):
    lines = scaling_report(load_recipe("bagel/unigrpo-rounds-lora", [*overrides]), BAGEL_7B, tflops=989.0, mfu=0.4)
    return next(line for line in lines if line.startswith("s: an evaluation of"))


def test_an_evaluation_has_rounds_of_its_own():
    """They cost what they cost, in whatever number of rounds samples are trained."""
    one, two = "--rollout.rounds=1", "--rollout.rounds=2"
    assert seconds_of_an_evaluation(one, "--method.advantage.credit=terminal", "--eval.rounds=2") == (
        seconds_of_an_evaluation(two)
    )
    assert seconds_of_an_evaluation(two, "--eval.rounds=1") == (
        seconds_of_an_evaluation(one, "--method.advantage.credit=terminal")
    )
    assert seconds_of_an_evaluation(two, "--eval.rounds=2") == seconds_of_an_evaluation(two)


@pytest.mark.parametrize("case", [EDITS[0], Rounds(rounds=1, edit=True, tower=False)], ids=str)
def test_peak_of_reading_a_prompt_with_a_picture(case):
    policy, work = case.policy, case.estimate.work
    given = given_of(policy, case)
    with torch.no_grad(), Live() as live:
        cache = policy.prefill([given])
        beside = live.peak - size_of([*cache.keys, *cache.values])
    casts = work.compute * sum(SIZES.cast(expert) for expert in EXPERTS)
    assert reading(work) + casts == pytest.approx(beside, rel=0.1)


def test_the_dry_run_of_edits_counts_the_given_pictures():
    """Beside the same recipe with prompts in words alone."""
    recipe = load_recipe("bagel/unigrpo-edit-lora")
    (look,) = given_looks(recipe, BAGEL_7B)
    assert (look.latents, look.patches, look.tokens) == (1024, 37 * 37, 1024 + 37 * 37 + 4)
    words = replace(recipe, data=replace(recipe.data, prompts="geneval:train"))
    edits, plain = (estimate(each, BAGEL_7B) for each in (recipe, words))
    assert edits.work.context_tokens - plain.work.context_tokens == look.tokens
    for name in ("prefill", "think", "draw", "score", "update"):
        assert getattr(edits.compute, name) > getattr(plain.compute, name)
    for name in ("activations", "cache", "drawing", "trajectories"):
        assert getattr(edits.memory, name) > getattr(plain.memory, name)
    lines = scaling_report(recipe, BAGEL_7B, tflops=989.0, mfu=0.4)
    assert any("every prompt with a picture: 1024 latents and 1369 patches to read" in line for line in lines)
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("batch", "each", "drawn", "portions"), [(None, 2, 24, 1), (7, 1, 6, 4), (5, 2, 4, 8), (3, 2, 2, 12), (4, 1, 4, 8)]
)
def test_a_group_that_is_drawn_in_parts(batch, each, drawn, portions):
    """Of 4 groups of 6: what a rollout cuts, which parts no samples of one thinking."""
    recipe = load_recipe("bagel/unigrpo-edit-lora", ["--data.prompts-per-iteration=4", "--data.group-size=6"])
    rollout = replace(recipe.rollout, batch=batch, images_per_thinking=each)
    work = workload(replace(recipe, rollout=rollout), BAGEL_7B, Layout())
    assert (work.drawn, work.portions) == (drawn, portions)
    prompts = [Prompt(position, "") for position in range(4)]
    assert len([*cut(prompts, 6, batch, each)]) == portions


def test_given_pictures_of_a_file_are_measured_and_the_most_is_taken(tmp_path):
    rows = [{"prompt": "w1"}, {"prompt": "w2", "images": ["low.png"]}, {"prompt": "w3", "images": ["low.png"] * 2}]
    Picture.new("RGB", (1024, 256)).save(tmp_path / "low.png")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = load_recipe("bagel/unigrpo-edit-lora", [f"--data.prompts={tmp_path / 'rows.jsonl'}"])
    assert given_looks(recipe, BAGEL_7B) == (sizes_of(BAGEL_7B, 256, 1024),) * 2
    assert sizes_of(BAGEL_7B, 256, 1024).patches != look_sizes(BAGEL_7B, 512).patches
    absent = replace(recipe, data=replace(recipe.data, prompts="hf:nobody/nothing"))
    assert given_looks(absent, BAGEL_7B) == ()
