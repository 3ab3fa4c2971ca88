"""From a recipe to everything that its run is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from unigrpo.build import bases, data, models
from unigrpo.build.checks import check_size
from unigrpo.build.sampling import (
    EVALUATED_TOGETHER,
    check_episodes,
    check_rewards,
    check_shares,
    evaluation_episode,
    evaluation_sampling,
    latent_reward,
    shares,
    training_episode,
    training_reward,
    training_sampling,
    validation_reward,
)
from unigrpo.build.trial import drawn_size, try_rewards
from unigrpo.build.weights import trained
from unigrpo.evaluation.evaluator import Evaluation, evaluate
from unigrpo.policy import Policy
from unigrpo.recipe import DemonstrationData, Recipe
from unigrpo.rewards.composite import CompositeReward
from unigrpo.training.parallel import ONE_PROCESS, Drawing, World, as_it_is
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
        """Draw and judge; of several ranks each does its share of the prompts, and rank 0 alone has the whole.

        Whether too many pictures could not be scored is judged over all ranks' pictures.
        """
        prompts = self.suite.prompts(limit)
        if not self.world.many:
            whole = self._evaluated(policy, prompts, samples)
            self.reward.check_failures(whole.failures)
            return whole
        own = prompts[share_of(self.world, len(prompts))]
        with self.world.together(), self.drawing(policy) as drawer:
            part = self._evaluated(drawer, own, samples) if own else None
        failed = self.world.gather([] if part is None else list(part.failures))
        with self.world.together():
            self.reward.check_failures([failure for some in failed for failure in some])
        parts = [part for part in self.world.to_first(part) or () if part is not None]
        height, width = policy.spec.image_size
        pictures = [part.pictures for part in parts] or [torch.empty((0, 3, height, width), dtype=torch.uint8)]
        sources = {position: images for part in parts for position, images in part.sources.items()}
        starts = accumulate((len(part.records) for part in parts), initial=0)
        earlier = {
            start + i: shown for start, part in zip(starts, parts, strict=False) for i, shown in part.earlier.items()
        }
        records = [record for part in parts for record in part.records]
        return Evaluation(records, torch.cat(pictures), sources, earlier=earlier)

    def _evaluated(self, policy: Policy, prompts: Sequence[Prompt], samples: int) -> Evaluation:
        return evaluate(
            policy,
            prompts,
            self.suite.judge,
            evaluation_sampling(self.recipe),
            samples=samples,
            seed=self.recipe.seed,
            episode=evaluation_episode(self.recipe),
            reward=self.reward,
            batch=self.recipe.rollout.batch or EVALUATED_TOGETHER,
            part=True,
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
        episode=training_episode(recipe),
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


def parts(recipe: Recipe, world: World = ONE_PROCESS) -> RunComponents:
    """Build everything a run needs; a name that means nothing is a ConfigError before anything is written."""
    rewards = check_rewards(recipe)  # refused before a model is loaded
    check_shares(recipe, world)
    evaluation_sampling(recipe)
    made_source, made_suite = source(recipe), data.suite(recipe.eval.prompts)
    size = drawn_size(recipe)
    if size is not None:
        check_size(recipe, size)
        try_rewards(recipe, rewards, made_source, made_suite, size)
    made = trained(recipe, world)
    bases.require_start(recipe.model.path)
    if (drawn := made.policy.spec.image_size) != size:
        check_size(recipe, drawn)
        try_rewards(recipe, rewards, made_source, made_suite, drawn)
    check_episodes(recipe, made.policy)
    for prompt in made_suite.prompts(1):
        made.policy.encode_text(prompt.text)  # a word that a small vocabulary lacks is found here, not in mid-run
    return RunComponents(
        policy=made.policy,
        reference=made.reference,
        method=recipe.method,
        source=source(recipe, world, made.drawing),
        evaluator=RecipeEvaluator(recipe, made_suite, validation_reward(recipe), world, made.drawing),
        snapshot=made.snapshot,
        load_model=made.load,
        compute_dtype=models.DTYPES[recipe.model.dtype],
        latent_reward=latent_reward(recipe, made.policy.decode_image),
        world=world,
        reference_hash=made.reference_hash,
        whole=made.whole,
        spread=made.spread,
    )
