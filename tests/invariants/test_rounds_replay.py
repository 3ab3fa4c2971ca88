"""One packed replay over several rounds scores what was sampled, and is what separate passes say, gradients too."""

from dataclasses import replace

import pytest
import torch

from formulas import METHODS, queries_of
from seeing_models import SAMPLING, in_rounds, item_of, picture, policy_of
from small_models import gradients, normal, relative
from tolerances import assert_same_answers, gradient_bound
from unigrpo.objectives.method import Losses
from unigrpo.objectives.regularisers import Regulariser
from unigrpo.policy import ReplayItem
from unigrpo.rollout.guidance import Guidance
from unigrpo.training.gradients import backward, backward_sharded
from unigrpo.training.lora import Adapter
from unigrpo.training.replay import Batch, replay
from unigrpo.training.update import annotate_behaviour
from unigrpo.trajectory import Image, Prompt, Text, View, in_context, is_drawing

KINDS = ("latents", "tower", "tiny")


@pytest.fixture(scope="module", params=KINDS)
def policy(request, tmp_path_factory):
    return policy_of(request.param, tmp_path_factory.mktemp("tiny") / "bagel")


SHARED = replace(SAMPLING, images_per_thinking=2)
"""Two pictures on each first thinking."""


@pytest.fixture(scope="module", params=(SAMPLING, SHARED), ids=("own", "shared"))
def rolled(policy, request):
    return in_rounds(policy, sampling=request.param)


def separately(policy, trajectory):
    """Log-probs and velocities segment by segment, each after a context that is read anew (no packing, no drawing)."""
    log_probs, velocities = [], []
    for index, segment in enumerate(trajectory.segments):
        before = tuple(s for s in trajectory.segments[:index] if in_context(s))
        if isinstance(segment, Text) and segment.log_probs is not None:
            (answer,) = policy.replay([ReplayItem((*(_given(s) for s in before), segment))], plain=True)
            log_probs.append(answer.log_probs)
        elif is_drawing(segment):
            path = segment.path
            cache = policy.prefill([before] * len(path.t))
            velocities.append(policy.velocity(cache, path.x, path.t))
    return torch.cat(log_probs), velocities


def _given(segment):
    return replace(segment, log_probs=None) if isinstance(segment, Text) else segment


def test_a_trajectory_of_two_rounds(policy, rolled):
    seen = [Image, View] if policy.config.vision is not None else [Image]
    for trajectory in rolled:
        kinds = [type(segment) for segment in trajectory.segments]
        assert kinds == [Text, Text, Text, Image, *seen, Text, Image]
        first, looked, second = trajectory.images
        assert trajectory.drawings == (first, second) and first.path is not None and second.path is not None
        assert not looked.drawn and looked.path is None and not torch.equal(first.path.x, second.path.x)
        assert len(trajectory.sampled_texts) == 2 and len(trajectory.rounds) == 2


def test_the_replay_scores_what_was_sampled(policy, rolled):
    with torch.no_grad():
        answers = policy.replay([item_of(t) for t in rolled])
    for trajectory, answer in zip(rolled, answers, strict=True):
        sampled = torch.cat([text.log_probs for text in trajectory.sampled_texts])
        assert_same_answers(answer.log_probs, sampled, policy)
        assert float((answer.log_probs - sampled).abs().max()) < 1e-5
        assert len(answer.velocities) == 2


def test_the_packed_replay_is_separate_passes(policy, rolled):
    """Equal to 1e-5, and so are the gradients of everything that is trained."""
    with torch.no_grad():
        packed = policy.replay([item_of(t) for t in rolled])
        for trajectory, answer in zip(rolled, packed, strict=True):
            log_probs, velocities = separately(policy, trajectory)
            assert float((answer.log_probs - log_probs).abs().max()) < 1e-5
            for ours, theirs in zip(answer.velocities, velocities, strict=True):
                assert float((ours - theirs).abs().max()) < 1e-5 * max(1.0, float(theirs.abs().max()))


def loss_of(log_probs, velocities):
    return torch.cat(list(log_probs)).mean() + torch.cat([v.flatten() for v in velocities]).square().mean()


def check_gradients(policy, rolled):
    policy.model.zero_grad()
    answers = policy.replay([item_of(t) for t in rolled])
    loss_of([a.log_probs for a in answers], [v for a in answers for v in a.velocities]).backward()
    packed = gradients(policy)
    policy.model.zero_grad()
    apart = [separately(policy, t) for t in rolled]
    loss_of([log_probs for log_probs, _ in apart], [v for _, each in apart for v in each]).backward()
    separate = gradients(policy)
    policy.model.zero_grad()
    assert packed.keys() == separate.keys() and packed
    whole = torch.cat([g.flatten() for g in packed.values()]), torch.cat([g.flatten() for g in separate.values()])
    assert relative(*whole) < 1e-5 + gradient_bound(policy)
    return packed


def test_gradients_of_the_packed_replay_are_those_of_separate_passes(policy, rolled):
    found = check_gradients(policy, rolled)
    assert any("moe_gen" in name for name in found) and any("mlp.down_proj" in name for name in found)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_adapters_are_those_of_separate_passes(kind, tmp_path):
    policy = policy_of(kind, tmp_path / "bagel")
    targets = policy.adapter_targets(("reasoning", "denoising"))
    adapter = Adapter.create(policy.model, targets, rank=4, alpha=8.0, seed=0, base_name="owner/name")
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(adapter.parameters().items())):
            if "lora_B" in name:
                parameter.copy_(0.1 * normal(*parameter.shape, seed=number))
    found = check_gradients(policy, in_rounds(policy))
    assert found and all("lora" in name for name in found)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_the_replay_rounds_as_it_does_in_one_round(kind, tmp_path):
    policy = policy_of(kind, tmp_path / "bagel")
    policy.compute_dtype = torch.bfloat16
    rolled = in_rounds(policy)
    with torch.no_grad():
        for trajectory, answer in zip(rolled, policy.replay([item_of(t) for t in rolled]), strict=True):
            log_probs, velocities = separately(policy, trajectory)
            assert float((answer.log_probs - log_probs).abs().max()) < 0.2
            for ours, theirs in zip(answer.velocities, velocities, strict=True):
                assert relative(ours, theirs) < 0.03


def test_later_segments_see_the_look_and_not_the_drawing(policy, rolled):
    """Of a drawing its latents are free to change; what was looked at is not."""
    trajectory = rolled[0]
    index = next(i for i, s in enumerate(trajectory.segments) if is_drawing(s))

    def second(segments):
        with torch.no_grad():
            (answer,) = policy.replay([item_of(replace(trajectory, segments=segments))])
        return answer.velocities[1]

    def moved(at):
        image = trajectory.segments[at]
        changed = replace(image, latents=image.latents + normal(*image.latents.shape, seed=3))
        return (*trajectory.segments[:at], changed, *trajectory.segments[at + 1 :])

    plain = second(trajectory.segments)
    assert torch.equal(second(moved(index)), plain)
    assert float((second(moved(index + 1)) - plain).abs().max()) > 1e-3


def batch_of(method, rolled):
    queries = [queries_of(method, t, torch.Generator().manual_seed(i)) for i, t in enumerate(rolled)]
    return Batch([t.with_advantages(0.5, -0.5) for t in rolled], queries)


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.0), Guidance(2.0, 1.5)])
def test_the_first_updates_ratios_are_1_over_all_texts_and_pictures(policy, guidance):
    method = replace(METHODS["unigrpo"], regulariser=Regulariser(weight=0.0))
    batch = batch_of(method, in_rounds(policy, sampling=replace(SAMPLING, guidance=guidance)))
    with torch.no_grad():
        stats = method.losses(batch.trajectories, replay(policy, batch, 1.0), batch.queries).stats
    assert stats["flow/log_ratio"].shape == (8, 2)  # two pictures a trajectory
    assert float(stats["flow/log_ratio_max"].max()) < 1e-7 and float(stats["text/log_ratio_max"].max()) < 1e-5


def test_fpo_is_on_policy_over_both_pictures(policy):
    method = replace(METHODS["fpo"], regulariser=Regulariser(weight=0.0))
    batch = batch_of(method, in_rounds(policy, sampling=replace(SAMPLING, window=None)))
    ready = annotate_behaviour(policy, batch, micro_batch=3, temperature=1.0)
    for part in ready.pieces(3):
        found = method.losses(part.trajectories, replay(policy, part, 1.0), part.queries)
        assert float(found.stats["fpo/log_ratio_max"].max()) == 0.0


def test_rounds_of_an_edit(policy):
    """A picture first, then rounds: the replay scores what was sampled."""
    if policy.config.vision is None:
        pytest.skip("pictures in a prompt need a tower")
    edits = [Prompt(0, "red circle", images=(picture(),)), Prompt(1, "blue", images=(picture(seed=4),))]
    rolled = in_rounds(policy, some=edits, sampling=replace(SAMPLING, guidance=Guidance(2.0, 1.5)))
    assert [type(s) for s in rolled[0].segments] == [Text, Image, View, Text, Text, Image, Image, View, Text, Image]
    assert len(rolled[0].drawings) == 2 and len(rolled[0].given) == 4
    method = replace(METHODS["unigrpo"], regulariser=Regulariser(weight=0.0))
    batch = batch_of(method, rolled)
    with torch.no_grad():
        stats = method.losses(batch.trajectories, replay(policy, batch, 1.0), batch.queries).stats
    assert float(stats["flow/log_ratio_max"].max()) < 1e-7 and float(stats["text/log_ratio_max"].max()) < 1e-5


def received(policy, batch, method, which, how=backward):
    """The gradients that one of the two losses gives, by name of the parameter, as an update lets it."""
    policy.model.zero_grad(set_to_none=True)
    losses = method.losses(batch.trajectories, replay(policy, batch, 1.0), batch.queries)
    text, image = (losses.text_loss, None) if which == "text" else (None, losses.image_loss)
    how(policy, method, Losses(text, image, losses.stats), len(batch))
    found = gradients(policy)
    policy.model.zero_grad(set_to_none=True)
    return {name for name, gradient in found.items() if bool(gradient.any())}


@pytest.mark.parametrize("how", [backward, backward_sharded])
def test_words_about_a_picture_do_not_train_the_weights_that_read_it(policy, rolled, how):
    """The words of a second round read the first picture by weights that are constants to their loss."""
    method = replace(METHODS["unigrpo"], regulariser=Regulariser(weight=0.0))
    batch, denoising = batch_of(method, rolled), set(policy.denoising_parameters())
    assert not received(policy, batch, method, "text", how) & denoising
    assert received(policy, batch, method, "text", how) <= set(policy.reasoning_parameters())
    assert received(policy, batch, method, "image", how) <= denoising
    exact = replace(method, image_grad_through_context=True)
    assert received(policy, batch, exact, "text", how) & denoising
    assert received(policy, batch, exact, "image", how) - denoising
