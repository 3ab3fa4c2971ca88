"""The key/value cache: what is read on is joined; rows are repeated without sharing."""

import torch

from small_models import normal, small_policy, text
from tolerances import assert_same_answers
from unigrpo.models.bagel.cache import Cache

CPU = torch.device("cpu")


def fill(cache, steps):
    for step in range(steps):
        parts = [(normal(2, 1, 1, 3, seed=10 * step + i), normal(2, 1, 1, 3, seed=10 * step + i + 5)) for i in range(2)]
        for index, (keys, values) in enumerate(parts):
            seen = cache.append(index, keys, values)
            assert seen[0].shape[2] == cache.length + 1
            assert torch.equal(seen[0][:, :, -1:], keys) and torch.equal(seen[1][:, :, -1:], values)
        cache.commit(torch.tensor([[True], [step % 2 == 0]]), cache.rope + 1)
    return cache


def test_what_was_read_is_joined_and_gradients_flow_through_it():
    joined = fill(Cache.empty(2, 2, CPU), 6)
    assert joined.length == joined.layer(1)[0].shape[2] == 6 and joined.rope.tolist() == [6, 6]
    cache, seen, given = Cache.empty(2, 2, CPU), [], [normal(2, 1, 1, 3, seed=i).requires_grad_() for i in range(2)]
    for keys in given:
        seen.append(cache.append(0, keys, keys)[0].square().sum())  # saves what it saw for its backward
        cache.commit(torch.ones(2, 1, dtype=torch.bool), cache.rope + 1)
    torch.stack(seen).sum().backward()
    assert torch.equal(given[0].grad, 4 * given[0].detach()) and torch.equal(given[1].grad, 2 * given[1].detach())


def test_an_empty_cache_has_no_layers_and_rope_0():
    cache = Cache.empty(2, 3, CPU)
    assert cache.length == 0 and cache.layer(1) is None and cache.rope.tolist() == [0, 0, 0]
    assert cache.expand(2).rope.tolist() == [0] * 6


@torch.no_grad()
def test_expanded_rows_equal_rows_read_one_by_one_and_share_nothing():
    policy = small_policy()
    contexts = [(text(4, 5), text(6)), (text(7),)]
    expanded = policy.prefill(contexts).expand(2)
    repeated = policy.prefill([contexts[0], contexts[0], contexts[1], contexts[1]])
    x, t = normal(4, 8, 16), torch.full((4,), 0.5)
    assert_same_answers(policy.velocity(expanded, x, t), policy.velocity(repeated, x, t), policy)
    before = policy.prefill(contexts)
    copy = before.expand(1)
    uniforms = torch.full((2, 3), 0.5)
    policy.think(copy, uniforms=uniforms, temperature=1.0)
    again = policy.prefill(contexts)
    for index in range(2):
        assert torch.equal(before.layer(index)[0], again.layer(index)[0])
    assert before.length == again.length < copy.length


@torch.no_grad()
def test_reading_on_equals_reading_at_once():
    policy = small_policy()
    first, second = [(text(4, 5),), (text(7, 8, 9, 10),), ()], [(text(6),), (), (text(11), text(12))]
    cache = policy.extend(policy.prefill(first), second)
    whole = policy.prefill([a + b for a, b in zip(first, second, strict=True)])
    assert torch.equal(cache.rope, whole.rope) and torch.equal(cache.valid.sum(1), whole.valid.sum(1))
    x, t = normal(3, 8, 16), torch.full((3,), 0.5)
    assert_same_answers(policy.velocity(cache, x, t), policy.velocity(whole, x, t), policy)
