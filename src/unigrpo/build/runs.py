"""From a recipe to everything that its run is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from unigrpo.build import bases, data, models
from unigrpo.build.checks import check_size
from unigrpo.build.sampling import (
    check_rewards,
    evaluation_sampling,
    latent_reward,
    shares,
    training_reward,
    training_sampling,
    validation_reward,
)
from unigrpo.build.trial import drawn_size, try_rewards
from unigrpo.evaluation.evaluator import Evaluation, evaluate
from unigrpo.policy import Policy, SavesLater, Scorer
from unigrpo.recipe import DemonstrationData, Lora, Recipe, trained_experts
from unigrpo.rewards.composite import CompositeReward
from unigrpo.rollout.episode import single_round
from unigrpo.training.lora import Adapter, WithoutAdapter
from unigrpo.training.parallel import ONE_PROCESS, Drawing, World, as_it_is
from unigrpo.training.saving import Snapshot, Whole, as_held, fingerprint, snapshot_of
from unigrpo.training.sharing import share_of
from unigrpo.training.sources import DemonstrationSource, RolloutSource, Source
from unigrpo.training.trainer import RunComponents
from unigrpo.trajectory import Prompt

# The parts of a run


@dataclass(frozen=True)
class RecipeEvaluator:
    """The evaluations that a recipe asks for: the same prompts and draws each time."""

    recipe: Recipe
    suite: data.Suite
    reward: CompositeReward
    world: World = ONE_PROCESS
    drawing: Drawing = as_it_is

    def _evaluate(self, policy: Policy, limit: int, samples: int) -> Evaluation:
        """Draw and judge; of several ranks each does its share of the prompts, and rank 0 alone has the whole."""
        prompts = self.suite.prompts(limit)
        if not self.world.many:
            return self._evaluated(policy, prompts, samples)
        own = prompts[share_of(self.world, len(prompts))]
        with self.world.together(), self.drawing(policy) as drawer:
            part = self._evaluated(drawer, own, samples) if own else None
        parts = [part for part in self.world.to_first(part) or () if part is not None]
        height, width = policy.spec.image_size
        pictures = [part.pictures for part in parts] or [torch.empty((0, 3, height, width), dtype=torch.uint8)]
        sources = {position: images for part in parts for position, images in part.sources.items()}
        return Evaluation([record for part in parts for record in part.records], torch.cat(pictures), sources)

    def _evaluated(self, policy: Policy, prompts: Sequence[Prompt], samples: int) -> Evaluation:
        return evaluate(
            policy,
            prompts,
            self.suite.judge,
            evaluation_sampling(self.recipe),
            samples=samples,
            seed=self.recipe.seed,
            think=self.recipe.eval.think,
            reward=self.reward,
            batch=self.recipe.rollout.batch or 192,
        )

    def validate(self, policy: Policy) -> Evaluation:
        """One picture for each of the first ``eval.limit`` prompts."""
        return self._evaluate(policy, self.recipe.eval.limit, 1)

    def compare(self, policy: Policy) -> Evaluation:
        """``eval.compare_samples`` pictures for each of ``eval.compare_limit`` prompts."""
        return self._evaluate(policy, self.recipe.eval.compare_limit, self.recipe.eval.compare_samples)


def source(recipe: Recipe, world: World = ONE_PROCESS, drawing: Drawing = as_it_is) -> Source:
    """Rollouts for RL, demonstrations for supervised training."""
    given = recipe.data
    if isinstance(given, DemonstrationData):
        return DemonstrationSource(data.demonstration_maker(recipe, given), world)
    return RolloutSource(
        prompts=data.prompts(given.prompts, recipe.seed),
        episode=single_round(think=recipe.rollout.think),
        sampling=training_sampling(recipe),
        reward=training_reward(recipe),
        shares=shares(recipe),
        prompts_per_iteration=given.prompts_per_iteration,
        group_size=given.group_size,
        seed=recipe.seed,
        advantage=recipe.method.advantage,
        batch=recipe.rollout.batch,
        minibatches=recipe.optimizer.minibatches,
        world=world,
        drawing=drawing,
    )


def trains(recipe: Recipe) -> Callable[[str], bool]:
    """Which parameters, by name, a run without LoRA trains: those of the method's experts, and what both share."""
    groups = {*trained_experts(recipe), "shared", *(["vision"] if recipe.method.train_vision else [])}
    group_of = models.group_of(recipe.model.path)
    return lambda name: group_of(name) in groups


@dataclass(frozen=True)
class Trained:
    """The policy of a run, what its regularisers compare with, and how its weights are saved and read back.

    spread: what ranks that share the weights out can save together; None where these are gathered, adapters always.
    frozen: the reference, where it is a model of its own and not the policy without its adapter.
    """

    policy: Policy
    reference: Scorer | None
    snapshot: Snapshot
    load: Callable[[Path], None]
    frozen: Policy | None = None
    spread: SavesLater | None = None


def full_training(recipe: Recipe, *, wants_reference: bool) -> Trained:
    """All weights of the method's experts; the reference is a frozen copy in ``model.dtype``.

    Its norms and text head are kept in fp32 as the policy's are, so that before the first step both say the same.
    """
    side, trained = recipe.rollout.image_size, trains(recipe)
    policy = models.policy(recipe.model, seed=recipe.seed, image_side=side, trained=trained, merge=True)
    for name, parameter in policy.module.named_parameters():
        parameter.requires_grad_(trained(name))
    frozen = None
    if wants_reference:
        wide = ("norm", "lm_head")
        frozen = models.policy(
            recipe.model,
            seed=recipe.seed,
            image_side=side,
            trained=lambda name: trained(name) and any(part in name for part in wide),
            merge=True,
        )
        frozen.module.requires_grad_(False)
    spread = policy if isinstance(policy, SavesLater) else None
    return Trained(policy, frozen, snapshot_of(policy), policy.restore, frozen, spread)


def adapter_training(recipe: Recipe, lora: Lora) -> Trained:
    """Low-rank adapters on frozen weights; the reference is the same model with the adapters off.

    It is there whether a term asks for it or not: a resumed run checks by it that the base is the one it began with.
    """
    policy = models.policy(recipe.model, seed=recipe.seed, image_side=recipe.rollout.image_size, merge=True)
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
    )
    return Trained(policy, WithoutAdapter(policy, adapter), adapter.snapshot, adapter.load_weights)


def trained(recipe: Recipe, *, wants_reference: bool = True) -> Trained:
    """The policy and its reference, as the recipe trains it."""
    if recipe.model.lora is None:
        return full_training(recipe, wants_reference=wants_reference and recipe.method.needs_reference)
    return adapter_training(recipe, recipe.model.lora)


@dataclass(frozen=True)
class Shared:
    """How a run draws and saves, by whether its weights are shared out over the ranks."""

    drawing: Drawing = as_it_is
    whole: Whole = as_held
    reference_hash: str | None = None
    snapshot: Snapshot | None = None
    spread: SavesLater | None = None


def shared_out(recipe: Recipe, made: Trained, world: World) -> Shared:
    """Share the weights of a policy and its reference out over the ranks, in place; nothing else in other runs."""
    if not world.sharded:
        return Shared()
    from unigrpo.training import sharding

    device, known = next(made.policy.module.parameters()).device, fingerprint(made.reference)
    config, drawing = recipe.parallel, as_it_is
    if config.rollout_weights == "replica":
        drawing = sharding.Replica(made.policy, trained(recipe, wants_reference=False).policy)
    mesh = sharding.mesh_of(world, device, config.replicas)
    sharding.shard(made.policy, mesh, config)
    if made.frozen is not None:
        sharding.shard(made.frozen, mesh, config)
    if config.rollout_weights == "sharded":
        drawing = sharding.Lockstep(made.policy, world)
    module = made.policy.module
    spread = made.spread
    rest = None if spread is None else lambda folder: partial(spread.save_state, folder, {})
    return Shared(drawing, lambda read: sharding.gathered(module, world, read=read), known, rest, spread)


def parts(recipe: Recipe, world: World = ONE_PROCESS) -> RunComponents:
    """Build everything a run needs; a name that means nothing is a ConfigError before anything is written."""
    rewards = check_rewards(recipe)  # refused before a model is loaded
    evaluation_sampling(recipe)
    made_source, made_suite = source(recipe), data.suite(recipe.eval.prompts)
    size = drawn_size(recipe)
    if size is not None:
        check_size(recipe, size)
        try_rewards(recipe, rewards, made_source, made_suite, size)
    made = trained(recipe)
    bases.require_start(recipe.model.path)
    if (drawn := made.policy.spec.image_size) != size:
        check_size(recipe, drawn)
        try_rewards(recipe, rewards, made_source, made_suite, drawn)
    for prompt in made_suite.prompts(1):
        made.policy.encode_text(prompt.text)  # a word that a small vocabulary lacks is found here, not in mid-run
    shared = shared_out(recipe, made, world)
    return RunComponents(
        policy=made.policy,
        reference=made.reference,
        method=recipe.method,
        source=source(recipe, world, shared.drawing),
        evaluator=RecipeEvaluator(recipe, made_suite, validation_reward(recipe), world, shared.drawing),
        snapshot=shared.snapshot or made.snapshot,
        load_model=made.load,
        compute_dtype=models.DTYPES[recipe.model.dtype],
        latent_reward=latent_reward(recipe, made.policy.decode_image),
        world=world,
        reference_hash=shared.reference_hash,
        whole=shared.whole,
        spread=shared.spread,
    )
