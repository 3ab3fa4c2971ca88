"""Two experts with their own rates and clipping, a schedule, and an average of the weights."""

import itertools
import math

import pytest
import torch

from small_models import small_policy
from unigrpo.config import Optimizer
from unigrpo.training.optimizer import EXPERTS, ExpertOptimizer, MovingAverage, TrainingFault, schedule


def weights(policy):
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


def unchanged(policy, before):
    return all(torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())


def set_gradients(optimizer, seed=0, norms=None):
    """Random gradients for every parameter; ``norms`` by expert."""
    generator = torch.Generator().manual_seed(seed)
    for expert, parameters in optimizer.parameters.items():
        drawn = {n: torch.randn(p.shape, generator=generator) for n, p in parameters.items()}
        size = math.sqrt(sum(float(g.square().sum()) for g in drawn.values()))
        for name, parameter in parameters.items():
            parameter.grad = drawn[name] * ((norms or {}).get(expert, size) / size)


def gradient_norm(optimizer, expert):
    grads = [p.grad for p in optimizer.parameters[expert].values()]
    return math.sqrt(sum(float(g.double().square().sum()) for g in grads))


# ---------------------------------------------------------------- schedule


def test_schedule_rises_holds_and_falls():
    factors = [schedule(i, 8, warmup=4, decay=0.5) for i in range(8)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_schedule_is_one_without_warmup_and_decay():
    assert {schedule(i, 5, 0, 0.0) for i in range(5)} == {1.0}


def test_a_whole_run_of_decay_never_stands_still():
    factors = [schedule(i, 10, 0, 1.0) for i in range(10)]
    assert factors[0] == 1.0 and all(a > b > 0 for a, b in itertools.pairwise(factors))


def test_set_iteration_sets_the_rates_it_reports():
    optimizer = ExpertOptimizer(small_policy(), Optimizer(lr_reasoning=1e-3, lr_denoising=4e-3, warmup=2), 10)
    assert optimizer.set_iteration(0) == {"reasoning": 0.5e-3, "denoising": 2e-3}
    assert optimizer.set_iteration(5) == {"reasoning": 1e-3, "denoising": 4e-3}
    assert [group["lr"] for group in optimizer.adam.param_groups] == [1e-3, 4e-3]


# ---------------------------------------------------------------- one step


def test_the_experts_share_out_all_trainable_parameters():
    policy = small_policy()
    optimizer = ExpertOptimizer(policy, Optimizer(), 1)
    names = [name for parameters in optimizer.parameters.values() for name in parameters]
    assert tuple(optimizer.parameters) == EXPERTS
    assert len(names) == len(set(names))
    assert set(names) == {name for name, p in policy.model.named_parameters() if "pos_embed" not in name}


def test_each_expert_moves_by_its_own_rate():
    """Invariant 29: with Adam's eps -> 0, one step moves every weight by its expert's learning rate."""
    policy = small_policy()
    config = Optimizer(lr_reasoning=1e-6, lr_denoising=3e-5, eps_reasoning=1e-30, eps_denoising=1e-30)
    optimizer = ExpertOptimizer(policy, config, 1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.zero_()  # so that the step is not rounded away
    set_gradients(optimizer)
    optimizer.step()
    for expert, rate in (("reasoning", 1e-6), ("denoising", 3e-5)):
        moved = torch.cat([p.detach().abs().flatten() for p in optimizer.parameters[expert].values()])
        assert float(moved.max()) <= rate * (1 + 1e-4) and float(moved.min()) >= rate * (1 - 1e-4)


def test_parameters_without_gradient_stay_though_weights_decay():
    policy = small_policy()
    optimizer = ExpertOptimizer(policy, Optimizer(weight_decay=0.5, lr_reasoning=0.1, lr_denoising=0.1), 1)
    before = weights(policy)
    set_gradients(optimizer)
    for parameter in optimizer.parameters["denoising"].values():
        parameter.grad = None
    assert optimizer.step()["denoising"] == 0.0
    after = policy.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in optimizer.parameters["denoising"])
    assert all(not torch.equal(after[name], before[name]) for name in optimizer.parameters["reasoning"])


def test_each_expert_is_clipped_by_its_own_norm():
    optimizer = ExpertOptimizer(small_policy(), Optimizer(max_grad_norm=1.0), 1)
    set_gradients(optimizer, norms={"reasoning": 10.0, "denoising": 0.5})
    norms = optimizer.step()
    assert norms == pytest.approx({"reasoning": 10.0, "denoising": 0.5}, rel=1e-4)  # as they were before clipping
    assert gradient_norm(optimizer, "reasoning") == pytest.approx(1.0, rel=1e-4)
    assert gradient_norm(optimizer, "denoising") == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("expert", EXPERTS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing(expert, bad):
    policy = small_policy()
    optimizer = ExpertOptimizer(policy, Optimizer(), 1)
    set_gradients(optimizer)
    name, parameter = list(optimizer.parameters[expert].items())[3]
    parameter.grad.view(-1)[1] = bad
    before = weights(policy)
    with pytest.raises(TrainingFault) as caught:
        optimizer.step()
    assert name in str(caught.value) and expert in str(caught.value) and "nothing was updated" in str(caught.value)
    assert unchanged(policy, before)
    assert not optimizer.state()


# ---------------------------------------------------------------- state


def steps(optimizer, seeds):
    for seed in seeds:
        set_gradients(optimizer, seed)
        optimizer.step()


def test_a_restored_optimizer_goes_on_as_if_nothing_had_been():
    whole, first, second = (small_policy() for _ in range(3))
    config = Optimizer(lr_reasoning=1e-2, lr_denoising=1e-2)
    steps(ExpertOptimizer(whole, config, 3), (1, 2, 3))
    stopped = ExpertOptimizer(first, config, 3)
    steps(stopped, (1,))
    second.model.load_state_dict(first.model.state_dict())
    resumed = ExpertOptimizer(second, config, 3)
    resumed.load_state({name: value.clone() for name, value in stopped.state().items()})
    steps(resumed, (2, 3))
    assert unchanged(whole, weights(second))
    without = ExpertOptimizer(first, config, 3)  # what is compared does see a lost state
    steps(without, (2, 3))
    assert not unchanged(whole, weights(first))


def test_loading_copies():
    policy = small_policy()
    optimizer = ExpertOptimizer(policy, Optimizer(), 3)
    steps(optimizer, (1,))
    state = {name: value.clone() for name, value in optimizer.state().items()}
    kept = {name: value.clone() for name, value in state.items()}
    resumed = ExpertOptimizer(policy, Optimizer(), 3)
    resumed.load_state(state)
    steps(resumed, (2,))
    assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_the_state_of_another_model_is_refused():
    optimizer = ExpertOptimizer(small_policy(), Optimizer(), 1)
    with pytest.raises(ValueError, match=r"'nobody\.weight'.*another model"):
        optimizer.load_state({"nobody.weight|exp_avg": torch.zeros(1)})


# ---------------------------------------------------------------- average


def shift_weights(policy, by):
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(by)


def test_swapping_twice_changes_nothing():
    policy = small_policy()
    average = MovingAverage(policy, 0.9)
    shift_weights(policy, 1.0)
    average.update(0)
    raw, shadow = weights(policy), {name: value.clone() for name, value in average.shadow.items()}
    average.swap()
    assert all(torch.equal(p, shadow[name]) for name, p in average.parameters.items())
    assert not unchanged(policy, raw)
    average.swap()
    assert unchanged(policy, raw)
    assert all(torch.equal(average.shadow[name], shadow[name]) for name in shadow)


def test_the_memory_of_the_average_grows_to_decay():
    policy = small_policy()
    average = MovingAverage(policy, 0.5)
    name = next(iter(average.shadow))
    expected = average.shadow[name].clone()
    for step, memory in ((0, 1 / 10), (3, 4 / 13), (100, 0.5)):
        shift_weights(policy, 1.0)
        average.update(step)
        expected = memory * expected + (1 - memory) * average.parameters[name].detach()
        assert torch.allclose(average.shadow[name], expected, atol=1e-6)
