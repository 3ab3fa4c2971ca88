"""One path for everything: batched or alone, cached or packed, the same numbers and the same gradients."""

import pytest
import torch

from formulas import combination
from small_models import (
    EOS,
    counted_forwards,
    favour,
    gradients,
    mixed_items,
    normal,
    relative,
    small_policy,
    text,
)
from tolerances import assert_same_answers, gradient_bound
from unigrpo.models.bagel.sampling import log_distribution, sample
from unigrpo.objectives.method import Losses
from unigrpo.policy import ReplayItem
from unigrpo.training.update import backward
from unigrpo.trajectory import Image, Text

CONTEXTS = [(text(4, 5), text(6)), (text(7, 8, 9, 10, 11, 12),), (), (text(13), text(14), text(15, 16))]


@pytest.fixture(scope="module")
def policy():
    return small_policy()


def uniforms(rows, cap, seed=0):
    return torch.rand(rows, cap, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- batched equals single


@torch.no_grad()
def test_velocities_of_a_batch_equal_those_of_each_row(policy):
    picture = Image(normal(8, 16, seed=3), policy.spec.grid)
    contexts = [*CONTEXTS, (picture, text(4)), (text(4), picture)]
    x, t = normal(6, 8, 16), torch.linspace(1.0, 0.1, 6)
    together = policy.velocity(policy.prefill(contexts), x, t)
    assert together.dtype == torch.float32 and together.shape == (6, 8, 16)
    for row, context in enumerate(contexts):
        alone = policy.velocity(policy.prefill([context]), x[row : row + 1], t[row : row + 1])
        assert_same_answers(together[row], alone[0], policy)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
@torch.no_grad()
def test_thinking_in_a_batch_equals_thinking_alone(policy, monkeypatch, temperature):
    favour(monkeypatch, policy, EOS, 2.0)
    draws = uniforms(4, 9)
    texts, context = policy.think(policy.prefill(CONTEXTS), uniforms=draws, temperature=temperature)
    if temperature == 1.0:
        assert len({len(t.ids) for t in texts}) > 1  # rows end at different places
    x, t = normal(4, 8, 16), torch.full((4,), 0.6)
    together = policy.velocity(context, x, t)
    for row, given in enumerate(CONTEXTS):
        (alone,), own = policy.think(policy.prefill([given]), uniforms=draws[row : row + 1], temperature=temperature)
        assert torch.equal(texts[row].ids, alone.ids) and texts[row].ended == alone.ended
        assert_same_answers(texts[row].log_probs, alone.log_probs, policy)
        assert_same_answers(together[row], policy.velocity(own, x[row : row + 1], t[row : row + 1])[0], policy)


@torch.no_grad()
def test_a_replay_of_a_batch_equals_that_of_each_item(policy):
    items = mixed_items(policy)
    for item, together in zip(items, policy.replay(items), strict=True):
        (alone,) = policy.replay([item])
        assert_same_answers(together.log_probs, alone.log_probs, policy)
        assert_same_answers(together.entropies, alone.entropies, policy)
        assert len(together.velocities) == len(item.queries)
        for ours, theirs in zip(together.velocities, alone.velocities, strict=True):
            assert_same_answers(ours, theirs, policy)


# ---------------------------------------------------------------- cached equals packed


@torch.no_grad()
def test_cached_velocities_equal_packed_ones(policy):
    items = [item for item in mixed_items(policy) if item.queries]
    for item, packed in zip(items, policy.replay(items), strict=True):
        (query,) = item.queries
        context = policy.prefill([item.segments[: query.segment]]).expand(len(query.t))
        assert_same_answers(policy.velocity(context, query.x, query.t), packed.velocities[0], policy)


@torch.no_grad()
def test_the_cache_that_thinking_leaves_is_the_prefilled_one(policy, monkeypatch):
    favour(monkeypatch, policy, EOS, 1.0)
    texts, context = policy.think(policy.prefill(CONTEXTS), uniforms=uniforms(4, 6), temperature=1.0)
    again = policy.prefill([(*given, written) for given, written in zip(CONTEXTS, texts, strict=True)])
    assert torch.equal(context.rope, again.rope) and torch.equal(context.valid.sum(1), again.valid.sum(1))
    x, t = normal(4, 8, 16), torch.full((4,), 0.6)
    assert_same_answers(policy.velocity(context, x, t), policy.velocity(again, x, t), policy)


@torch.no_grad()
def test_a_velocity_leaves_the_context_as_it_was(policy):
    context, x, t = policy.prefill(CONTEXTS), normal(4, 8, 16), torch.full((4,), 0.6)
    length, rope = context.length, context.rope.clone()
    first = policy.velocity(context, x, t)
    assert torch.equal(first, policy.velocity(context, x, t))
    assert context.length == length and torch.equal(context.rope, rope)


@torch.no_grad()
def test_an_empty_context_starts_at_rope_0(policy):
    empty, x, t = policy.prefill([()]), normal(1, 8, 16), torch.tensor([0.5])
    assert empty.length == 0 and empty.rope.tolist() == [0]
    item = ReplayItem((Image(x[0], policy.spec.grid),), (mixed_items(policy)[4].queries[0],))
    (query,) = item.queries
    (packed,) = policy.replay([item])
    assert_same_answers(policy.velocity(empty.expand(2), query.x, query.t), packed.velocities[0], policy)
    assert packed.log_probs.shape == (0,) and packed.entropies.shape == (0,)
    assert policy.velocity(empty, x, t).shape == (1, 8, 16)


# ---------------------------------------------------------------- packed replay equals separate passes


def separate_passes(policy, items):
    """One text pass, then for each k one pass over context + image, with gradients through the cache."""
    said = policy.replay([ReplayItem(item.segments) for item in items])
    velocities = []
    for item in items:
        (query,) = item.queries
        parts = [
            policy.velocity(policy.prefill([item.segments[: query.segment]]), query.x[k : k + 1], query.t[k : k + 1])
            for k in range(len(query.t))
        ]
        velocities.append(torch.cat(parts))
    return [answer.log_probs for answer in said], velocities


def losses(log_probs, velocities):
    """Random weights on every answer, so that nothing cancels."""
    text_loss = torch.stack([(u * normal(*u.shape, seed=i)).sum() for i, u in enumerate(log_probs)])
    image_loss = torch.stack([(v * normal(*v.shape, seed=i)).mean() for i, v in enumerate(velocities)])
    return Losses(text_loss, image_loss, {})


@pytest.mark.parametrize("through", [False, True])
def test_packed_replay_and_separate_passes_have_the_same_gradients(through):
    method = combination(image_grad_through_context=through)
    found = []
    for packed in (True, False):
        policy = small_policy()
        items = [item for item in mixed_items(policy) if item.queries]
        if packed:
            with counted_forwards(policy) as calls:
                answers = policy.replay(items)
            assert calls == [2]  # one forward over two blocks: context and noisy images
            said = [a.log_probs for a in answers], [a.velocities[0] for a in answers]
        else:
            said = separate_passes(policy, items)
        backward(policy, method, losses(*said), len(items))
        found.append((said, gradients(policy), policy))
    (ours, mine, policy), (theirs, yours, _) = found
    for kind in (0, 1):
        for a, b in zip(ours[kind], theirs[kind], strict=True):
            assert_same_answers(a, b, policy)
    assert set(mine) == set(yours)
    assert set(mine) == set(policy.reasoning_parameters()) | set(policy.denoising_parameters())
    worst = {name: relative(mine[name], yours[name]) for name in mine if yours[name].norm() > 1e-6}
    assert {name: error for name, error in worst.items() if error > gradient_bound(policy)} == {}
    assert len(worst) > 0.9 * len(mine)


def test_gradients_reach_the_context_through_the_cache():
    policy = small_policy()
    context = policy.prefill([(text(4, 5), text(6))]).expand(2)
    policy.velocity(context, normal(2, 8, 16), torch.tensor([0.9, 0.4])).square().sum().backward()
    found = gradients(policy)
    names = (
        "embed_tokens.weight",
        "layers.0.self_attn.k_proj.weight",
        "layers.0.mlp.down_proj.weight",
        "vae2llm.weight",
    )
    assert all(any(name.endswith(end) and grad.norm() > 1e-4 for name, grad in found.items()) for end in names)
    assert "language_model.lm_head.weight" not in found


# ---------------------------------------------------------------- thinking


@torch.no_grad()
def test_a_model_that_stops_at_once(policy, monkeypatch):
    favour(monkeypatch, policy, EOS, 1e4)
    given = CONTEXTS[0]
    (written,), context = policy.think(policy.prefill([given]), uniforms=uniforms(1, 5), temperature=1.0)
    assert written.ids.tolist() == [] and written.ended and written.log_probs.tolist() == [0.0]
    assert written.num_actions == 1
    x, t = normal(1, 8, 16), torch.tensor([0.5])
    assert_same_answers(
        policy.velocity(context, x, t), policy.velocity(policy.prefill([(*given, text())]), x, t), policy
    )


@pytest.mark.parametrize("cap", [1, 5])
@torch.no_grad()
def test_a_model_that_never_stops_is_cut_and_still_reads_eos(policy, monkeypatch, cap):
    favour(monkeypatch, policy, EOS, -1e4)
    with counted_forwards(policy) as calls:
        texts, context = policy.think(policy.prefill(CONTEXTS[:2]), uniforms=uniforms(2, cap), temperature=1.0)
    assert len(calls) == 1 + cap + 2  # prefill; bos, the tokens, eos
    for written in texts:
        assert written.ids.shape == (cap,) and not written.ended and written.log_probs.shape == (cap,)
        assert EOS not in written.ids.tolist() and written.num_actions == cap
    again = policy.prefill([(*given, written) for given, written in zip(CONTEXTS[:2], texts, strict=True)])
    assert torch.equal(context.rope, again.rope)
    x, t = normal(2, 8, 16), torch.full((2,), 0.5)
    assert_same_answers(policy.velocity(context, x, t), policy.velocity(again, x, t), policy)


def test_thinking_keeps_no_graph(policy):
    context = policy.prefill(CONTEXTS[:1])
    (written,), _ = policy.think(context, uniforms=uniforms(1, 3), temperature=1.0)
    assert not written.log_probs.requires_grad and not written.ids.requires_grad
    assert context.keys[0].grad_fn is None


@torch.no_grad()
def test_the_cap_counts_eos_and_every_sampled_token_is_scored(policy, monkeypatch):
    favour(monkeypatch, policy, EOS, 1.5)
    texts, _ = policy.think(policy.prefill([CONTEXTS[0]]).expand(60), uniforms=uniforms(60, 6), temperature=1.0)
    assert {t.ended for t in texts} == {True, False}
    for written in texts:
        assert written.log_probs.shape == (len(written.ids) + written.ended,)
        assert len(written.log_probs) <= 6 and (written.ended or len(written.ids) == 6)
        assert EOS not in written.ids.tolist()
    assert any(written.ended and len(written.ids) == 5 for written in texts)  # eos was the last token allowed


@torch.no_grad()
def test_temperature_0_is_greedy_and_scored_at_temperature_1(policy):
    (written,), _ = policy.think(policy.prefill(CONTEXTS[:1]), uniforms=uniforms(1, 5), temperature=0.0)
    context, token = policy.prefill(CONTEXTS[:1]), policy.config.bos_token_id
    for i in range(written.num_actions):
        logits = policy.feed(context, torch.tensor([token]), torch.tensor([True]))
        token = int(logits.argmax())
        assert token == (written.ids[i] if i < len(written.ids) else EOS)
        assert_same_answers(written.log_probs[i], logits.log_softmax(-1)[0, token], policy)


# ---------------------------------------------------------------- drawing one id


def test_ids_are_drawn_with_their_probabilities():
    logits = normal(1, 9, seed=3) * 2
    count = 20000
    ids, log_probs = sample(logits.expand(count, -1), uniforms(count, 1)[:, 0], 0.8)
    expected = (logits[0] / 0.8).softmax(-1).double() * count
    observed = torch.bincount(ids, minlength=9).double()
    assert float(((observed - expected).square() / expected).sum()) < 26.1  # chi-square, 8 degrees, p = 1e-3
    assert torch.allclose(log_probs, (logits[0] / 0.8).log_softmax(-1)[ids])


def test_the_inverse_cdf_is_exact_on_a_grid():
    probabilities = torch.tensor([0.1, 0.0, 0.4, 0.3, 0.2])
    u = (torch.arange(1000) + 0.5) / 1000
    ids, _ = sample(probabilities.log().expand(1000, -1), u, 1.0)
    assert torch.bincount(ids, minlength=5).tolist() == [100, 0, 400, 300, 200]
    assert ids.tolist() == sorted(ids.tolist())


@pytest.mark.parametrize("tiny", [float("-inf"), -1e4, -800.0])
def test_the_edges_never_pick_what_has_no_probability(tiny):
    logits = torch.tensor([tiny, tiny, 0.5, 0.1, tiny, 0.2, tiny, tiny])
    edges = torch.tensor([0.0, 1e-30, 1.0 - 2.0**-24])
    ids, log_probs = sample(logits.expand(3, -1), edges, 1.0)
    assert ids.tolist() == [2, 2, 5] and torch.isfinite(log_probs).all()


def test_one_certain_id():
    logits = torch.tensor([[0.0, 1e4, 0.0]])
    for u in (0.0, 0.5, 1.0 - 2.0**-24):
        assert sample(logits, torch.tensor([u]), 1.0)[0].tolist() == [1]


def test_temperature_0_scores_as_1():
    logits = normal(2, 5)
    assert torch.equal(log_distribution(logits, 0.0), logits.log_softmax(-1))
    assert log_distribution(logits.bfloat16(), 1.0).dtype == torch.float32


def test_lower_precision_runs_and_answers_in_fp32():
    policy = small_policy()
    policy.compute_dtype = torch.bfloat16
    items = mixed_items(policy)
    for item, answer in zip(items, policy.replay(items), strict=True):
        assert answer.log_probs.dtype == torch.float32
        assert all(v.dtype == torch.float32 for v in answer.velocities)
        assert item.queries or answer.log_probs.shape == (2,)
    exact = small_policy().replay(items)
    error = relative(policy.replay(items)[0].velocities[0], exact[0].velocities[0])
    assert 1e-4 < error < 0.05


def test_given_texts_are_not_scored(policy):
    given = Text(torch.tensor([4, 5]))
    (answer,) = policy.replay([ReplayItem((given, text(6, 7, target=True), given))])
    assert answer.log_probs.shape == (3,) and answer.entropies.shape == (3,)
