"""What goes wrong with shared-out weights, run by two ranks: each trap prints its name where ours does not step in.

``python rank_traps.py NAME ...``, started by rank_runs.together. A trap that has no effect any more fails too, so that
a remedy that is no longer needed is found.
"""

import itertools
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch.distributed.tensor import DTensor

from formulas import combination, queries_of
from small_models import TRAINING, prompts, sample, small_policy
from unigrpo import seeds
from unigrpo.build import data
from unigrpo.build.runs import RecipeEvaluator
from unigrpo.build.sampling import validation_reward
from unigrpo.evaluation.evaluator import Evaluation
from unigrpo.objectives.flow_grpo import FlowGRPO
from unigrpo.objectives.regularisers import Regulariser
from unigrpo.recipe import Optimizer, Parallel, load_recipe
from unigrpo.shard_index import ShardIndex, index_path
from unigrpo.training import messages, sharding, shards
from unigrpo.training.lora import Adapter
from unigrpo.training.optimizer import ExpertOptimizer, MovingAverage, TrainingFault
from unigrpo.training.parallel import OtherRank, joined, local, whole
from unigrpo.training.replay import NO_RANKS, Batch, Ranks, replay
from unigrpo.training.sharing import share_of
from unigrpo.training.update import backward, update
from unigrpo.training.writing import Background
from unigrpo.trajectory import Reference

METHOD = combination(regulariser=Regulariser(weight=0.3), image=FlowGRPO(clip_range=1e-3))
CPU = torch.device("cpu")


def batch_of(policy):
    advantages = itertools.cycle([1.0, -0.5, 2.0, -1.5, 0.7, -0.3])
    ready = [t.with_advantages(a, a) for t, a in zip(sample(policy), advantages, strict=False)]
    draws = [queries_of(METHOD, t, seeds.generator(0, 0, t.prompt.position, t.sample, "draws")) for t in ready]
    with torch.no_grad():
        answers = replay(small_policy(seed=7), Batch(ready, draws), 1.0)
    known = [
        replace(t, reference=Reference(torch.cat(a.velocities), a.log_probs))
        for t, a in zip(ready, answers, strict=True)
    ]
    return Batch(known, draws)


def still(policy):
    return ExpertOptimizer(policy, Optimizer(lr_reasoning=0.0, lr_denoising=0.0, max_grad_norm=1e9), 1)


def share(policy, world, **options):
    sharding.shard(policy, sharding.mesh_of(world, CPU, 1), Parallel(mode="shard", **options))
    return policy


def step(policy, optimizer, batch, ranks=NO_RANKS, micro_batch=2):
    return update(policy, optimizer, METHOD, batch, micro_batch=micro_batch, temperature=1.0, ranks=ranks)


def own_part(batch, world):
    """Four trajectories for rank 0 and two for rank 1, which keeps step with one of its own."""
    rows = slice(0, 4) if world.first else slice(4, 6)
    part = batch.part(rows.start, rows.stop)
    return part, Ranks(world, part.part(0, 1))


def close(ours, theirs, bound=1e-5):
    gap = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))
    assert gap <= bound, gap


def logits_of(policy):
    with torch.no_grad():
        cache = policy.prefill([policy.prompt_segments(prompts(1)[0], think=True)])
        return policy.feed(cache, torch.tensor([5]), torch.tensor([True]))


def each_expert_gets_its_gradient(world, again=False):
    """backward(inputs=...) loses the image half silently: ours is that of one process, of uneven ranks too."""
    policy, reference = small_policy(), small_policy()
    batch = batch_of(policy)
    expected = step(reference, still(reference), batch)
    gradients = {n: p.grad.clone() for n, p in reference.model.named_parameters() if p.grad is not None}
    policy.model.activation_checkpointing = again
    share(policy, world)
    part, ranks = own_part(batch, world)
    found = step(policy, still(policy), part, ranks)
    for expert, norm in expected.grad_norm.items():
        assert norm > 0 and abs(found.grad_norm[expert] / norm - 1) < 1e-5, (
            expert,
            found.grad_norm,
            expected.grad_norm,
        )
    for name, parameter in policy.model.named_parameters():
        if name in gradients:
            close(whole(parameter.grad), gradients[name], 1e-4)
    for name, value in expected.stats.items():
        assert abs(found.stats[name] - value) < 1e-5 * max(1, abs(value)), name
    assert abs(found.entropy - expected.entropy) < 1e-5


def recomputation_enters_no_door(world):
    """A layer is entered once a forward, and not at all when it is computed again."""
    each_expert_gets_its_gradient(world, again=True)


def one_process_way_is_noticed(world):
    """The backward of one process trains the image half wrongly; the guard names an expert that has nothing."""
    policy, reference = small_policy(), small_policy()
    batch = batch_of(policy)
    expected = step(reference, still(reference), batch).grad_norm["denoising"]
    share(policy, world)
    part = batch.part(0, 2)
    losses = METHOD.losses(part.trajectories, replay(policy, part, 1.0), part.queries)
    backward(policy, METHOD, losses, 2)
    grads = [p.grad for p in policy.denoising_parameters().values() if p.grad is not None]
    norm = float(whole(torch.nn.utils.get_total_norm(grads))) if grads else 0.0
    assert abs(norm / expected - 1) > 0.01, "backward(inputs=...) works with FSDP2 now: one way is enough"
    optimizer = still(policy)
    for parameter in policy.denoising_parameters().values():
        parameter.grad = None
    try:
        optimizer.step(learning={"reasoning", "denoising"})
    except TrainingFault as fault:
        assert "the denoising expert has no gradient" in str(fault)
    else:
        raise AssertionError("a missing gradient was not noticed")


def a_forward_sees_the_weights_of_now(world):
    """The root's own group is gathered anew after a step, and after weights were exchanged with their average."""
    policy, reference = small_policy(), small_policy()
    batch = batch_of(policy)
    settings = Optimizer(lr_reasoning=1e-2, lr_denoising=1e-2)
    optimizers = [ExpertOptimizer(p, settings, 1) for p in (reference,)]
    share(policy, world)
    logits_of(policy)  # a rollout comes first, and the optimizer is made after it
    optimizers.append(ExpertOptimizer(policy, settings, 1))
    averages = [MovingAverage(reference, 0.5), MovingAverage(policy, 0.5)]
    part, ranks = own_part(batch, world)
    step(reference, optimizers[0], batch)
    step(policy, optimizers[1], part, ranks)
    close(logits_of(policy), logits_of(reference))
    embedding = "language_model.model.embed_tokens.weight"
    moved = whole(dict(policy.model.named_parameters())[embedding].detach())
    close(moved, dict(reference.model.named_parameters())[embedding].detach())
    assert not torch.equal(moved, small_policy().model.state_dict()[embedding])
    for average in averages:
        average.update(3)
    for name, value in averages[0].shadow.items():
        close(whole(averages[1].shadow[name]), value, 1e-6)
    for average in averages:
        average.swap()
    close(logits_of(policy), logits_of(reference))
    assert not torch.equal(logits_of(reference), logits_of(small_policy()))
    for average in averages:
        average.swap()
    close(logits_of(policy), logits_of(reference))


def tied_weights_stay_tied(world):
    """Embedding and head in one group: one parameter, before and after."""
    policy = small_policy()
    language = policy.model.language_model
    language.lm_head.weight = language.model.embed_tokens.weight
    expected = logits_of(policy)
    share(policy, world)
    assert language.lm_head.weight is language.model.embed_tokens.weight
    close(logits_of(policy), expected)


def norms_are_numbers(world):
    """The norm of shared-out gradients is one number, the same on all ranks, and clips as one process does."""
    policy, reference = small_policy(), small_policy()
    batch, settings = batch_of(policy), Optimizer(lr_reasoning=1e-2, lr_denoising=1e-2, max_grad_norm=1e-3)
    expected = step(reference, ExpertOptimizer(reference, settings, 1), batch).grad_norm
    share(policy, world)
    part, ranks = own_part(batch, world)
    found = step(policy, ExpertOptimizer(policy, settings, 1), part, ranks).grad_norm
    assert all(type(norm) is float for norm in found.values()) and world.gather(found)[0] == found
    assert all(abs(found[expert] / norm - 1) < 1e-5 for expert, norm in expected.items())
    weights = dict(reference.model.named_parameters())
    for name, parameter in policy.model.named_parameters():
        close(whole(parameter.detach()), weights[name].detach(), 1e-5)


def adapters_come_before_shards(world):
    """Adapters first: their gradients are summed over the ranks, and switching them off for v_ref loses nothing."""
    found = []
    for sharded in (False, True):
        policy = small_policy()
        policy.model.requires_grad_(False)
        targets = policy.adapter_targets(["reasoning", "denoising"])
        adapter = Adapter.create(policy.model, targets, rank=4, alpha=8.0, seed=0, base_name=None)
        batch, settings = batch_of(policy), Optimizer(lr_reasoning=1e-2, lr_denoising=1e-2)
        if sharded:
            share(policy, world)
        with adapter.disabled(), torch.no_grad():
            replay(policy, batch.part(0, 1), 1.0)
        part, ranks = own_part(batch, world) if sharded else (batch, NO_RANKS)
        optimizer = ExpertOptimizer(policy, settings, 1)
        step(policy, optimizer, part, ranks)
        step(policy, optimizer, part, ranks)
        found.append({n: whole(p.detach()) for n, p in adapter.parameters().items()})
        if sharded:
            with tempfile.TemporaryDirectory() as place, sharding.gathered(policy.model, world):
                if world.first:
                    adapter.save(Path(place))
                    again = small_policy()
                    again.model.requires_grad_(False)
                    loaded = Adapter.load(again.model, Path(place))
                    for name, value in loaded.parameters().items():
                        close(value.detach(), found[1][name], 0.0)
    plain, shared = found
    assert any(bool(value.any()) for name, value in shared.items() if "lora_B" in name)
    for name, value in plain.items():
        close(shared[name], value, 1e-4)


def saved_whole_and_read_whole(world):
    """What rank 0 writes is what one process writes; what is read is shared out again, the optimizer's state too."""
    policy, reference = small_policy(), small_policy()
    batch, settings = batch_of(policy), Optimizer(lr_reasoning=1e-2, lr_denoising=1e-2)
    share(policy, world)
    part, ranks = own_part(batch, world)
    optimizer = ExpertOptimizer(policy, settings, 1)
    step(policy, optimizer, part, ranks)
    state = {name: whole(value) for name, value in optimizer.state().items()}
    assert state and not any(isinstance(value, DTensor) for value in state.values())
    folder = Path(world.told(tempfile.mkdtemp() if world.first else None))
    with sharding.gathered(policy.model, world):
        if world.first:
            policy.save(folder)
    world.gather(None)
    reference.restore(folder)
    close(logits_of(policy), logits_of(reference))
    loaded = share(small_policy(seed=3), world)
    with sharding.gathered(loaded.model, world, read=True):
        loaded.restore(folder)
    again = ExpertOptimizer(loaded, settings, 1)
    again.load_state(state)
    close(logits_of(loaded), logits_of(reference), 0.0)
    assert all(torch.equal(whole(value), state[name]) for name, value in again.state().items())


def written_by_all_ranks(world):
    """Each writes its rows in a thread, while ranks go on talking and weights change; a fault of one is all ranks'."""
    policy, reference = share(small_policy(), world), small_policy(seed=3)
    before, files = logits_of(policy), shards.SharedFiles(world, 60)
    folder = Path(world.told(tempfile.mkdtemp() if world.first else None))
    copies = {name: shards.copy_of(tensor) for name, tensor in policy.model.state_dict().items()}
    background, sets = Background(), {"model.safetensors": copies}
    background.begin(lambda: files.write(folder, sets, {}))
    with torch.no_grad():
        for parameter in policy.model.parameters():
            local(parameter).zero_()
    assert [world.gather(turn) for turn in range(20)] == [[turn, turn] for turn in range(20)]
    background.wait()
    background.check()
    world.gather(None)
    index = ShardIndex.read(index_path(folder, "model.safetensors"))
    shards.fill(index, policy.model.state_dict())
    close(logits_of(policy), before, 0.0)
    reference.restore(folder)  # by one process
    close(logits_of(reference), before)
    with mock.patch.object(shards, "sync", side_effect=None if world.first else OSError(28, "No space left")):
        background.begin(lambda: files.write(folder, sets, {}))
        background.wait()
    try:
        with world.together():
            background.check()
    except (ValueError, OSError) as error:
        assert str(error) == ("rank 1: [Errno 28] No space left" if world.first else "[Errno 28] No space left")
    else:
        raise AssertionError("a full disk of one rank went unnoticed")


def one_rank_draws_much_longer(world):
    """Ranks that enter their doors at other times, and another number of times, do not wait for each other for ever."""
    policy, plain = small_policy(), small_policy()
    own = prompts(4)[share_of(world, 4)] if world.first else prompts(1, start=9)
    sampling = replace(
        TRAINING, max_think_tokens=4 if world.first else 40, num_points=7 if world.first else 5, window=(0, 3)
    )
    share(policy, world)
    lockstep = sharding.Lockstep(policy, world)
    expected = sample(plain, own, sampling=sampling)
    for _ in range(2):
        with lockstep(policy) as drawer:
            found = sample(drawer, own, sampling=sampling)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours.sampled_texts[0].ids, theirs.sampled_texts[0].ids)
            close(ours.images[-1].latents, theirs.images[-1].latents)
    try:
        with lockstep(policy) as drawer:
            if world.first:
                raise ValueError("a broken picture")
            sample(drawer, own, sampling=sampling)
    except OtherRank as error:
        assert not world.first and "another rank failed" in str(error)
    except ValueError as error:
        assert world.first and str(error) == "a broken picture"
    else:
        raise AssertionError("a fault on one rank went unnoticed")
    with lockstep(policy):
        pass


def a_copy_to_draw_with(world):
    """The whole copy has the weights of now."""
    policy, whole_copy = small_policy(), small_policy()
    batch = batch_of(policy)
    share(policy, world)
    part, ranks = own_part(batch, world)
    step(policy, ExpertOptimizer(policy, Optimizer(lr_reasoning=1e-2, lr_denoising=1e-2), 1), part, ranks)
    with sharding.Replica(policy, whole_copy)(policy) as drawer:
        assert drawer is whole_copy and not any(isinstance(p, DTensor) for p in drawer.module.parameters())
        close(logits_of(drawer), logits_of(policy), 1e-6)


def a_copy_below_fp32_says_what_the_shares_say(world):
    """The copy's layers are held as they are computed with, and it answers as the gathered ones do, to a bit."""
    policy, whole_copy = small_policy(), small_policy()
    for one in (policy, whole_copy):
        one.compute_dtype = torch.bfloat16
    share(policy, world)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter.add_(0.01 * parameter)
    with sharding.Replica(policy, whole_copy)(policy) as drawer:
        kinds = {p.dtype for layer in drawer.sharded_layers() for p in layer.parameters()}
        assert kinds == {torch.bfloat16}
        assert torch.equal(logits_of(drawer), logits_of(policy))


def summed_as_one_process(world):
    """Ranks that hold all weights: gradients are summed, and a parameter with one nowhere keeps none."""
    policy, reference = small_policy(), small_policy()
    batch, settings = batch_of(policy), Optimizer(lr_reasoning=1e-2, lr_denoising=1e-2)
    expected = step(reference, ExpertOptimizer(reference, settings, 1), batch)
    plain = replace(world, sharded=False)
    part, _ = own_part(batch, world)
    found = step(policy, ExpertOptimizer(policy, settings, 1), part, Ranks(plain))
    assert all(abs(found.grad_norm[expert] / norm - 1) < 1e-5 for expert, norm in expected.grad_norm.items())
    weights = dict(reference.model.named_parameters())
    for name, parameter in policy.model.named_parameters():
        close(parameter.detach(), weights[name].detach(), 1e-5)
    lonely = torch.nn.Parameter(torch.ones(3))
    there = torch.nn.Parameter(torch.ones(2))
    there.grad = torch.ones(2) if world.first else None
    plain.sum_gradients([lonely, there])
    assert lonely.grad is None and there.grad.tolist() == [1.0, 1.0]


def a_fault_on_one_rank_is_all_ranks(world):
    """What one rank cannot do, rank 0 says; nobody waits."""
    try:
        with world.together():
            if not world.first:
                raise ValueError("no such picture")
    except ValueError as error:
        assert str(error) == ("rank 1: no such picture" if world.first else "no such picture")
    else:
        raise AssertionError("nobody was told")
    with world.together():
        assert world.told(world.rank) == 0 and world.most(world.rank) == 1 and world.sums(1.5, world.rank) == [3.0, 1.0]


def messages_arrive(world):
    """Short ones in one collective, long ones in two, of every length around the border, different on every rank."""
    for length in (0, messages.ROOM - 60, messages.ROOM, 3 * messages.ROOM * (1 + world.rank)):
        said = world.gather((world.rank, b"x" * length, torch.full((2,), float(world.rank))))
        assert [rank for rank, _, _ in said] == [0, 1] and len(said[world.rank][1]) == length
        assert [float(numbers.sum()) for _, _, numbers in said] == [0.0, 2.0]
    first = world.to_first(torch.full((3,), world.rank))
    assert (first is None) != world.first and (first is None or [int(t.sum()) for t in first] == [0, 3])


class Halves(RecipeEvaluator):
    """Draws nothing; the reward could not score the first picture of rank 1."""

    def _evaluated(self, policy, prompts, samples):
        failed = ["no answer" if self.world.rank == 1 and n == 0 else None for n in range(len(prompts))]
        pictures = torch.zeros((len(prompts), 3, 32, 32), dtype=torch.uint8)
        return Evaluation([{"position": p.position, "sample": 0} for p in prompts], pictures, {}, failed)


def failures_are_counted_over_all_ranks(world):
    """A half of rank 1's pictures, and a quarter of all: what is allowed is a share of all."""
    recipe, policy, said = load_recipe("shapes/unigrpo"), small_policy(image_size=(32, 32)), []
    for allowed in (0.3, 0.2):
        reward = validation_reward(recipe)
        reward = replace(reward, on_error="drop_sample", max_failed_share=allowed)
        try:
            Halves(recipe, data.suite("shapes:held-out"), reward, world)._evaluate(policy, 4, 1)
        except ValueError as error:
            said.append((allowed, str(error)))
    assert [allowed for allowed, _ in said] == [0.2] and said[0][1].startswith(
        "1 of 4 pictures could not be scored (25%)"
    )


TRAPS = [
    each_expert_gets_its_gradient,
    recomputation_enters_no_door,
    one_process_way_is_noticed,
    a_forward_sees_the_weights_of_now,
    tied_weights_stay_tied,
    norms_are_numbers,
    adapters_come_before_shards,
    saved_whole_and_read_whole,
    written_by_all_ranks,
    one_rank_draws_much_longer,
    a_copy_to_draw_with,
    a_copy_below_fp32_says_what_the_shares_say,
    summed_as_one_process,
    a_fault_on_one_rank_is_all_ranks,
    messages_arrive,
    failures_are_counted_over_all_ranks,
]


def main(names):
    with joined(cuda=False, timeout_s=100, sharded=True) as world:
        for trap in TRAPS:
            if not names or trap.__name__ in names:
                trap(world)
                print(trap.__name__, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # as the command does: beside torch's threads Python's way out may abort
