"""Micro models that begin from a shipped one: the same on what that knew, with further words and with eyes."""

from dataclasses import replace

import pytest
import torch

from unigrpo import build
from unigrpo.build import checks
from unigrpo.build.grown import GROWN
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.recipe import Model
from unigrpo.tools.planning.model_sizes import sizes
from unigrpo.trajectory import Image, Prompt, Text

WORDS = "a red circle and a blue square"
PLAN = "<think> red circle b2 blue square c3 </think>"


def answered(policy):
    """Log-probs of a plan and the velocity of a picture after it."""
    noise = torch.randn(
        (1, *(policy.spec.num_tokens, policy.spec.latent_dim)), generator=torch.Generator().manual_seed(0)
    )
    given = policy.prompt_segments(Prompt(0, WORDS), think=True)
    segments = (*given, Text(policy.encode_text(PLAN), target=True), Image(noise[0], policy.spec.grid))
    (found,) = policy.replay([ReplayItem(segments, (VelocityQuery(3, noise, torch.tensor([0.6])),))])
    return found


@pytest.mark.parametrize("name", GROWN)
def test_a_grown_model_draws_as_the_one_it_begins_from(name):
    small, grown = build.policy(Model("builtin:shapes-sft")), build.policy(Model(name))
    before, after = answered(small), answered(grown)
    assert torch.allclose(before.velocities[0], after.velocities[0], atol=1e-5)
    assert before.log_probs.shape == after.log_probs.shape  # fewer words had all of the probability
    assert bool((after.log_probs <= before.log_probs + 1e-4).all())
    assert torch.equal(small.encode_text(PLAN), grown.encode_text(PLAN))


@pytest.mark.parametrize("name", GROWN)
def test_it_is_known_without_its_weights(name):
    grown, opened = build.policy(Model(name)), checks.opened(name)
    assert opened.words == grown.words
    assert opened.config == grown.config
    assert sizes(Model(name)) == (grown.sizes, None)
    opened.read(WORDS, pictures=1)
    assert grown.config.sees


def test_it_looks_by_latents_where_it_has_no_tower(tmp_path):
    picture = torch.zeros((3, 32, 32), dtype=torch.uint8)
    grown = build.policy(Model("init:micro-rounds"))
    grown.save(tmp_path / "saved")
    again = Bagel.load(tmp_path / "saved")
    assert again.config == grown.config and again.config.looks_at_latents
    (shown, _) = again.question_segments("what is there", [picture], think=False)
    assert isinstance(shown, Image)
    blind = replace(again.config, looks_at_latents=False)
    again.config = blind
    with pytest.raises(ValueError, match="cannot see pictures"):
        again.picture_segments(picture)
    with pytest.raises(ValueError, match="looks_at_latents"):
        replace(blind, looks_at_latents="yes")
