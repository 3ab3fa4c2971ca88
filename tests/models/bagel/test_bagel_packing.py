"""Laying segments into blocks (the masks and positions of the original are in tests/golden)."""

import pytest
import torch

from small_models import largest, normal, small_policy, text
from tolerances import assert_same_answers
from unigrpo.models.bagel.blocks import allowed
from unigrpo.models.bagel.packing import pack
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.trajectory import Image

CPU = torch.device("cpu")


def image(policy, seed=5):
    return Image(normal(policy.spec.num_tokens, policy.spec.latent_dim, seed=seed), policy.spec.grid)


def query(policy, segment, copies=2, seed=1):
    x = normal(copies, policy.spec.num_tokens, policy.spec.latent_dim, seed=seed)
    return VelocityQuery(segment, x, torch.linspace(0.9, 0.3, copies, dtype=torch.float64))


@torch.no_grad()
def test_a_noisy_image_never_sees_its_clean_copy_or_what_follows():
    policy = small_policy()
    before, picture, after = (text(4, 5),), image(policy), (text(6, 7, target=True), text(9))
    alone = policy.replay([ReplayItem((*before, picture), (query(policy, 1),))])[0]
    whole = policy.replay([ReplayItem((*before, picture, *after), (query(policy, 1),))])[0]
    assert_same_answers(whole.velocities[0], alone.velocities[0], policy)
    assert whole.log_probs.shape == (3,)


@torch.no_grad()
def test_text_after_a_picture_sees_the_clean_copy_and_not_the_noisy_ones():
    policy = small_policy()
    segments = (text(4, 5), image(policy), text(6, 7, target=True))
    plain, queried = (policy.replay([ReplayItem(segments, q)])[0] for q in ((), (query(policy, 1),)))
    assert_same_answers(queried.log_probs, plain.log_probs, policy)
    other = policy.replay([ReplayItem((segments[0], image(policy, 6), segments[2]))])[0]
    assert largest(other.log_probs, plain.log_probs) > 1e-3


@torch.no_grad()
def test_several_queries_come_back_in_the_order_they_were_asked():
    policy = small_policy()
    segments = (text(4), image(policy), text(8, 9), image(policy, 6))
    both = (query(policy, 3, 1, seed=2), query(policy, 1, 3), query(policy, 3, 2, seed=4))
    together = policy.replay([ReplayItem(segments, both)])[0]
    for asked, velocity in zip(both, together.velocities, strict=True):
        alone = policy.replay([ReplayItem(segments[: asked.segment + 1], (asked,))])[0]
        assert_same_answers(velocity, alone.velocities[0], policy)


def test_the_last_image_is_only_laid_out_where_something_needs_it():
    policy = small_policy()
    segments = (text(4), image(policy))
    assert pack([ReplayItem(segments, (query(policy, 1),))], policy.config, CPU).context.latents.shape[1] == 0
    later = pack([ReplayItem((*segments, text(5)))], policy.config, CPU)
    assert later.context.latents.shape[1] == policy.spec.num_tokens and later.noise is None


def test_padding_is_invisible_and_sees_nothing():
    policy = small_policy()
    items = [ReplayItem((text(4, 5, 6, 7),)), ReplayItem((text(4),))]
    tokens = pack(items, policy.config, CPU).context.tokens
    mask = allowed(tokens, tokens)
    assert tokens.valid.sum(1).tolist() == [6, 3]
    assert not mask[1, 3:].any() and not mask[1, :, 3:].any()
    assert torch.equal(mask[1, :3, :3], torch.ones(3, 3).tril().bool())


def test_a_question_about_a_text_is_refused():
    policy = small_policy()
    with pytest.raises(ValueError, match="segment 0, which is a text"):
        pack([ReplayItem((text(4),), (query(policy, 0),))], policy.config, CPU)


def test_an_image_of_the_wrong_size_is_refused():
    policy = small_policy()
    with pytest.raises(ValueError, match="8 tokens cannot have a grid of 3 x 2"):
        pack([ReplayItem((Image(torch.zeros(8, 16), (3, 2)), text(4)))], policy.config, CPU)
