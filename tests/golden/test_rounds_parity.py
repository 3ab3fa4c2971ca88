"""Two rounds in the order of context of the original code, on its own numbers: ids, log-probs and velocities.

The second sample of the reference's training batch is such a sequence: picture, view, prompt, NOISE picture, its clean
copy, its view, words, NOISE picture (tests/golden/bagel_a/README.md). Here it is a trajectory of two rounds: the noisy
pictures are drawings, and what stands between them is what a look gives.
"""

from pathlib import Path

import pytest
import torch

from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.tools.parity import parity, training
from unigrpo.tools.parity.golden import TEXT_TOLERANCE, TOLERANCE
from unigrpo.trajectory import Image, Prompt, Text, Trajectory, View, in_context

FOLDER = Path(__file__).parent / "bagel_a"


@pytest.fixture(scope="module")
def golden():
    return parity.Golden(FOLDER)


@pytest.fixture(scope="module")
def rounds(golden):
    """(trajectory, queries of its two drawings, the original's velocities of them, log-probs of the words between)."""
    _, item = training.items(golden)
    source, seen, prompt, first, view, words, second = item.segments
    drawings = [Image(torch.full_like(i.latents, 7.0), i.grid, drawn=True) for i in (first, second)]
    said = Text(words.ids, log_probs=torch.zeros(words.num_actions))
    segments = (source, seen, prompt, drawings[0], first, view, said, drawings[1])
    trajectory = Trajectory(Prompt(0, ""), 0, segments)
    queries = tuple(VelocityQuery(index, q.x, q.t) for index, q in zip((3, 7), item.queries, strict=True))
    sizes = [q.x.shape[1] for q in queries]
    velocities = golden["train.out.velocity_pred"][-sum(sizes) :].split(sizes)
    ce = golden["train.out.ce"][-words.num_actions :]
    return trajectory, queries, velocities, -ce


def worst(ours, theirs):
    return float((ours.detach() - theirs).abs().max())


def test_the_sequence_is_two_rounds(rounds):
    trajectory, *_ = rounds
    kinds = [Image, View, Text, Image, Image, View, Text, Image]
    assert [type(segment) for segment in trajectory.segments] == kinds
    assert len(trajectory.rounds) == 2 and len(trajectory.given) == 3
    assert [in_context(segment) for segment in trajectory.segments] == [True] * 3 + [False] + [True] * 3 + [False]


def test_the_replay_says_what_the_original_says(golden, rounds):
    trajectory, queries, velocities, log_probs = rounds
    with torch.no_grad():
        (answer,) = golden.policy.replay([ReplayItem(trajectory.segments, queries)])
    for ours, theirs in zip(answer.velocities, velocities, strict=True):
        assert worst(ours[0], theirs) <= TOLERANCE
    assert worst(answer.log_probs, log_probs) <= TEXT_TOLERANCE


def test_one_cache_that_is_continued_says_it_too(golden, rounds):
    """Prefill, draw, read the look into the thinking's cache, read the words, draw: as a rollout does."""
    trajectory, queries, velocities, log_probs = rounds
    policy, segments = golden.policy, trajectory.segments
    with torch.no_grad():
        cache = policy.prefill([segments[:3]])
        for query, theirs, between in zip(queries, velocities, (segments[4:6], ()), strict=True):
            ours = policy.at_size(size_of(policy, segments[query.segment])).velocity(cache, query.x, query.t)
            assert worst(ours[0], theirs) <= TOLERANCE
            if between:
                cache = policy.extend(cache, [between])
                said, scores = segments[6], []
                for token, following in zip(
                    [policy.config.bos_token_id, *said.ids.tolist()], said.ids.tolist(), strict=False
                ):
                    logits = policy.feed(cache, torch.tensor([token]), torch.tensor([True]))
                    scores.append(logits.log_softmax(-1)[0, following])
                assert worst(torch.stack(scores), log_probs[: len(scores)]) <= TEXT_TOLERANCE
                for token in (said.ids[-1:], torch.tensor([policy.config.eos_token_id])):
                    policy.feed(cache, token, torch.tensor([True]))


def size_of(policy, image):
    """(height, width) in pixels of a picture's grid."""
    stride = policy.config.pixels_per_token
    return image.grid[0] * stride, image.grid[1] * stride


def test_a_mistake_in_the_order_is_seen(golden, rounds):
    """Without the look, or with the drawing itself in the context, the second picture's velocities are others."""
    trajectory, queries, velocities, _ = rounds
    segments = trajectory.segments
    left_out = (*segments[:4], *segments[6:])
    with torch.no_grad():
        (answer,) = golden.policy.replay([ReplayItem(left_out, (VelocityQuery(5, queries[1].x, queries[1].t),))])
        assert worst(answer.velocities[0][0], velocities[1]) > 100 * TOLERANCE
        again = (*segments[:4], segments[4], *segments[4:])
        (answer,) = golden.policy.replay([ReplayItem(again, (VelocityQuery(8, queries[1].x, queries[1].t),))])
        assert worst(answer.velocities[0][0], velocities[1]) > 100 * TOLERANCE
