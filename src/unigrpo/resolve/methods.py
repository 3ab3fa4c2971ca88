"""From a recipe's method and rollout sections to the terms of the loss, and to how samples are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from torch import Tensor

from unigrpo import config
from unigrpo.config import ConfigError, Recipe
from unigrpo.objectives import methods, settings
from unigrpo.objectives.refl import late_steps
from unigrpo.resolve import data
from unigrpo.rewards.composite import CompositeReward
from unigrpo.rollout.engine import Sampling, Slide
from unigrpo.rollout.guidance import Guidance


def method(recipe: Recipe, decode: Callable[[Tensor], Tensor]) -> methods.Method:
    """The terms that a recipe's method section names; ``decode``: latents to pictures, for rewards with gradients."""
    chosen = recipe.method
    if isinstance(chosen, config.Supervised):
        return methods.Supervised(
            ce_weight=chosen.ce_weight,
            mse_weight=chosen.mse_weight,
            shift=chosen.timestep_shift,
            times_per_image=chosen.noisy_copies,
            times=chosen.times,
            mse_over=chosen.mse_over,
        )
    joint = isinstance(chosen, config.UniGRPO | config.UniFPO)
    return methods.PolicyGradient(
        text=settings.TextSettings(**asdict(chosen.text)) if isinstance(chosen, config.WithText) else None,
        image=_image(recipe, chosen, decode) if isinstance(chosen, config.WithImage) else None,
        regulariser=_regulariser(chosen.regulariser if isinstance(chosen, config.WithImage) else config.Regulariser()),
        advantage=settings.AdvantageSettings(**asdict(chosen.advantage)),
        lambda_flow=chosen.lambda_flow if joint else 1.0,
        image_grad_through_context=joint and chosen.image_grad_through_context,
    )


def _image(recipe: Recipe, chosen: config.WithImage, decode: Callable[[Tensor], Tensor]) -> settings.ImageTerm:
    """The image term of a method."""
    match chosen:
        case config.UniGRPO() | config.FlowGRPO():
            return settings.FlowSettings(**asdict(chosen.flow))
        case config.FPO() | config.UniFPO():
            return settings.FPOSettings(**asdict(chosen.fpo), shift=recipe.rollout.shift)
        case config.DiffusionNFT():
            return settings.DiffusionNFTSettings(**asdict(chosen.nft), shift=recipe.rollout.shift)
        case config.ReFL():
            return settings.ReFLSettings(decode, gradient_reward(recipe).differentiable)


@dataclass(frozen=True)
class Rewards:
    """What a recipe optimises (None: nothing, as in supervised runs), whether by its gradient, and what it watches."""

    train: CompositeReward | None
    with_gradient: bool
    validation: CompositeReward


def check_rewards(recipe: Recipe) -> Rewards:
    """Resolve the rewards of a recipe, without a model; ConfigError where the method cannot learn from them."""
    validation = data.reward(recipe.reward.validation)
    if isinstance(recipe.method, config.ReFL):
        return Rewards(gradient_reward(recipe), True, validation)
    return Rewards(data.reward(recipe.reward.train) if recipe.reward.train else None, False, validation)


def gradient_reward(recipe: Recipe) -> CompositeReward:
    """The training reward of a method that needs its gradient; ConfigError names one that has none."""
    reward = data.reward(recipe.reward.train)
    if reward.black_boxes:
        raise ConfigError(
            f"reward.train has {', '.join(reward.black_boxes)}, which gives no gradient for its pictures, and "
            f"{recipe.method.name} learns from that alone: use a differentiable reward, such as {data.PREFERENCE}, or "
            "method.name flow_grpo, which takes any"
        )
    return reward


def _regulariser(term: config.Regulariser) -> settings.RegulariserSettings:
    if term.kind == "none":
        return settings.RegulariserSettings(weight=0.0)
    return settings.RegulariserSettings(term.kind, term.weight)


def training_sampling(recipe: Recipe) -> Sampling:
    """How training samples are drawn; methods that do not score SDE steps draw by the ODE alone."""
    r, method = recipe.rollout, recipe.method
    draws = isinstance(method, config.WithSDE)
    return Sampling(
        num_points=r.num_points,
        shift=r.shift,
        window=r.window if draws else None,
        window_size=r.window_size if draws else 0,
        noise_level=r.noise_level if draws else 0.0,
        sde=r.sde,
        temperature=r.temperature,
        max_think_tokens=r.max_think_tokens,
        same_initial_noise=r.same_initial_noise,
        guidance=Guidance(text_scale=r.guidance),
        slide=Slide(r.window_every, r.window_stride) if draws and r.window_motion == "sliding" else None,
        visit=late_steps(r.num_points, method.refl.late) if isinstance(method, config.ReFL) else None,
    )


def evaluation_sampling(recipe: Recipe) -> Sampling:
    """How evaluation pictures are drawn: the ODE, thinking sampled at temperature 1 (design: Words)."""
    e = recipe.eval
    return Sampling(
        num_points=e.num_points,
        shift=recipe.rollout.shift,
        max_think_tokens=recipe.rollout.max_think_tokens,
        guidance=Guidance(text_scale=e.guidance, interval=e.interval, renorm=e.renorm),
    )


def wants_reference(recipe: Recipe) -> bool:
    """Whether a term compares with the start checkpoint."""
    method = recipe.method
    text = isinstance(method, config.WithText) and method.text.kl_weight > 0.0
    image = isinstance(method, config.WithImage) and _regulariser(method.regulariser).weight > 0.0
    return text or image
