"""Keys and values that are filled in place: the same numbers as by concatenation, nothing copied, rows that change."""

import torch

from small_models import EOS, favour, normal, small_policy, text
from tolerances import assert_same_answers
from unigrpo.models.bagel.cache import Cache
from unigrpo.models.bagel.slots import Slots

CPU = torch.device("cpu")


def read(rows, slots, *, valid=None):
    """A cache of one layer with random keys and values of one head of 4 numbers."""
    cache = Cache.empty(1, rows, CPU)
    cache.append(0, normal(rows, 1, slots, 4, seed=1), normal(rows, 1, slots, 4, seed=2))
    cache.commit(torch.ones(rows, slots, dtype=torch.bool) if valid is None else valid, torch.arange(rows))
    return cache


def test_what_is_written_in_place_is_what_is_joined():
    cache = read(3, 2)
    slots, (before, _) = Slots(cache, 4, torch.float32), cache.layer(0)
    storage = slots.keys[0].data_ptr()
    for step in range(4):
        keys, values = normal(3, 1, 1, 4, seed=10 + step), normal(3, 1, 1, 4, seed=20 + step)
        cache_keys, cache_values = cache.append(0, keys, values)
        cache.commit(torch.ones(3, 1, dtype=torch.bool), cache.rope)
        seen = slots.append(0, keys, values)
        slots.length += 1
        assert torch.equal(seen[0], cache_keys) and torch.equal(seen[1], cache_values)
    assert slots.keys[0].data_ptr() == storage
    assert torch.equal(before, cache.layer(0)[0][:, :, :2])


def test_a_picture_fills_the_same_slots_at_every_step():
    slots = Slots(read(2, 3), 2, torch.float32)
    for seed in (5, 6):
        keys, values = normal(2, 1, 2, 4, seed=seed), normal(2, 1, 2, 4, seed=seed + 1)
        seen = slots.append(0, keys, values)
        assert torch.equal(seen[0][:, :, 3:], keys) and torch.equal(seen[1][:, :, 3:], values)


def test_the_mask_hides_padding_alone():
    valid = torch.tensor([[True, True], [True, False]])
    slots = Slots(read(2, 2, valid=valid), 3, torch.float64)
    assert slots.mask.dtype == torch.float64
    assert (slots.mask[:, 0, 0] == 0).tolist() == [[True] * 5, [True, False, True, True, True]]


def test_rows_that_changed_places_return_to_their_own():
    cache = read(3, 2)
    slots = Slots(cache, 2, torch.float64)
    slots.append(0, normal(3, 1, 1, 4, seed=3), normal(3, 1, 1, 4, seed=4))
    slots.length += 1
    slots.swap([0], [2])
    slots.append(0, normal(2, 1, 1, 4, seed=5), normal(2, 1, 1, 4, seed=6))  # row 2, then row 1; row 0 has ended
    slots.length += 1
    slots.settle(cache, [2, 1, 0], torch.tensor([1, 2, 2]))
    keys, _ = cache.layer(0)
    assert keys.dtype == torch.float32 and torch.equal(keys[:, :, :2], read(3, 2).layer(0)[0])
    assert torch.equal(keys[:, :, 2], normal(3, 1, 1, 4, seed=3)[:, :, 0])
    assert torch.equal(keys[2, :, 3], normal(2, 1, 1, 4, seed=5)[0, :, 0]) and not keys[0, :, 3].any()
    assert cache.valid[:, 2:].tolist() == [[True, False], [True, True], [True, True]]
    assert cache.rope.tolist() == [1, 3, 4]


@torch.no_grad()
def test_rows_that_have_ended_leave_the_batch(monkeypatch):
    policy, widths = small_policy(), []
    favour(monkeypatch, policy, EOS, 2.0)
    forward = policy.model.forward
    monkeypatch.setattr(
        policy.model, "forward", lambda blocks, *a, **k: widths.append(len(blocks[0].ids)) or forward(blocks, *a, **k)
    )
    context = policy.prefill([(text(4, 5),)] * 6)
    widths.clear()
    uniforms = torch.rand((6, 12), generator=torch.Generator().manual_seed(3))
    texts, _ = policy.think(context, uniforms=uniforms, temperature=1.0)
    lengths = [len(t.ids) + 2 if t.ended else 14 for t in texts]
    assert len(set(lengths)) > 2  # else the test tries nothing
    assert widths == [sum(length > step for length in lengths) for step in range(max(lengths))]


@torch.no_grad()
def test_a_path_is_kept_until_something_is_read_and_is_of_one_size():
    policy = small_policy()
    cache, x, t = policy.prefill([(text(4, 5),), (text(6),)]), normal(2, 8, 16), torch.full((2,), 0.5)
    first = policy.velocity(cache, x, t)
    (path,) = cache.paths.values()
    assert torch.equal(policy.velocity(cache, x, t), first) and cache.paths == {policy.spec.grid: path}
    other = policy.at_size((16, 32))
    other.velocity(cache, x, t)
    assert len(cache.paths) == 2
    policy.extend(cache, [(text(7),), ()])
    assert not cache.paths
    whole = policy.prefill([(text(4, 5), text(7)), (text(6),)])
    assert_same_answers(policy.velocity(cache, x, t), policy.velocity(whole, x, t), policy)


def test_with_gradients_and_without_a_velocity_is_the_same():
    policy = small_policy()
    contexts = [(text(4, 5), text(6)), (text(7),), ()]
    x, t = normal(3, 8, 16), torch.tensor([0.9, 0.5, 0.1])
    for dtype in (torch.float32, torch.bfloat16):
        policy.compute_dtype = dtype
        cache = policy.prefill(contexts)
        general = policy.velocity(cache, x, t).detach()
        with torch.no_grad():
            drawn = policy.velocity(policy.prefill(contexts), x, t)
        if dtype == torch.float32:
            assert_same_answers(drawn, general, policy)
        else:
            assert float((drawn - general).abs().max()) < 0.02 * float(general.abs().max())
