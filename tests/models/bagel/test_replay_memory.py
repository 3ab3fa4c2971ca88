"""What a replay keeps for its backward pass: words in pieces, and one context however many copies continue it."""

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from small_models import gradients, mixed_items, normal, relative, small_policy, text
from tolerances import assert_same_answers, gradient_bound
from unigrpo.models.bagel import transformer
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.trajectory import Image


def kept(policy, copies, words):
    """Bytes that are kept between the forward and the backward pass of two thoughts with so many noisy copies."""
    image = Image(normal(8, 16), policy.spec.grid)
    t = torch.linspace(1.0, 0.2, copies, dtype=torch.float64)
    asked = VelocityQuery(2, normal(copies, 8, 16), t)
    thoughts = [text(*[10 + i] * words, target=True) for i in range(2)]
    items = [ReplayItem((text(4, 5), thought, image), (asked,)) for thought in thoughts]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        answers = policy.replay(items)
    assert answers[0].log_probs.requires_grad
    return sum(event.self_cpu_memory_usage for event in watched.key_averages())


def test_copies_of_an_image_keep_no_copies_of_their_context():
    policy = small_policy()
    a_copy = {words: (kept(policy, 5, words) - kept(policy, 1, words)) / 4 for words in (20, 120)}
    assert a_copy[120] == pytest.approx(a_copy[20], rel=0.05)  # with copies: 1.6 times


def answers(policy, items):
    made = policy.replay(items)
    parts = [part for a in made for part in (a.log_probs, *a.velocities)]
    torch.stack([(part * normal(*part.shape, seed=i)).sum() for i, part in enumerate(parts)]).sum().backward()
    return made, gradients(policy)


def test_words_scored_in_pieces_are_scored_alike(monkeypatch):
    whole, at_once = small_policy(), small_policy()
    items = mixed_items(whole)
    expected, theirs = answers(at_once, items)
    most = kept(at_once, 1, 100)
    monkeypatch.setattr(transformer, "AT_ONCE", 7 * whole.config.vocab_size)
    found, ours = answers(whole, items)
    for a, b in zip(found, expected, strict=True):
        for name in ("log_probs", "entropies", "spreads"):
            assert_same_answers(getattr(a, name), getattr(b, name), whole)
    assert {n: e for n in ours if (e := relative(ours[n], theirs[n])) > gradient_bound(whole)} == {}
    assert most - kept(whole, 1, 100) > 0.9 * 200 * whole.config.vocab_size * 4  # fp32 log-probs of 200 words


def test_a_frozen_text_head_below_fp32_is_widened_in_pieces(monkeypatch):
    model = small_policy().model.bfloat16().requires_grad_(False)
    hidden, weight = normal(5, 32).requires_grad_(), model.language_model.lm_head.weight
    monkeypatch.setattr(transformer, "AT_ONCE", 10 * 32)
    logits, whole = model.logits(hidden), F.linear(hidden, weight.float())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, whole)
    up = normal(*whole.shape, seed=3)
    torch.testing.assert_close(*(torch.autograd.grad(out, hidden, up)[0] for out in (logits, whole)))
