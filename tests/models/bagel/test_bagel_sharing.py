"""What a replay reads once (shared prompts, the contexts of noisy copies), and the padding that it leaves out."""

import pytest
import torch

from small_models import counted_forwards, gradients, mixed_items, normal, relative, small_policy, text
from tolerances import assert_same_answers, gradient_bound
from unigrpo.models.bagel.packing import given, pack
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.trajectory import Image

CPU = torch.device("cpu")
SYSTEM, FIRST, SECOND = text(4, 5), text(7, 8, 9), text(20)


def image(policy, seed=5):
    return Image(normal(policy.spec.num_tokens, policy.spec.latent_dim, seed=seed), policy.spec.grid)


def item(policy, *segments, copies=2, seed=0):
    """Segments and then an image of which velocities are asked."""
    x = normal(copies, policy.spec.num_tokens, policy.spec.latent_dim, seed=seed)
    t = torch.linspace(1.0, 0.2, copies, dtype=torch.float64)
    return ReplayItem((*segments, image(policy)), (VelocityQuery(len(segments), x, t),))


def group(policy, *prompt, lengths=(1, 6, 3), seed=0):
    """One prompt and thinking of several lengths (with fewer or more copies of the image)."""
    return [
        item(policy, *prompt, text(*range(10, 10 + n), target=True), copies=1 + i % 3, seed=seed + i)
        for i, n in enumerate(lengths)
    ]


def batches(policy):
    picture = image(policy, 9)
    turns = (text(7), picture, text(8, 9, target=True), text(6))
    return {
        "one group": group(policy, SYSTEM, FIRST),
        "two groups": [*group(policy, SYSTEM, FIRST), *group(policy, SYSTEM, SECOND, lengths=(4, 2), seed=7)],
        "equal ids in other objects": [i for n in (2, 5) for i in group(policy, text(4, 5), text(6), lengths=(n,))],
        "some without a prompt": [*group(policy, SYSTEM), *group(policy, lengths=(2, 4)), item(policy)],
        "nothing after the prompt": [item(policy, FIRST, copies=c, seed=c) for c in (1, 3, 2)],
        "empty contexts": [item(policy, copies=c, seed=c) for c in (1, 2)],
        "a given image first": group(policy, picture, SECOND),
        "more than one round": [item(policy, *turns, seed=s) for s in (1, 2)],
        "texts alone": [ReplayItem((SYSTEM, text(*range(8, 8 + n), target=True))) for n in (1, 5)],
        "texts that nobody asks about": [ReplayItem((SYSTEM,)), ReplayItem((SYSTEM, FIRST))] * 2,
        "everything": [*mixed_items(policy), *mixed_items(policy)],
    }


def answers_and_gradients(items, *, plain):
    policy = small_policy()
    answers = policy.replay(items, plain=plain)
    parts = [part for a in answers for part in (a.log_probs, *a.velocities)]
    loss = sum((part * normal(*part.shape, seed=i)).sum() for i, part in enumerate(parts))
    if loss.requires_grad:
        loss.backward()
    return answers, gradients(policy)


@pytest.mark.parametrize("name", list(batches(small_policy())))
def test_shared_prompts_change_neither_answers_nor_gradients(name):
    policy = small_policy()
    items = batches(policy)[name]
    (ours, mine), (theirs, yours) = (answers_and_gradients(items, plain=plain) for plain in (False, True))
    for a, b in zip(ours, theirs, strict=True):
        pairs = zip((a.log_probs, a.entropies, *a.velocities), (b.log_probs, b.entropies, *b.velocities), strict=True)
        for u, v in pairs:
            assert_same_answers(u, v, policy)
    floor = 1e-6 * max([float(g.norm()) for g in yours.values()], default=0.0)
    read = {n for n, g in yours.items() if g.norm() > floor}  # the rest: rounding, or tokens of which nobody asks
    assert read <= set(mine) <= set(yours)
    errors = {n: relative(mine[n], yours[n]) for n in read}
    assert {n: e for n, e in errors.items() if e > gradient_bound(policy)} == {}


@pytest.mark.parametrize("name", list(batches(small_policy())))
def test_shared_prompts_equal_items_alone(name):
    policy = small_policy()
    items = batches(policy)[name]
    with torch.no_grad():
        for asked, together in zip(items, policy.replay(items), strict=True):
            (alone,) = policy.replay([asked])
            assert_same_answers(together.log_probs, alone.log_probs, policy)
            for u, v in zip(together.velocities, alone.velocities, strict=True):
                assert_same_answers(u, v, policy)


def tokens_read(policy, items, **options):
    """How many tokens the understanding expert's first MLP computes (markers of images included)."""
    rows = []
    mlp = policy.model.get_submodule("language_model.model.layers.0.mlp")
    handle = mlp.register_forward_hook(lambda module, given, out: rows.append(out.shape[0] * out.shape[1]))
    with torch.no_grad():
        policy.replay(items, **options)
    handle.remove()
    return sum(rows)


def test_a_prompt_is_computed_once_for_its_group():
    policy = small_policy()
    items = group(policy, SYSTEM, FIRST, lengths=(1, 6, 3))
    thinking, prompt, markers = (1 + 6 + 3) + 3 * 2, 4 + 5, 2 * (1 + 2 + 3)
    assert tokens_read(policy, items) == prompt + thinking + markers
    assert tokens_read(policy, items, plain=True) == 3 * (prompt + 6 + 2) + markers
    other = group(policy, SYSTEM, SECOND, lengths=(2, 2))
    second = (4 + 3) + 2 * 4 + 2 * (1 + 2)
    assert tokens_read(policy, items + other) == prompt + thinking + markers + second


def test_noisy_copies_are_rows_of_their_own_that_share_their_context():
    policy = small_policy()
    noise = pack(group(policy, SYSTEM, FIRST), policy.config, CPU).noise
    assert noise.rows.tolist() == [0, 1, 1, 2, 2, 2]
    assert noise.latents.shape == (6, policy.spec.num_tokens, policy.spec.latent_dim) and noise.t.shape == (6, 1)


def test_where_nothing_is_shared_there_is_no_block_of_prompts():
    policy = small_policy()
    different = [item(policy, SYSTEM, text(10 + i), text(7, target=True)) for i in range(3)]
    for items in (different, different[:1], [item(policy), item(policy)]):
        assert pack(items, policy.config, CPU).prompt is None
        with counted_forwards(policy) as calls:
            policy.replay(items)
        assert calls == [2]
    with counted_forwards(policy) as calls:
        policy.replay([*different, different[0]])
    assert calls == [3]


def test_what_is_only_read():
    policy = small_policy()
    thinking, picture = text(9, target=True), image(policy)
    assert given(item(policy, SYSTEM, FIRST, thinking)) == (SYSTEM, FIRST)
    assert given(item(policy, SYSTEM, FIRST)) == (SYSTEM, FIRST)
    assert given(item(policy)) == () and given(ReplayItem((thinking, SYSTEM))) == ()
    assert given(ReplayItem((SYSTEM, picture))) == (SYSTEM,)  # nothing after the picture needs it
    assert given(ReplayItem((picture, SYSTEM))) == (picture, SYSTEM)


def test_images_of_different_sizes_in_one_replay():
    policy = small_policy()
    small = Image(normal(2, 16, seed=3), (2, 1))
    query = VelocityQuery(1, normal(2, 2, 16, seed=4), torch.tensor([0.8, 0.3]))
    items = [ReplayItem((SYSTEM, small), (query,)), item(policy, SYSTEM)]
    for asked, together in zip(items, policy.replay(items), strict=True):
        (alone,) = policy.replay([asked])
        assert_same_answers(together.velocities[0], alone.velocities[0], policy)


def test_replaying_nothing():
    assert small_policy().replay([]) == []


def test_thinking_of_no_tokens_is_refused():
    policy = small_policy()
    with pytest.raises(ValueError, match="0 tokens: raise max_think_tokens"):
        policy.think(policy.prefill([(SYSTEM,)]), uniforms=torch.zeros(1, 0), temperature=1.0)


def test_a_question_about_a_segment_that_is_not_there_is_refused():
    policy = small_policy()
    (query,) = item(policy, SYSTEM, FIRST).queries
    with pytest.raises(ValueError, match="segments 2 of an item that has 1 segments"):
        policy.replay([ReplayItem((SYSTEM,), (query,))])
