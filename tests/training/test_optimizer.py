"""Two experts with their own rates and clipping, a schedule, moments in 8 bits, and an average of the weights."""

import itertools
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load, save

from small_models import small_policy
from tolerances import assert_same_sums
from unigrpo.recipe import Optimizer
from unigrpo.training.optimizer import ExpertOptimizer, MovingAverage, TrainingFault, schedule


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
    assert tuple(optimizer.parameters) == ("reasoning", "denoising")
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


@pytest.mark.parametrize("expert", ("reasoning", "denoising"))
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


@pytest.mark.parametrize(("epsilon", "harmless"), [(1e-15, True), (1e-8, False)])
def test_the_scale_of_a_loss_does_not_matter_where_epsilon_is_small(epsilon, harmless):
    """Invariant 35, at the size of a picture's gradients (rms 1e-8, docs/math.md#precision) and without clipping."""

    def moved(scale):
        policy = small_policy()
        config = Optimizer(lr_denoising=1e-3, eps_denoising=epsilon, max_grad_norm=1e9)
        optimizer, before = ExpertOptimizer(policy, config, 1), weights(policy)
        count = sum(p.numel() for p in optimizer.parameters["denoising"].values())
        set_gradients(optimizer, norms={"denoising": scale * 1e-8 * math.sqrt(count)})
        optimizer.step()
        after = policy.model.state_dict()
        return torch.cat([(after[name] - before[name]).flatten() for name in optimizer.parameters["denoising"]])

    once, hundredfold = moved(1.0), moved(100.0)
    assert bool(((hundredfold - once).norm() < 0.01 * once.norm()) == harmless)


# ---------------------------------------------------------------- one expert alone


def frozen_but(expert):
    policy = small_policy()
    chosen = policy.reasoning_parameters() if expert == "reasoning" else policy.denoising_parameters()
    for parameter in policy.model.parameters():
        parameter.requires_grad_(any(parameter is p for p in chosen.values()))
    return policy


@pytest.mark.parametrize("expert", ("reasoning", "denoising"))
def test_an_expert_that_is_frozen_has_no_group_and_a_norm_of_zero(expert):
    policy = frozen_but(expert)
    optimizer = ExpertOptimizer(policy, Optimizer(lr_reasoning=0.1, lr_denoising=0.1), 1)
    average, before = MovingAverage(policy, 0.5), weights(policy)
    (other,) = set(("reasoning", "denoising")) - {expert}
    assert optimizer.trained == (expert,) and optimizer.parameters[other] == {}
    assert [group["expert"] for group in optimizer.adam.param_groups] == [expert]
    assert optimizer.set_iteration(0) == {expert: 0.1, other: 0.0}
    set_gradients(optimizer, norms={expert: 2.0})
    assert optimizer.step() == pytest.approx({expert: 2.0, other: 0.0}, rel=1e-4)
    moved = {name for name, value in policy.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == optimizer.parameters[expert].keys() == average.shadow.keys()
    assert {entry.rsplit("|", 1)[0] for entry in optimizer.state()} == moved


def test_a_frozen_model_cannot_be_trained():
    policy = small_policy()
    policy.model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"all weights of the model are frozen.*set model\.lora\.experts"):
        ExpertOptimizer(policy, Optimizer(), 1)


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


def test_the_state_of_another_optimizer_is_refused():
    optimizer = ExpertOptimizer(small_policy(), Optimizer(), 1)
    name, parameter = next(iter(optimizer.parameters["reasoning"].items()))
    for key, value in (("state1", torch.zeros_like(parameter)), ("exp_avg", torch.zeros(3))):
        with pytest.raises(ValueError, match=f"'{key}'.*which optimizer.kind adamw does not keep so"):
            optimizer.load_state({f"{name}|{key}": value})


# ---------------------------------------------------------------- moments in 8 bits


BLOCK, SMALL = 64, 512  # of the stand-in below; bitsandbytes: 256 and 4096


class AdamW8bit(torch.optim.Optimizer):
    """What bitsandbytes keeps: a step that is an int, codes in uint8 or small moments in fp32, maps shared by all."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.maps = {"qmap1": torch.linspace(-1, 1, 256) ** 3, "qmap2": torch.linspace(0, 1, 256) ** 3}
        self.made = 0

    def init_state(self, group, p, gindex, pindex):
        assert self.param_groups[gindex] is group and group["params"][pindex] is p
        state, small = self.state[p], p.numel() < SMALL
        state["step"], self.made = 0, self.made + 1
        for number in "12":
            state[f"state{number}"] = torch.zeros_like(p, dtype=torch.float32 if small else torch.uint8)
            if not small:
                state[f"qmap{number}"] = self.maps[f"qmap{number}"]
                state[f"absmax{number}"] = torch.zeros(-(-p.numel() // BLOCK))

    def read(self, state, number):
        moment = state[f"state{number}"]
        if moment.dtype == torch.float32:
            return moment
        scales = state[f"absmax{number}"].repeat_interleave(BLOCK)[: moment.numel()].view_as(moment)
        return state[f"qmap{number}"][moment.long()] * scales

    def write(self, state, number, value):
        if state[f"state{number}"].dtype == torch.float32:
            return state[f"state{number}"].copy_(value)
        blocks = torch.nn.functional.pad(value.flatten(), (0, -value.numel() % BLOCK)).view(-1, BLOCK)
        scales = blocks.abs().amax(1)
        codes = torch.searchsorted(state[f"qmap{number}"], blocks / scales.clamp_min(1e-30)[:, None]).clamp(max=255)
        state[f"state{number}"].copy_(codes.flatten()[: value.numel()].view_as(value))
        return state[f"absmax{number}"].copy_(scales)

    @torch.no_grad()
    def step(self):
        for number, group in enumerate(self.param_groups):
            for place, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.init_state(group, p, number, place)
                state, (beta1, beta2) = self.state[p], group["betas"]
                state["step"] += 1
                first = beta1 * self.read(state, 1) + (1 - beta1) * p.grad
                second = beta2 * self.read(state, 2) + (1 - beta2) * p.grad.square()
                p.mul_(1 - group["lr"] * group["weight_decay"])
                unbiased = first / (1 - beta1 ** state["step"])
                p.sub_(group["lr"] * unbiased / ((second / (1 - beta2 ** state["step"])).sqrt() + group["eps"]))
                self.write(state, 1, first)
                self.write(state, 2, second)


class PagedAdamW8bit(AdamW8bit):
    pass


EIGHT_BIT = {"adamw_8bit": AdamW8bit, "paged_adamw_8bit": PagedAdamW8bit}


@pytest.fixture
def bitsandbytes(monkeypatch):
    classes = SimpleNamespace(AdamW8bit=AdamW8bit, PagedAdamW8bit=PagedAdamW8bit)
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=classes))


def eight_bit(kind="adamw_8bit"):
    return Optimizer(kind=kind, lr_reasoning=1e-3, lr_denoising=1e-2, eps_reasoning=1e-2, eps_denoising=1e-3)


@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_the_kind_and_both_experts_settings_reach_bitsandbytes(bitsandbytes, kind):
    adam = ExpertOptimizer(small_policy(), eight_bit(kind), 1).adam
    assert type(adam) is EIGHT_BIT[kind]
    assert [(g["expert"], g["lr"], g["eps"]) for g in adam.param_groups] == [
        ("reasoning", 1e-3, 1e-2),
        ("denoising", 1e-2, 1e-3),
    ]
    assert all(g["betas"] == (0.9, 0.999) and g["weight_decay"] == 0.0 for g in adam.param_groups)


@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_without_bitsandbytes_the_user_is_told_what_to_install(monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=rf"kind = {kind} needs the package bitsandbytes: pip install '.\[8bit\]'"):
        ExpertOptimizer(small_policy(), eight_bit(kind), 1)


@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_a_restored_8bit_optimizer_goes_on_to_the_bit(bitsandbytes, kind):
    whole, first, second = (small_policy() for _ in range(3))
    for policy in (whole, first, second):
        policy.model.language_model.lm_head.weight.requires_grad_(False)
    steps(ExpertOptimizer(whole, eight_bit(kind), 3), (1, 2, 3))
    stopped = ExpertOptimizer(first, eight_bit(kind), 3)
    steps(stopped, (1,))
    second.model.load_state_dict(first.model.state_dict())
    resumed, state = ExpertOptimizer(second, eight_bit(kind), 3), load(save(stopped.state()))  # as a checkpoint does
    resumed.load_state(state)
    assert resumed.state().keys() == state.keys()
    assert all(
        torch.equal(value, state[name]) and value.dtype == state[name].dtype for name, value in resumed.state().items()
    )
    assert {type(kept["step"]) for kept in resumed.adam.state.values()} == {int}
    assert {value.dtype for name, value in state.items() if name.endswith("state1")} == {torch.uint8, torch.float32}
    steps(resumed, (2, 3))
    assert unchanged(whole, weights(second))
    assert resumed.adam.made == len(resumed.adam.state)  # each state was made once, and by bitsandbytes
    without = ExpertOptimizer(first, eight_bit(kind), 3)  # what is compared does see a lost state
    steps(without, (2, 3))
    assert not unchanged(whole, weights(first))


def test_parameters_without_a_saved_state_start_afresh(bitsandbytes):
    policy = small_policy()
    stopped = ExpertOptimizer(policy, eight_bit(), 3)
    set_gradients(stopped)
    for parameter in stopped.parameters["denoising"].values():
        parameter.grad = None
    stopped.step()
    resumed = ExpertOptimizer(policy, eight_bit(), 3)
    resumed.load_state(stopped.state())
    assert resumed.adam.made == len(resumed.parameters["reasoning"])
    steps(resumed, (2,))
    assert resumed.adam.made == sum(map(len, resumed.parameters.values()))


def test_an_8bit_state_and_a_plain_one_are_not_each_other(bitsandbytes):
    policy = small_policy()
    plain, eight = ExpertOptimizer(policy, Optimizer(), 3), ExpertOptimizer(policy, eight_bit(), 3)
    steps(plain, (1,))
    steps(eight, (1,))
    with pytest.raises(ValueError, match=r"optimizer\.kind adamw does not keep so"):
        ExpertOptimizer(policy, Optimizer(), 3).load_state(eight.state())
    with pytest.raises(ValueError, match=r"optimizer\.kind adamw_8bit does not keep so"):
        ExpertOptimizer(policy, eight_bit(), 3).load_state(plain.state())
    name = next(name for name, value in eight.state().items() if value.dtype == torch.uint8)
    with pytest.raises(ValueError, match=r"torch\.float32.*does not keep so"):
        ExpertOptimizer(policy, eight_bit(), 3).load_state({name: eight.state()[name].float()})


@pytest.mark.parametrize("kind", ["adamw", *EIGHT_BIT])
def test_each_expert_moves_at_most_its_own_rate(bitsandbytes, kind):
    """Invariant 29, for every kind of optimizer."""
    policy = small_policy()
    config = Optimizer(kind=kind, lr_reasoning=1e-6, lr_denoising=3e-5, eps_reasoning=1e-30, eps_denoising=1e-30)
    optimizer = ExpertOptimizer(policy, config, 1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.zero_()
    steps(optimizer, (0,))
    for expert, rate in (("reasoning", 1e-6), ("denoising", 3e-5)):
        moved = torch.cat([p.detach().abs().flatten() for p in optimizer.parameters[expert].values()])
        assert 0.0 < float(moved.max()) <= rate * (1 + 1e-4)


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
        assert_same_sums(average.shadow[name], expected, terms=3)
