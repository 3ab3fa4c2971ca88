"""Pictures as segments: views in contexts, in replays and behind guidance; and layers that are computed again."""

from dataclasses import replace

import pytest
import torch

from small_models import EVALUATION, counted_forwards, largest, normal, randomise
from tolerances import assert_same_answers
from unigrpo.models.bagel.autoencoder import ConvAutoencoder, ConvAutoencoderConfig
from unigrpo.models.bagel.blocks import RowBuilder, build_block
from unigrpo.models.bagel.config import VisionConfig
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.bagel_files.tokenizer import word_tokenizer
from unigrpo.models.micro import SPECIAL_WORDS, micro_config
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.rollout.engine import RandomKeys, rollout
from unigrpo.rollout.episode import single_round
from unigrpo.rollout.guidance import Guidance
from unigrpo.trajectory import Image, Prompt, Text, View

WORDS = ["red", "blue", "circle", "make", "it", "think", "then", "draw"]


@pytest.fixture(scope="module")
def policy():
    autoencoder = ConvAutoencoder(ConvAutoencoderConfig(width=4, groups=2))
    randomise(autoencoder, 1)
    words = [*SPECIAL_WORDS, *WORDS]
    config = micro_config(len(words), autoencoder, hidden_size=32, num_layers=2)
    vision = VisionConfig(24, 40, 2, 2, image_size=40, patch_size=4, max_patches_per_side=10)
    model = BagelModel(replace(config, image_size=(32, 16), vision=vision))
    randomise(model, 0)
    return Bagel(model, word_tokenizer(words), autoencoder.requires_grad_(False))


def picture(height=40, width=64, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def words(*ids, target=False):
    return Text(torch.tensor(ids), target=target)


def view(rows, columns, seed=0):
    return View(normal(rows * columns, 48, seed=seed), (rows, columns))


def test_a_given_picture_is_its_latents_and_its_view(policy):
    given = policy.prompt_segments(Prompt(0, "make it red", images=(picture(),)), think=True)
    assert [type(segment) for segment in given] == [Text, Image, View, Text]
    assert given[1].grid == (5, 8) and given[1].latents.shape == (40, 16)
    assert given[2].patches.shape == (given[2].grid[0] * given[2].grid[1], 48)
    assert policy.edit_size(picture()) == (40, 64)


def test_pictures_stand_where_the_text_says(policy):
    pictures = (picture(seed=1), picture(seed=2))
    given = policy.prompt_segments(Prompt(0, "make <image> red <image>", images=pictures), think=False)
    assert [type(segment) for segment in given] == [Text, Image, View, Text, Image, View]
    with pytest.raises(ValueError, match="has 1 place <image>, but 2 pictures to put there"):
        policy.prompt_segments(Prompt(0, "make <image> red", images=pictures), think=False)


def test_a_question_is_read_with_the_view_alone(policy):
    given = policy.question_segments("red", [picture()], think=False)
    assert [type(segment) for segment in given] == [View, Text]


def test_a_model_without_a_tower_says_so(policy):
    blind = Bagel(BagelModel(replace(policy.config, vision=None)), policy.tokenizer, policy.autoencoder)
    with pytest.raises(ValueError, match="cannot see pictures"):
        blind.prompt_segments(Prompt(0, "red", images=(picture(),)), think=False)
    with pytest.raises(ValueError, match="cannot see pictures"):
        blind.prefill([(view(2, 3),)])


def test_a_view_takes_one_rope_position_and_sees_all_of_itself(policy):
    row = RowBuilder(policy.config)
    row.text([5, 6])
    row.view(*_parts(view(2, 3)))
    row.text([7])
    block = build_block([row], policy.config.latent_dim, torch.device("cpu"))
    assert block.rope[0].tolist() == [0, 1, 2, 3, *[4] * 8, 5, 6, 7]
    assert block.views.slots.tolist() == [5, 6, 7, 8, 9, 10]
    from unigrpo.models.bagel.blocks import allowed

    mask = allowed(block.tokens, block.tokens)[0]
    assert mask[4:12, 4:12].all() and mask[4:12, :4].all() and not mask[4:12, 12:].any()
    assert mask[12:, 4:12].all()


def _parts(segment):
    return segment.patches, segment.grid


@torch.no_grad()
def test_contexts_with_views_do_not_depend_on_who_else_is_read(policy):
    contexts = [(view(2, 3), words(5, 6)), (words(7),), (view(1, 2, seed=3), view(3, 3, seed=4), words(5))]
    x, t = normal(3, 8, 16), torch.full((3,), 0.6)
    together = policy.velocity(policy.prefill(contexts), x, t)
    for index, context in enumerate(contexts):
        alone = policy.velocity(policy.prefill([context]), x[index : index + 1], t[:1])
        assert_same_answers(together[index], alone[0], policy)
    moved = policy.velocity(policy.prefill([(view(2, 3, seed=9), words(5, 6))]), x[:1], t[:1])
    assert largest(moved[0], together[0]) > 1e-3


def edit_items(policy):
    """Two edits of one picture (whose beginning is shared) and a drawing from words."""
    image, seen = Image(normal(8, 16, seed=5), (4, 2)), view(2, 3)
    target = Image(normal(8, 16, seed=6), (4, 2), target=True)
    query = (VelocityQuery(4, normal(2, 8, 16), torch.tensor([0.9, 0.3])),)
    edits = [ReplayItem((image, seen, words(5), words(n, 6, target=True), target), query) for n in (7, 8)]
    plain = ReplayItem((words(5, 9, target=True), target), (VelocityQuery(1, normal(1, 8, 16), torch.tensor([0.5])),))
    return [*edits, plain]


@pytest.mark.parametrize("plain", [False, True])
def test_packed_replay_with_views_is_one_by_one(policy, plain):
    items = edit_items(policy)
    with torch.no_grad():
        together = policy.replay(items, plain=plain)
        for item, answer in zip(items, together, strict=True):
            (alone,) = policy.replay([item])
            assert_same_answers(answer.log_probs, alone.log_probs, policy)
            assert_same_answers(answer.velocities[0], alone.velocities[0], policy)
            context = policy.prefill([item.segments[: item.queries[0].segment]])
            (query,) = item.queries
            cached = policy.velocity(context.expand(len(query.t)), query.x, query.t)
            assert_same_answers(cached, answer.velocities[0], policy)


def gradients(policy, items, *, again):
    policy.model.activation_checkpointing = again
    policy.model.zero_grad()
    try:
        answers = policy.replay(items)
        image = torch.cat([v.flatten() for a in answers for v in a.velocities]).square().mean()
        text = torch.cat([a.log_probs for a in answers]).mean()
        denoising = list(policy.denoising_parameters().values())
        image.backward(inputs=denoising, retain_graph=True)
        text.backward()
    finally:
        policy.model.activation_checkpointing = False
    return {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}


def test_layers_computed_again_give_the_same_gradients_bit_for_bit(policy):
    items = edit_items(policy)
    kept, again = gradients(policy, items, again=False), gradients(policy, items, again=True)
    assert kept.keys() == again.keys() and len(kept) > 50
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_layers_computed_again_keep_less(policy):
    def kept(again):
        seen = {}
        policy.model.activation_checkpointing = again
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: seen.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor
        ):
            policy.replay(edit_items(policy))
        policy.model.activation_checkpointing = False
        return sum(tensor.untyped_storage().nbytes() for tensor in seen.values() if not tensor.is_leaf)

    assert kept(True) < 0.6 * kept(False)


def test_the_tower_learns_only_when_it_is_asked_to(policy):
    assert not any(name.startswith(("vit_model", "connector")) for name in policy.reasoning_parameters())
    policy.model.vit_model.requires_grad_(True)
    policy.model.connector.requires_grad_(True)
    try:
        names = policy.reasoning_parameters()
        assert any(name.startswith("vit_model") for name in names) and "connector.fc1.weight" in names
        assert not set(names) & set(policy.denoising_parameters())
        policy.model.zero_grad()
        policy.replay(edit_items(policy)[:1])[0].velocities[0].square().mean().backward()
        assert float(policy.model.vit_model.vision_model.embeddings.patch_embedding.weight.grad.abs().sum()) > 0
    finally:
        policy.model.vit_model.requires_grad_(False)
        policy.model.connector.requires_grad_(False)
        policy.model.zero_grad()


def test_edits_in_a_group_share_the_given_picture_and_are_guided_twice(policy):
    sampling = replace(EVALUATION, guidance=Guidance(4.0, 2.0, renorm="text_channel"))
    prompts = [Prompt(0, "make it red", images=(picture(),)), Prompt(1, "blue", images=(picture(seed=7),))]
    with counted_forwards(policy) as calls:
        drawn = rollout(policy, single_round(think=False), prompts, sampling, group_size=2, keys=RandomKeys(0, 0))
    assert len(calls) == 3 + 3 * (sampling.num_points - 1)  # three contexts, three branches a step
    assert drawn[0].segments[0] is drawn[1].segments[0] and drawn[0].segments[0] is not drawn[2].segments[0]
    alone = rollout(policy, single_round(think=False), prompts[1:], sampling, group_size=1, keys=RandomKeys(0, 0))
    steps = sampling.num_points - 1
    assert_same_answers(drawn[2].images[-1].latents, alone[0].images[-1].latents, policy, forwards=3 * steps)


@pytest.mark.parametrize("size", [(32, 32), (16, 24)])
def test_another_size_shares_the_weights(policy, size):
    other = policy.at_size(size)
    assert other.model is policy.model and other.spec.image_size == size and policy.spec.image_size == (32, 16)
    assert other.decode_image(normal(1, other.spec.num_tokens, 16)).shape == (1, 3, *size)


def test_a_size_off_the_grid_is_refused(policy):
    with pytest.raises(ValueError, match="each side must be a multiple of 8, at most 64"):
        policy.at_size((36, 32))
    with pytest.raises(ValueError, match="72 x 32 pixels does not fit this model"):
        policy.at_size((72, 32))
