"""The weights of a run: how the policy and its reference are held, saved, and shared out over the ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from unigrpo.build import models
from unigrpo.policy import Policy, SavesLater, Scorer
from unigrpo.recipe import Recipe, trained_experts
from unigrpo.training.lora import Adapter, WithoutAdapter
from unigrpo.training.parallel import ONE_PROCESS, Drawing, World, as_it_is
from unigrpo.training.saving import Snapshot, Whole, as_held, fingerprint, snapshot_of


def trains(recipe: Recipe) -> Callable[[str], bool]:
    """Which parameters, by name, a run without LoRA trains: those of the method's experts, and what both share."""
    groups = {*trained_experts(recipe), "shared", *(["vision"] if recipe.method.train_vision else [])}
    group_of = models.group_of(recipe.model.path)
    return lambda name: group_of(name) in groups


@dataclass(frozen=True)
class Trained:
    """The policy of a run, what its regularisers compare with, and how its weights are saved and read back.

    drawing: what samples are drawn with; whole: inside, weights are saved and read as one process does it;
    reference_hash: of a reference whose weights are shared out, taken while they were whole; spread: what ranks that
    share weights out save together (None: these are gathered, as adapters always are).
    """

    policy: Policy
    reference: Scorer | None
    snapshot: Snapshot
    load: Callable[[Path], None]
    drawing: Drawing = as_it_is
    whole: Whole = as_held
    reference_hash: str | None = None
    spread: SavesLater | None = None


def trained(recipe: Recipe, world: World = ONE_PROCESS) -> Trained:
    """The policy and its reference, as the recipe trains it; of ranks that share weights out, each has its share.

    Each model is shared out before the next is loaded: only one is ever held whole while a run begins.
    """
    make = full_training if recipe.model.lora is None else adapter_training
    made = make(recipe, world)
    if not world.sharded:
        return made
    from unigrpo.training import sharding

    policy, module = made.policy, made.policy.module
    replica = recipe.parallel.rollout_weights == "replica"
    drawing = sharding.Replica(policy, drawing_copy(recipe, policy)) if replica else sharding.Lockstep(policy, world)
    return replace(made, drawing=drawing, whole=lambda read: sharding.gathered(module, world, read=read))


def shared_out(recipe: Recipe, policy: Policy, world: World) -> None:
    """Share the weights of a model out over the ranks, in place; nothing in other runs."""
    if not world.sharded:
        return
    from unigrpo.training import sharding

    device = next(policy.module.parameters()).device
    sharding.shard(policy, sharding.mesh_of(world, device, recipe.parallel.replicas), recipe.parallel)


def full_training(recipe: Recipe, world: World = ONE_PROCESS) -> Trained:
    """All weights of the method's experts; the reference is a frozen copy in ``model.dtype``.

    Its norms and text head are kept in fp32 as the policy's are, so that before the first step both say the same.
    """
    side, trained = recipe.rollout.image_size, trains(recipe)
    policy = models.policy(recipe.model, seed=recipe.seed, image_side=side, trained=trained, merge=True)
    for name, parameter in policy.module.named_parameters():
        parameter.requires_grad_(trained(name))
    shared_out(recipe, policy, world)
    frozen = known = None
    if recipe.method.needs_reference:
        wide = ("norm", "lm_head")
        frozen = models.policy(
            recipe.model,
            seed=recipe.seed,
            image_side=side,
            trained=lambda name: trained(name) and any(part in name for part in wide),
            merge=True,
        )
        frozen.module.requires_grad_(False)
        known = fingerprint(frozen) if world.sharded else None
        shared_out(recipe, frozen, world)
    if world.sharded and isinstance(policy, SavesLater):
        rest = partial(_without_weights, policy)
        return Trained(policy, frozen, rest, policy.restore, reference_hash=known, spread=policy)
    return Trained(policy, frozen, snapshot_of(policy), policy.restore, reference_hash=known)


def _without_weights(policy: SavesLater, folder: Path) -> Callable[[], None]:
    """What rank 0 saves of a model whose weights all ranks save together: everything else."""
    return partial(policy.save_state, folder, {})


def adapter_training(recipe: Recipe, world: World = ONE_PROCESS) -> Trained:
    """Low-rank adapters on frozen weights; the reference is the same model with the adapters off.

    It is there whether a term asks for it or not: a resumed run checks by it that the base is the one it began with.
    """
    policy, adapter, known = adapted(recipe)
    reference = WithoutAdapter(policy, adapter)
    known = fingerprint(reference) if world.sharded else known
    shared_out(recipe, policy, world)
    return Trained(policy, reference, adapter.snapshot, adapter.load_weights, reference_hash=known)


def adapted(recipe: Recipe) -> tuple[Policy, Adapter, str | None]:
    """A frozen model with new adapters on the experts that the method trains.

    Where it is held in 4 bits, also the hash of the weights that it had before.
    """
    assert recipe.model.lora is not None
    lora, held, known = recipe.model.lora, recipe.model.quantize, None
    if held == "none":
        policy = models.policy(recipe.model, seed=recipe.seed, image_side=recipe.rollout.image_size, merge=True)
    else:
        policy, known = models.quantized(recipe.model, seed=recipe.seed, image_side=recipe.rollout.image_size)
    policy.module.requires_grad_(False)
    experts = [expert for expert in trained_experts(recipe) if expert in lora.experts]
    adapter = Adapter.create(
        policy.module,
        policy.adapter_targets(experts),
        rank=lora.rank,
        alpha=lora.alpha,
        seed=recipe.seed,
        base_name=models.lasting_name(recipe.model.path),
        base_key=models.base_key(recipe.model.path, recipe.seed),
        quantize=None if held == "none" else held,
    )
    return policy, adapter, known


def drawing_copy(recipe: Recipe, made: Policy) -> Policy:
    """A policy's model once more, to draw with: its layers are never held in fp32 where they compute below."""
    if recipe.model.lora is not None:
        return adapted(recipe)[0]
    names = {id(parameter): name for name, parameter in made.module.named_parameters()}
    inside = {names[id(parameter)] for layer in made.sharded_layers() for parameter in layer.parameters()}
    wide = trains(recipe)
    return models.policy(
        recipe.model,
        seed=recipe.seed,
        image_side=recipe.rollout.image_size,
        trained=lambda name: wide(name) and name not in inside,
        merge=True,
    )
