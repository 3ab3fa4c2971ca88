"""From a recipe's reward and rollout sections to what is optimised, and to how samples are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from unigrpo.build import rewards
from unigrpo.objectives.advantage import Share
from unigrpo.objectives.image_terms import LatentReward
from unigrpo.plurals import counted
from unigrpo.policy import Policy
from unigrpo.ranges import ConfigError
from unigrpo.recipe import PromptData, Recipe
from unigrpo.rewards.composite import CompositeReward
from unigrpo.rewards.protocol import metadata_of
from unigrpo.rollout.engine import Sampling, Slide
from unigrpo.rollout.episode import Episode, rounds_of
from unigrpo.rollout.guidance import Guidance
from unigrpo.rollout.sample import check_others, check_words, portions
from unigrpo.training.parallel import World
from unigrpo.training.sharing import portions_of, share_of
from unigrpo.trajectory import Prompt

EVALUATED_TOGETHER = 192
"""Samples of an evaluation that are drawn together where rollout.batch is null."""


def latent_reward(recipe: Recipe, decode: Callable[[Tensor], Tensor]) -> LatentReward | None:
    """The reward of latents, for methods that follow its gradient; ``decode``: latents to pictures."""
    if not recipe.method.needs_reward_gradient:
        return None
    reward = gradient_reward(recipe)

    def of(latents: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return reward.differentiable(decode(latents), [prompt.text for prompt in prompts], metadata_of(prompts))

    return of


@dataclass(frozen=True)
class Rewards:
    """What a recipe optimises (None: nothing, as in supervised runs), whether by its gradient, and what it watches."""

    train: CompositeReward | None
    with_gradient: bool
    validation: CompositeReward


def check_rewards(recipe: Recipe) -> Rewards:
    """Resolve the rewards of a recipe, without a model; ConfigError where the method cannot learn from them."""
    _check_thinks(recipe)
    validation = validation_reward(recipe)
    if recipe.method.needs_reward_gradient:
        return Rewards(gradient_reward(recipe), True, validation)
    return Rewards(training_reward(recipe) if recipe.reward.train else None, False, validation)


def _check_thinks(recipe: Recipe) -> None:
    """ConfigError where a reward of the thinking would never see any."""
    for key, thinks, scorers in (
        ("rollout.think", recipe.rollout.think, recipe.reward.train),
        ("eval.think", recipe.eval.think, recipe.reward.validation),
    ):
        if not thinks and (named := [s.name for s in scorers if s.name.startswith("think/")]):
            raise ConfigError(f"{key} = false, and the reward {named[0]} judges the thinking: set it to true")


def training_reward(recipe: Recipe) -> CompositeReward:
    """The reward that a recipe optimises."""
    return rewards.reward(recipe.reward.train, recipe.reward.on_error, recipe.reward.max_failed_share, recipe.model)


def validation_reward(recipe: Recipe) -> CompositeReward:
    """The reward that evaluations watch."""
    section = recipe.reward
    return rewards.reward(section.validation, section.on_error, section.max_failed_share, recipe.model)


def shares(recipe: Recipe) -> tuple[Share, ...]:
    """The training rewards as advantages see them, by the names of their values."""
    train = recipe.reward.train
    named = zip(rewards.labels(train), train, strict=True)
    return tuple(Share(name, s.weight, s.teaches) for name, s in named)


def gradient_reward(recipe: Recipe) -> CompositeReward:
    """The training reward of a method that needs its gradient; ConfigError names one that has none."""
    reward = training_reward(recipe)
    if reward.black_boxes:
        raise ConfigError(
            f"reward.train has {', '.join(reward.black_boxes)}, which gives no gradient for its pictures, and "
            f"{recipe.method.name} learns from that alone: use a differentiable reward, such as {rewards.PREFERENCE}, "
            "or method.name flow_grpo, which takes any"
        )
    return reward


def training_episode(recipe: Recipe) -> Episode:
    """The turns of a training sample."""
    r = recipe.rollout
    return rounds_of(r.rounds, think=r.think, stop_words=r.stop_words, look=r.look, rethink=r.rethink)


def evaluation_episode(recipe: Recipe) -> Episode:
    """The turns of an evaluation's sample."""
    r, e = recipe.rollout, recipe.eval
    return rounds_of(
        e.rounds or r.rounds,
        think=e.think,
        stop_words=r.stop_words,
        look=e.look or r.look,
        rethink=e.rethink or r.rethink,
    )


def check_episodes(recipe: Recipe, policy: Policy) -> None:
    """ConfigError where a model cannot go through the rounds of a recipe, or does not know its words."""
    if max(training_episode(recipe).rounds, evaluation_episode(recipe).rounds) == 1:
        return
    if not policy.looks:
        raise ConfigError(
            f"rollout.rounds (or eval.rounds) above 1: the model {recipe.model.path} cannot look at what it drew; set "
            "rounds to 1"
        )
    told = {"rollout.rethink": training_episode(recipe).told, "eval.rethink": evaluation_episode(recipe).told}
    for key, text in told.items():
        if text:
            check_words(policy, key, text)
    for word in recipe.rollout.stop_words:
        check_words(policy, "rollout.stop_words", word, recipe.rollout.max_think_tokens)


def check_shares(recipe: Recipe, world: World) -> None:
    """ConfigError where ``look: other`` would find no other prompt among those that a rank draws together."""
    for key, episode in (("rollout", training_episode(recipe)), ("eval", evaluation_episode(recipe))):
        if episode.look == "other" and episode.stop_words and episode.rounds > 2:
            raise ConfigError(
                f"{key}.look = other with rollout.stop = said and {episode.rounds} rounds: where all samples of the "
                "other prompts have stopped, there is no picture to show; set rounds to 2, or stop to never"
            )
    e, batch = recipe.eval, recipe.rollout.batch or EVALUATED_TOGETHER
    ranks = [replace(world, rank=rank) for rank in range(world.size)]
    what = "rollout.batch, or the prompts of eval" + (f" (each of {world.size} ranks has a share)" * world.many)
    for prompts, samples in ((e.limit, 1), (e.compare_limit, e.compare_samples)):
        for rank in ranks:
            own = share_of(rank, prompts)
            check_others(evaluation_episode(recipe), own.stop - own.start, samples, batch, what)
    data, episode = recipe.data, training_episode(recipe)
    if episode.look != "other" or episode.rounds == 1 or not isinstance(data, PromptData):
        return
    wanted = data.prompts_per_iteration
    if any(_alone(recipe, data, rank, wanted) for rank in ranks):
        more = range(wanted + 1, 2 * (wanted + 2 * world.size * recipe.optimizer.minibatches))
        fitting = next((n for n in more if not any(_alone(recipe, data, rank, n) for rank in ranks)), None)
        over = f" over {counted(world.size, 'rank')}" * world.many
        at_once = "" if recipe.rollout.batch is None else f", at most {recipe.rollout.batch} at a time (rollout.batch)"
        change = f"set data.prompts_per_iteration to {fitting}, or " if fitting else ""
        raise ConfigError(
            f"rollout.look = other shows another prompt's picture of those that are drawn together, and of {wanted} "
            f"prompts x {data.group_size} samples{over}{at_once} some would be drawn with no other prompt: {change}"
            f"change {'the number of ranks, ' * world.many}rollout.batch or data.group_size"
        )


def _alone(recipe: Recipe, data: PromptData, rank: World, prompts: int) -> bool:
    """Whether a rank would draw samples of one prompt alone, of so many prompts an iteration."""
    each, batch = recipe.rollout.images_per_thinking if recipe.rollout.think else 1, recipe.rollout.batch
    shares = portions_of(rank, prompts, data.group_size, together=each, minibatches=recipe.optimizer.minibatches)
    stand_ins = [([Prompt(place, "") for place in share.prompts], share.count) for share in shares]
    return any(len(some) < 2 for own, count in stand_ins for some, _, _ in portions(own, count, batch, each))


def training_sampling(recipe: Recipe) -> Sampling:
    """How training samples are drawn; methods that do not score SDE steps draw by the ODE alone."""
    r, method = recipe.rollout, recipe.method
    draws = method.needs_sde
    return Sampling(
        num_points=r.num_points,
        shift=r.shift,
        window=r.window if draws else None,
        window_size=r.window_size if draws else 0,
        noise_level=r.noise_level if draws else 0.0,
        sde=r.sde,
        temperature=r.temperature,
        max_think_tokens=r.max_think_tokens,
        images_per_thinking=r.images_per_thinking,
        same_initial_noise=r.same_initial_noise,
        guidance=Guidance(text_scale=r.guidance),
        slide=Slide(r.window_every, r.window_stride) if draws and r.window_motion == "sliding" else None,
        kept_steps=method.kept_steps(r.num_points),
    )


def evaluation_sampling(recipe: Recipe) -> Sampling:
    """How evaluation pictures are drawn: the ODE, thinking sampled at temperature 1."""
    e = recipe.eval
    return Sampling(
        num_points=e.num_points,
        shift=recipe.rollout.shift,
        max_think_tokens=recipe.rollout.max_think_tokens,
        guidance=Guidance(e.guidance, e.image_guidance, e.interval, e.renorm),
    )
