"""Rollouts of several rounds: looks, seeds by round, samples that end by what they say, and the controls of a look."""

from dataclasses import replace

import pytest
import torch

from seeing_models import SAMPLING, in_rounds, picture, seeing_policy, some_prompts
from small_models import sample, small_policy
from tolerances import assert_same_answers
from unigrpo import seeds
from unigrpo.rollout.engine import RandomKeys, rollout
from unigrpo.rollout.episode import rounds_of
from unigrpo.rollout.guidance import Guidance
from unigrpo.rollout.looking import others
from unigrpo.rollout.sample import decode_pictures, thinking_of
from unigrpo.rollout.sample import sample as sampled_parts
from unigrpo.trajectory import Image, Prompt, Text, View


@pytest.fixture(scope="module")
def policy():
    return seeing_policy()


def equal(ours, theirs):
    """Whether two segments hold the same numbers."""
    keys = {Text: ("ids", "log_probs"), Image: ("latents",), View: ("patches",)}[type(ours)]
    both = [(vars(ours)[key], vars(theirs)[key]) for key in keys]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in both)


def test_the_first_round_is_that_of_a_run_without_rounds(policy):
    one, two = in_rounds(policy, 1), in_rounds(policy, 2)
    for a, b in zip(one, two, strict=True):
        assert len(a.segments) == 4 and len(b.segments) == 8
        assert all(equal(x, y) for x, y in zip(a.segments, b.segments[:4], strict=True))


def test_keys_of_later_rounds_are_others_and_those_of_the_first_stay():
    plain = seeds.key(3, 5, 7, 1, "noise")
    assert plain == seeds.key(3, 5, 7, 1, "noise", 1) == 17426486928340929473
    assert len({seeds.key(3, 5, 7, 1, "noise", turn) for turn in (1, 2, 3)}) == 3
    keys = RandomKeys(3, 5)
    draw = torch.rand(3, generator=keys.generator(7, 1, "noise"))
    assert torch.equal(draw, torch.rand(3, generator=keys.at(2).at(1).generator(7, 1, "noise")))
    assert not torch.equal(draw, torch.rand(3, generator=keys.at(2).generator(7, 1, "noise")))


def test_a_look_is_the_picture_as_a_png_holds_it_encoded_again(policy):
    for trajectory in in_rounds(policy):
        first, looked, _ = trajectory.images
        pixels = (policy.decode_image(first.latents[None]) * 255).round().to(torch.uint8)[0]
        assert first.pixels.dtype == torch.uint8
        # a pixel near half a step may round to the other side in another batch
        assert int((first.pixels.int() - pixels.int()).abs().max()) <= 1
        (again,) = policy.look_segments(first.pixels[None])
        assert_same_answers(again[0].latents, looked.latents, policy)
        shown = policy.picture_segments(first.pixels)  # as a picture of a prompt is read
        assert_same_answers(shown[0].latents, looked.latents, policy)
        assert shown[0].grid == looked.grid
        assert torch.equal(shown[1].patches, again[1].patches)


def test_a_model_without_a_tower_looks_at_the_latents_alone():
    blind = small_policy()
    kinds = [type(segment) for segment in in_rounds(blind)[0].segments]
    assert kinds == [Text, Text, Text, Image, Image, Text, Image] and blind.looks


def test_a_model_that_cannot_look_is_refused(policy, monkeypatch):
    monkeypatch.setattr(policy, "autoencoder", None)
    assert not policy.looks


def test_a_sample_does_not_depend_on_the_batch(policy):
    whole = in_rounds(policy, 3, group_size=3)
    for index in (0, 4):
        prompt, number = whole[index].prompt, whole[index].sample
        (alone,) = in_rounds(policy, 3, some=[prompt], group_size=1, first_sample=number)
        first = whole[index].drawings[0], alone.drawings[0]
        assert_same_answers(first[0].latents, first[1].latents, policy, forwards=4)
        apart = (first[0].pixels.int() - first[1].pixels.int()).abs()
        assert int(apart.max()) <= 1 and float((apart > 0).float().mean()) < 0.02
        if not apart.any():  # else the next round has looked at another picture
            ours, theirs = whole[index].sampled_texts[1], alone.sampled_texts[1]
            assert torch.equal(ours.ids, theirs.ids)


def test_three_rounds(policy):
    (trajectory, *_) = in_rounds(policy, 3)
    assert len(trajectory.drawings) == 3 == len(trajectory.rounds) and len(trajectory.sampled_texts) == 3
    assert len({tuple(text.ids.tolist()) for text in trajectory.sampled_texts}) > 1


def test_windows_are_drawn_anew_in_every_round(policy):
    steps = [[image.path.steps for image in t.drawings] for t in in_rounds(policy, 4, group_size=1, seed=2)]
    assert any(len(set(own)) > 1 for own in steps)


def test_rounds_without_thinking(policy):
    (trajectory, *_) = in_rounds(policy, think=False)
    assert [type(s) for s in trajectory.segments] == [Text, Image, Image, View, Image]
    assert [one.thinking for one in trajectory.rounds] == [None, None]


def test_the_first_thinking_is_shared_and_each_looks_at_its_own_picture(policy):
    rows = in_rounds(policy, sampling=replace(SAMPLING, images_per_thinking=2), group_size=4)
    assert [t.thought for t in rows] == [0, 0, 1, 1] * 2
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first.sampled_texts[0] is second.sampled_texts[0]
        assert first.sampled_texts[1] is not second.sampled_texts[1]
        assert not torch.equal(first.drawings[0].latents, second.drawings[0].latents)
        assert not torch.equal(first.images[1].latents, second.images[1].latents)
    assert len({tuple(t.sampled_texts[1].ids.tolist()) for t in rows}) > 4
    alone = in_rounds(policy, group_size=2)
    for shared, plain in zip(rows[::2], alone, strict=True):
        assert torch.equal(shared.sampled_texts[0].ids, plain.sampled_texts[0].ids)


# ---------------------------------------------------------------- stop


@pytest.fixture
def saying(policy, monkeypatch):
    """The policy, some of whose thinkings of one rollout are the given words."""

    def patched(said):
        plain, calls = policy.think, []

        def think(context, **options):
            texts, after = plain(context, **options)
            calls.append(len(texts))
            return [said(len(calls), row, text) for row, text in enumerate(texts)], after

        monkeypatch.setattr(policy, "think", think)
        return calls

    return patched


def test_samples_end_where_they_say_so(policy, saying):
    fine = policy.encode_text("red circle")

    def said(call, row, text):
        stops = (call, row) in {(1, 0), (2, 1), (2, 3), (3, 0)}
        return replace(text, ids=fine, log_probs=torch.zeros(len(fine) + text.ended)) if stops else text

    calls = saying(said)
    rolled = in_rounds(policy, 3, stop_words=("red circle",))
    assert calls == [4, 2 + 2, 2]  # the first thinking ends nothing; two have left before the third
    assert [len(t.drawings) for t in rolled] == [2, 1, 3, 1]
    assert [len(t.rounds) for t in rolled] == [3, 2, 3, 2]
    for t in (rolled[0], rolled[1], rolled[3]):
        assert (
            isinstance(t.segments[-1], Text)
            and t.rounds[-1].drawing is None
            and len(t.advantages) == len(t.drawings) + len(t.sampled_texts)
        )
    assert thinking_of(policy, rolled[1]) != "red circle"


def test_those_that_go_on_draw_as_if_nobody_had_left(policy, saying):
    plain = in_rounds(policy, 2, sampling=replace(SAMPLING, guidance=Guidance(2.0, 1.5)))
    fine = policy.encode_text("red circle")
    saying(lambda call, row, text: replace(text, ids=fine) if (call, row) in {(2, 0), (2, 2)} else text)
    left = in_rounds(policy, 2, stop_words=("red circle",), sampling=replace(SAMPLING, guidance=Guidance(2.0, 1.5)))
    assert [len(t.drawings) for t in left] == [1, 2, 1, 2]
    for row in (1, 3):
        ours, theirs = plain[row].drawings[1], left[row].drawings[1]
        assert ours.path.steps == theirs.path.steps
        assert_same_answers(ours.latents, theirs.latents, policy, forwards=12)


def test_nothing_is_drawn_where_all_have_ended(policy, saying):
    fine = policy.encode_text("red circle")
    calls = saying(lambda call, row, text: replace(text, ids=fine) if call == 2 else text)
    rolled = in_rounds(policy, 4, stop_words=("red circle",))
    assert calls == [4, 4] and [len(t.drawings) for t in rolled] == [1] * 4
    assert decode_pictures(policy, rolled).shape == (4, 3, 32, 16)


def test_rows_of_a_context_leave_it(policy):
    prompts = [(Text(torch.tensor(ids)),) for ids in ([5, 6], [7], [8, 9, 10])]
    kept = policy.prefill(prompts).take([2, 0])
    x, t = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.7, 0.7])
    with torch.no_grad():
        fresh = policy.velocity(policy.prefill([prompts[2], prompts[0]]), x, t)
        assert_same_answers(policy.velocity(kept, x, t), fresh, policy)


# ---------------------------------------------------------------- controls


def test_a_grey_look_tells_nothing(policy):
    seen, grey = in_rounds(policy), in_rounds(policy, look="grey")
    for a, b in zip(seen, grey, strict=True):
        assert equal(a.drawings[0], b.drawings[0]) and not equal(a.images[1], b.images[1])
    assert torch.equal(grey[0].images[1].latents, grey[3].images[1].latents)
    patches = next(s.patches for s in grey[0].segments if isinstance(s, View))
    assert torch.allclose(patches, torch.full_like(patches, 128 / 255 * 2 - 1), atol=1e-6)
    assert torch.equal(grey[0].drawings[0].pixels, seen[0].drawings[0].pixels)  # what is judged is what was drawn


def test_another_look_is_the_next_prompts_picture(policy):
    seen, other = in_rounds(policy), in_rounds(policy, look="other")
    assert all(
        torch.equal(other[row].images[1].latents, seen[away].images[1].latents)
        for row, away in ((0, 2), (1, 3), (2, 0), (3, 1))
    )
    with pytest.raises(ValueError, match="all that are drawn together are of one"):
        in_rounds(policy, look="other", some=some_prompts(1))
    assert others([0, 0, 1, 5, 5]) == [2, 2, 3, 0, 1]


def test_a_thinking_can_be_replaced_or_left_out(policy):
    told, removed = in_rounds(policy, rethink="red circle"), in_rounds(policy, rethink="none")
    for trajectory in told:
        given = trajectory.rounds[1].thinking
        assert policy.decode_text(given.ids) == "red circle" and given.log_probs is None
        assert len(trajectory.sampled_texts) == 1 and len(trajectory.advantages) == 3
        assert thinking_of(policy, trajectory) == "red circle"
    for trajectory in removed:
        assert trajectory.rounds[1].thinking is None and len(trajectory.drawings) == 2
        assert thinking_of(policy, trajectory) is None


# ---------------------------------------------------------------- what others see


def test_every_drawing_is_there_with_the_thinking_of_its_round(policy, saying):
    fine = policy.encode_text("red circle")
    saying(lambda call, row, text: replace(text, ids=fine) if (call, row) == (2, 2) else text)
    episode = rounds_of(2, think=True, stop_words=("red circle",))
    (drawn,) = sampled_parts(policy, episode, some_prompts(), SAMPLING, RandomKeys(0, 0), samples=2, batch=None)
    every = drawn.every
    assert every.owners == [0, 0, 1, 1, 2, 3, 3] and every.pictures.shape == (7, 3, 32, 16)
    assert drawn.thoughts[2][1] == "red circle" and every.thinking[4] == drawn.thoughts[2][0] == drawn.thinking[2]
    assert torch.equal(every.pictures[1], drawn.pictures[0]) and torch.equal(every.pictures[4], drawn.pictures[2])
    first = drawn.trajectories[0].drawings[0]
    assert torch.equal(every.pictures[0], first.pixels)


def test_one_round_has_one_picture_each(policy):
    (drawn,) = sampled_parts(
        policy, rounds_of(1, think=True), some_prompts(), SAMPLING, RandomKeys(0, 0), samples=2, batch=None
    )
    assert drawn.every.pictures is drawn.pictures and drawn.every.owners == [0, 1, 2, 3]
    assert drawn.every.thinking == drawn.thinking


def test_an_edit_goes_through_rounds(policy):
    edits = [Prompt(0, "red circle", images=(picture(),))]
    episode = rounds_of(2, think=False)
    (trajectory,) = rollout(policy, episode, edits, SAMPLING, group_size=1, keys=RandomKeys(0, 0))
    assert [type(s) for s in trajectory.segments] == [Image, View, Text, Image, Image, View, Image]
    assert len(trajectory.drawings) == 2 and trajectory.given == trajectory.segments[:3]


def test_phases_of_rounds_are_announced(policy):
    phases = []
    rollout(
        policy, rounds_of(2, think=True), some_prompts(), SAMPLING, group_size=1, keys=RandomKeys(0, 0),
        on_phase=phases.append,
    )  # fmt: skip
    assert phases == ["prefill", "think", "draw", "look", "think", "draw"]
    assert len(sample(policy)[0].rounds) == 1
