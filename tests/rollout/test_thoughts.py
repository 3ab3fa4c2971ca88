"""Several pictures on one thinking: decoded once, drawn each for itself, read once in the replay."""

from dataclasses import replace

import pytest
import torch

from small_models import TRAINING, gradients, relative, sample, small_policy
from tolerances import assert_same_answers, gradient_bound
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.rollout.sample import portions

TWO = replace(TRAINING, images_per_thinking=2)


def shared(**options):
    return sample(small_policy(), sampling=TWO, group_size=4, **options)


def test_neighbours_share_a_thinking_and_draw_their_own_pictures():
    rows = shared()
    assert [t.thought for t in rows] == [0, 0, 1, 1] * 2
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first.sampled_texts[0] is second.sampled_texts[0]
        assert not torch.equal(first.images[0].latents, second.images[0].latents)
    assert rows[0].sampled_texts[0] is not rows[2].sampled_texts[0]


def test_a_thought_is_what_it_is_without_sharing():
    """Thought j has the draws of sample j, and picture s those of picture s, whatever is shared."""
    alone = sample(small_policy(), group_size=2)
    for thought, plain in zip(shared()[::2], alone, strict=True):
        assert torch.equal(thought.sampled_texts[0].ids, plain.sampled_texts[0].ids)
    first = shared()[0].images[0].path, sample(small_policy(), group_size=1)[0].images[0].path
    assert torch.equal(first[0].x[0], first[1].x[0]) or first[0].steps[0] > 0


def items(rows):
    queries = [VelocityQuery(len(t.segments) - 1, t.images[0].path.x, t.images[0].path.t) for t in rows]
    return [ReplayItem(t.segments, (query,)) for t, query in zip(rows, queries, strict=True)]


def answered(rows, *, plain):
    policy = small_policy()
    answers = policy.replay(items(rows), plain=plain)
    sum((part * torch.linspace(-1, 1, part.numel()).reshape(part.shape)).sum()
        for a in answers for part in (a.log_probs, *a.velocities)).backward()  # fmt: skip
    return policy, answers, gradients(policy)


def test_a_shared_thinking_changes_neither_answers_nor_gradients():
    rows = shared()
    (policy, ours, mine), (_, theirs, yours) = (answered(rows, plain=plain) for plain in (False, True))
    for a, b, t in zip(ours, theirs, rows, strict=True):
        assert_same_answers(a.log_probs, b.log_probs, policy)
        assert_same_answers(a.log_probs, t.sampled_texts[0].log_probs, policy, forwards=2)
        assert_same_answers(a.velocities[0], b.velocities[0], policy)
    floor = 1e-6 * max(float(g.norm()) for g in yours.values())
    read = [n for n, g in yours.items() if g.norm() > floor]
    assert {n: e for n in read if (e := relative(mine[n], yours[n])) > gradient_bound(policy)} == {}


def test_a_thinking_is_read_once(monkeypatch):
    policy, rows, widths = small_policy(), shared(), []
    whole = policy.model.head
    monkeypatch.setattr(policy.model, "head", lambda hidden: widths.append(len(hidden)) or whole(hidden))
    with torch.no_grad():
        policy.replay(items(rows))
        policy.replay(items(rows[::2]))
    assert widths[0] == widths[1]  # eight pictures ask for no more words than four


def test_portions_never_part_a_thought():
    assert [(f, n) for _, f, n in portions(["a"], 6, 4, 3)] == [(0, 3), (3, 3)]
    assert [(f, n) for _, f, n in portions(["a"], 6, 2, 3)] == [(0, 3), (3, 3)]
    assert [(len(p), f, n) for p, f, n in portions(["a", "b", "c"], 6, 13, 3)] == [(2, 0, 6), (1, 0, 6)]


def test_a_group_that_thoughts_do_not_fit_is_refused():
    with pytest.raises(ValueError, match="3 samples from 0 on cannot share thoughts by 2"):
        sample(small_policy(), sampling=TWO, group_size=3)
