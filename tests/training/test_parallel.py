"""What ranks divide, what they tell each other, and which jobs are refused; all in one process."""

import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny_runs
from small_models import sample, small_policy
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Optimizer, load_recipe
from unigrpo.runs import launching, measuring, ranks
from unigrpo.tools.planning.modes import Chosen, chosen
from unigrpo.training import messages
from unigrpo.training.optimizer import ExpertOptimizer, TrainingFault
from unigrpo.training.parallel import ONE_PROCESS, World, buckets
from unigrpo.training.sharing import (
    Unit,
    light,
    minibatch_of,
    moves,
    packed,
    portions_of,
    share_of,
    tokens_of,
    units_of,
    unpacked,
    with_verdict,
)
from unigrpo.training.update import Reached


@given(
    size=st.integers(1, 8),
    prompts=st.integers(1, 12),
    thoughts=st.integers(1, 6),
    together=st.integers(1, 3),
    minibatches=st.integers(1, 4),
)
def test_every_sample_is_drawn_by_one_rank_and_thoughts_stay_together(size, prompts, thoughts, together, minibatches):
    samples, drawn, loads = thoughts * together, [], []
    for rank in range(size):
        mine = [
            (prompt, sample)
            for portion in portions_of(World(rank, size), prompts, samples, together=together, minibatches=minibatches)
            for prompt in portion.prompts
            for sample in range(portion.first, portion.first + portion.count)
        ]
        assert all((p, s - s % together + k) in mine for p, s in mine for k in range(together))
        drawn += mine
        loads.append(len(mine))
    assert sorted(drawn) == [(prompt, sample) for prompt in range(prompts) for sample in range(samples)]
    assert max(loads) - min(loads) <= together * min(minibatches, prompts)


def test_one_process_draws_whole_groups_in_one_portion():
    assert [vars(p) for p in portions_of(ONE_PROCESS, 4, 6, minibatches=2)] == [
        {"prompts": (0, 1, 2, 3), "first": 0, "count": 6}
    ]
    assert share_of(ONE_PROCESS, 5) == slice(0, 5)


def test_groups_that_divide_stay_whole():
    portions = [portions_of(World(rank, 2), 4, 6, minibatches=2) for rank in range(2)]
    assert [[(p.prompts, p.first, p.count) for p in some] for some in portions] == [[((0, 2), 0, 6)], [((1, 3), 0, 6)]]


def test_minibatches_are_of_whole_groups_wherever_their_samples_are():
    assert minibatch_of([7, 7, 8, 8, 9, 9, 10], 2) == {7: 0, 8: 0, 9: 1, 10: 1}
    assert minibatch_of([3], 4) == {3: 0}


# Balance


def units(*tokens, rank=0):
    return [Unit(((rank, index),), count) for index, count in enumerate(tokens)]


def test_even_ranks_keep_what_they_have():
    assert moves([units(10, 10), units(9, 11, rank=1)]) == []


@given(st.lists(st.lists(st.integers(1, 1000), min_size=1, max_size=12), min_size=2, max_size=6))
def test_moving_evens_out_and_loses_nothing(tokens):
    held = [units(*some, rank=rank) for rank, some in enumerate(tokens)]
    after = [list(some) for some in held]
    for unit, start, end in moves(held):
        after[start].remove(unit)
        after[end].append(unit)
    assert sorted(u.keys for some in after for u in some) == sorted(u.keys for some in held for u in some)
    before, now = ([sum(u.tokens for u in some) for some in side] for side in (held, after))
    assert max(now) <= max(before) and all(after)
    gap, mean = max(now) - min(now), sum(now) / len(now)
    assert gap <= 0.1 * mean or all(u.tokens >= gap for u in after[now.index(max(now))])


def test_a_long_thinking_moves_others_away():
    (moved,) = moves([units(100, 10, 10), units(10, 10, 10, rank=1)][:2])[:1]
    assert moved[1:] == (0, 1) and moved[0].tokens == 10


# What travels


def test_what_all_know_is_small_and_what_moves_is_whole():
    policy = small_policy()
    made = [replace(t, reward=1.0) for t in sample(policy)]
    known = [light(t) for t in made]
    assert all(len(pickle.dumps(t)) < 5_000 for t in known)
    assert [t.images[-1].path.steps for t in known] == [t.images[-1].path.steps for t in made]
    judged = [t.with_advantages(0.5, -0.5) for t in known]
    back = [with_verdict(t, k) for t, k in zip(made, judged, strict=True)]
    assert back[0].sampled_texts[0].advantage == 0.5 and back[0].images[-1].advantage == -0.5
    assert back[0].images[-1].latents is made[0].images[-1].latents
    again = unpacked(pickle.loads(pickle.dumps(packed(made))), torch.device("cpu"))
    assert all(torch.equal(a.images[-1].path.x, b.images[-1].path.x) for a, b in zip(again, made, strict=True))
    assert tokens_of(again[0]) == tokens_of(made[0]) > 3 * policy.spec.num_tokens
    assert [u.tokens for u in units_of(made)] == [tokens_of(t) for t in made]


def test_samples_of_a_thought_move_as_one():
    one, two, *_ = sample(small_policy())
    shared = [replace(one, thought=0), replace(two, thought=0)]
    assert len(units_of(shared)) == 1 and units_of(shared)[0].tokens == tokens_of(one) + tokens_of(two)


def test_gradients_travel_in_buckets_of_one_dtype():
    sizes = [2**24, 5, 7]
    parameters = [torch.nn.Parameter(torch.empty(size, device="meta")) for size in sizes]
    parameters.append(torch.nn.Parameter(torch.empty(3, device="meta", dtype=torch.float64)))
    assert [[p.numel() for p in some] for some in buckets(parameters)] == [[2**24], [5, 7], [3]]


# One process


def test_one_process_is_asked_nothing():
    assert ONE_PROCESS.gather(3) == [3] and ONE_PROCESS.to_first(3) == [3] and ONE_PROCESS.told(3) == 3
    assert ONE_PROCESS.most(3) == 3 and ONE_PROCESS.sums(1.5, 2.0) == [1.5, 2.0]
    with pytest.raises(KeyError), ONE_PROCESS.together():
        raise KeyError("as it was raised")


# The guard


def test_an_expert_that_is_cut_off_from_its_loss_is_named():
    policy = small_policy()
    optimizer = ExpertOptimizer(policy, Optimizer(), 1)
    for parameter in policy.reasoning_parameters().values():
        parameter.grad = torch.ones_like(parameter)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    with pytest.raises(TrainingFault, match=r"the denoising expert has no gradient.*nothing was updated"):
        optimizer.step(learning={"reasoning", "denoising"})
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
    assert optimizer.step(learning={"reasoning"})["denoising"] == 0.0


def test_what_a_gradient_has_reached_is_noticed():
    policy, reached = small_policy(), Reached()
    from small_models import mixed_items

    answers = policy.replay(mixed_items(policy))
    reached.watch(answers)
    assert reached.experts() == frozenset()
    sum(v.square().sum() for answer in answers for v in answer.velocities).backward(retain_graph=True)
    assert reached.experts() == {"denoising"}
    (answers[0].log_probs.sum() * 0.0).backward()
    assert reached.experts() == {"denoising"}  # a gradient of 0 teaches nothing
    assert Reached.of([frozenset({"reasoning"}), frozenset()]).experts() == {"reasoning"}


# What is refused


def recipe(**keys):
    return tiny_runs.tiny_recipe(**keys)


def test_a_rank_without_work_is_refused():
    ranks.check(recipe(), 6, 6)
    with pytest.raises(ConfigError, match=r"7 ranks, but shapes/unigrpo has 6 samples in a minibatch.*use at most 6"):
        ranks.check(recipe(), 7, 7)
    with pytest.raises(ConfigError, match=r"has 4 thoughts in a minibatch .*/ images_per_thinking.*use at most 4"):
        ranks.check(recipe(data__group_size=4, rollout__images_per_thinking=2), 5, 5)
    supervised = load_recipe(tiny_runs.PRETRAIN, tiny_runs.overrides(tiny_runs.PRETRAIN))
    with pytest.raises(ConfigError, match="has 4 demonstrations in a step"):
        ranks.check(supervised, 5, 5)


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 ranks on this machine, which has 1 GPU: each rank needs one of its own"):
        ranks.check(recipe(model__device="cuda"), 2, 2)
    ranks.check(recipe(model__device="cuda"), 2, 1)  # on two machines


def test_a_mesh_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"parallel\.replicas = 2 with 3 ranks"):
        ranks.check(recipe(parallel__mode="shard", parallel__replicas=2), 3, 3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"parallel__mode": "replicate", "parallel__replicas": 2}, "parallel.replicas = 2 with parallel.mode = repl"),
        (
            {"parallel__mode": "shard", "optimizer__kind": "adamw_8bit", "optimizer__eps_denoising": 1e-8},
            "bitsandbytes",
        ),
        ({"parallel__mode": "sharded"}, "parallel.mode"),
    ],
)
def test_settings_that_go_with_nothing_else_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        recipe(**keys)


def test_demonstrations_are_not_sharded():
    with pytest.raises(ConfigError, match="shard with demonstrations"):
        load_recipe(tiny_runs.PRETRAIN, [*tiny_runs.overrides(tiny_runs.PRETRAIN), "--parallel.mode", "shard"])


@pytest.mark.parametrize("count", ["-1", "100000"])
def test_a_count_of_ranks_that_means_nothing(tmp_path, capsys, count):
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", "--nproc", count) == 2
    assert f"--nproc {count}: it must be from 1 to 1024" in capsys.readouterr().err
    assert tiny_runs.listed(tmp_path) == []


def test_too_many_ranks_are_refused_before_any_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("unigrpo.commands.train.launch", lambda *given: pytest.fail("ranks were started"))
    words = ["train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", "--nproc", "9", *tiny_runs.overrides()]
    assert tiny_runs.unigrpo(*words) == 2
    assert "9 ranks, but shapes/unigrpo has 6 samples" in capsys.readouterr().err
    assert tiny_runs.listed(tmp_path) == []


# What is chosen


def test_auto_replicates_on_cpus_and_says_why():
    taken = chosen(recipe(), 2, None)
    assert (taken.mode, taken.reason) == ("replicate", "auto, and on CPUs every rank holds all weights")
    assert chosen(recipe(parallel__mode="shard"), 2, None) == Chosen("shard", "as the recipe says")


def test_auto_asks_the_memory_model():
    large = load_recipe("bagel/unigrpo")
    taken = chosen(large, 8, 80 * 10**9)
    assert taken.mode == "shard" and "replicate would take 290 GB" in taken.reason
    assert chosen(large, 8, 2000 * 10**9).mode == "replicate"
    assert chosen(load_recipe("bagel/unigrpo-lora-1gpu"), 8, 141 * 10**9).mode == "replicate"


def test_ranks_are_chosen_only_where_they_are_faster():
    assert measuring.Rates(2, 100.0, 2, 105.0).chosen == 1
    assert measuring.Rates(1, 100.0, 2, 180.0).chosen == 2
    assert str(measuring.Rates(2, 100.0, 2, 150.0)) == (
        "2 ranks of one thread do 1.50 times the work of one process of 2 threads here: 2 ranks"
    )
    assert measuring.rates(1) is None


# Exit codes


@pytest.mark.parametrize(
    ("failed", "code", "said"),
    [
        ({}, 0, ""),
        ({0: (11, 130)}, 130, ""),
        ({0: (11, 2), 1: (12, 2)}, 2, ""),
        ({1: (12, -9), 0: (11, 2)}, 1, "rank 1 (process 12) was ended by SIGKILL"),
        ({1: (12, 1), 0: (11, -15)}, 1, "rank 1 ended with exit code 1"),
    ],
)
def test_the_exit_code_of_a_job(capsys, failed, code, said):
    assert launching.verdict(failed) == code
    err = capsys.readouterr().err
    assert said in err and bool(err) == bool(said)


def test_a_rank_has_torchruns_variables_and_one_thread(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = launching.environment(1, 2, 4000)
    assert (found["RANK"], found["WORLD_SIZE"], found["OMP_NUM_THREADS"]) == ("1", "2", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launching.environment(1, 2, 4000)["OMP_NUM_THREADS"] == "3"


# What ranks tell each other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (4, 5)])
def test_a_tensor_arrives_bit_for_bit(dtype, shape):
    sent = torch.randn(shape).to(dtype)
    (got,) = messages.loads(messages.dumps((sent,)))
    assert got.dtype == sent.dtype and got.shape == sent.shape and torch.equal(got, sent)
    got.zero_()  # its own memory, which may be written to


def test_of_a_view_only_its_own_numbers_are_sent_and_what_is_shared_is_sent_once():
    batch = torch.randn(1000, 100)
    message = messages.dumps([batch[3], batch[:, 7], batch[3]])
    assert len(message) < 3 * 1000 * 4
    row, column, _ = messages.loads(message)
    assert torch.equal(row, batch[3]) and torch.equal(column, batch[:, 7])
    one = batch[5]
    first, second = messages.loads(messages.dumps([one, one]))
    assert first is second


def test_a_weight_is_sent_with_its_kind():
    got = messages.loads(messages.dumps(torch.nn.Parameter(torch.ones(3))))
    assert isinstance(got, torch.nn.Parameter) and torch.equal(got, torch.ones(3))
