"""The loop on a tiny model: how many steps, what is fixed once, who is evaluated, and keyed randomness."""

import math

import pytest
import torch

import tiny_runs
from unigrpo.evaluation import evaluator
from unigrpo.rollout.engine import RandomKeys
from unigrpo.training.clock import Clock
from unigrpo.training.optimizer import TrainingFault
from unigrpo.training.sources import RolloutSource


def collected_by(trainer, iteration=0):
    return trainer.parts.source.collect(trainer.parts.policy, iteration, Clock())


def adam_steps(trainer):
    return {int(value) for name, value in trainer.optimizer.state().items() if name.endswith("|step")}


def test_epochs_times_minibatches_steps(tmp_path, monkeypatch):
    trainer = tiny_runs.trainer_of(tmp_path, optimizer__ppo_epochs=2, optimizer__minibatches=2)
    asked = []
    whole_reference = trainer.parts.reference.replay
    monkeypatch.setattr(
        trainer.parts.reference, "replay", lambda items, **o: asked.append(len(items)) or whole_reference(items, **o)
    )
    checked = []
    monkeypatch.setattr(trainer, "bounds", lambda: checked.append(adam_steps(trainer)) or None)
    collected = collected_by(trainer)
    batch, gap = trainer.annotate(collected, 0)
    updates = trainer.update(batch)
    assert len(updates) == 4 and adam_steps(trainer) == {4}
    assert asked == [3, 3]  # the reference answers once for all epochs, in the micro-batches that are trained on
    assert checked == [set()]  # the ratios are checked before the first step, and only there
    assert gap == {}
    stats = [update.stats for update in updates]
    assert 0.0 <= stats[0]["flow/velocity_mse"] <= 1e-10
    assert stats[0]["text/log_ratio_max"] <= 1e-5 and stats[0]["flow/log_ratio_max"] <= 1e-7
    assert stats[3]["flow/velocity_mse"] > 1e-10 and stats[3]["text/log_ratio_max"] > 1e-5


def test_the_reference_stays_the_start_checkpoint(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path)
    before = {name: value.clone() for name, value in trainer.parts.reference.model.state_dict().items()}
    lines = [trainer.iterate(iteration) for iteration in (0, 1)]
    after = trainer.parts.reference.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    trained = trainer.parts.policy.model.state_dict()
    assert any(not torch.equal(trained[name], before[name]) for name in before)
    assert all(p.grad is None for p in trainer.parts.reference.model.parameters())
    assert lines[1]["flow"]["mse"] > lines[0]["flow"]["mse"] / 2 > 0.0


def test_an_iteration_in_bfloat16_passes_its_bounds(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path, model__dtype="bfloat16")
    assert trainer.parts.compute_dtype == torch.bfloat16
    line = trainer.iterate(0)
    assert 0.0 < trainer.bounds().image == pytest.approx(0.1 * trainer.clip_range)
    assert line["first_update"]["text_log_ratio_max"] <= 1e-3
    assert line["first_update"]["image_log_ratio_max"] <= trainer.bounds().image
    assert set(line["rollout_gap"]) == {"text", "image"}
    assert all(math.isfinite(gap) for gap in line["rollout_gap"].values())
    learned = [p for p in trainer.parts.policy.model.parameters() if p.requires_grad]
    assert {p.dtype for p in learned} == {torch.float32}  # master weights
    assert line["flow"]["steps"][0]["mse"] >= 0.0


def test_a_policy_that_changes_after_its_rollout_is_stopped_before_any_step(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path)
    batch, _ = trainer.annotate(collected_by(trainer), 0)
    with torch.no_grad():
        for parameter in trainer.parts.policy.denoising_parameters().values():
            parameter.mul_(1.01)
    before = {name: value.clone() for name, value in trainer.parts.policy.model.state_dict().items()}
    with pytest.raises(TrainingFault, match="image ratios must be 1"):
        trainer.update(batch)
    after = trainer.parts.policy.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert adam_steps(trainer) == set()


# ---------------------------------------------------------------- keyed randomness


class SamePrompts:
    def __init__(self, source):
        self.source = source

    def batch(self, iteration, n):
        return self.source.batch(0, n)


def test_every_iteration_draws_anew_and_again_the_same(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path)
    source = trainer.parts.source
    assert isinstance(source, RolloutSource)
    fixed = RolloutSource(**{**vars(source), "prompts": SamePrompts(source.prompts)})
    first, other, again = (fixed.collect(trainer.parts.policy, i, Clock()).trajectories for i in (0, 1, 0))
    for a, b, c in zip(first, other, again, strict=True):
        assert not torch.equal(a.images[-1].latents, b.images[-1].latents)
        assert torch.equal(a.images[-1].latents, c.images[-1].latents)
        assert not torch.equal(a.sampled_texts[0].ids, b.sampled_texts[0].ids)
        assert torch.equal(a.sampled_texts[0].ids, c.sampled_texts[0].ids)


def test_prompts_and_demonstrations_move_on_with_the_iterations(tmp_path):
    prompts = tiny_runs.trainer_of(tmp_path).parts.source.prompts
    assert [p.position for p in prompts.batch(0, 3)] == [0, 1, 2]
    assert [p.position for p in prompts.batch(1, 3)] == [3, 4, 5]
    supervised = tiny_runs.trainer_of(tmp_path, tiny_runs.PRETRAIN)
    first, other, again = (collected_by(supervised, i).trajectories for i in (0, 1, 0))
    assert not torch.equal(first[0].segments[-1].latents, other[0].segments[-1].latents)
    assert torch.equal(first[0].segments[-1].latents, again[0].segments[-1].latents)


def test_the_noise_of_supervised_training_is_keyed_by_iteration(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path, tiny_runs.PRETRAIN)
    collected = collected_by(trainer)
    first, other, again = (trainer.annotate(collected, i)[0].queries[0][0] for i in (0, 1, 0))
    assert not torch.equal(first.x, other.x) and not torch.equal(first.t, other.t)
    assert torch.equal(first.x, again.x) and torch.equal(first.t, again.t)


def test_evaluations_share_their_draws_with_no_iteration():
    assert evaluator.EVALUATION_ITERATION < 0
    ours = torch.rand(4, generator=RandomKeys(0, evaluator.EVALUATION_ITERATION).generator(5, 0, "noise"))
    theirs = torch.rand(4, generator=RandomKeys(0, 1).generator(5, 0, "noise"))
    assert not torch.equal(ours, theirs)


def test_training_leaves_the_global_generators_alone(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    trainer.iterate(0)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- the average


def test_the_average_is_evaluated_and_saved_and_the_raw_weights_are_trained(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path, tiny_runs.PRETRAIN)
    seen = []

    def measure(policy):
        seen.append({name: p.detach().clone() for name, p in policy.model.named_parameters()})
        return "measured"

    trainer.iterate(0)
    raw = {name: p.detach().clone() for name, p in trainer.parts.policy.model.named_parameters()}
    shadow = {name: value.clone() for name, value in trainer.average.shadow.items()}
    assert trainer._with_average(measure) == "measured"
    assert all(torch.equal(seen[0][name], shadow[name]) for name in shadow)
    with pytest.raises(RuntimeError, match="while evaluating"):
        trainer._with_average(lambda policy: (_ for _ in ()).throw(RuntimeError("while evaluating")))
    now = dict(trainer.parts.policy.model.named_parameters())
    assert all(torch.equal(now[name], raw[name]) for name in raw)
    trainer.done = 1
    trainer.save()
    state = tiny_runs.final_state(tmp_path)
    assert all(torch.equal(state[f"model/{name}"], shadow[name]) for name in shadow)
    assert all(torch.equal(state[f"raw/{name}"], raw[name]) for name in shadow)
    assert all(torch.equal(now[name], raw[name]) for name in raw)
