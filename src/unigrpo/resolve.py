"""From the names in a recipe to things: the one place that knows models, worlds, rewards and methods by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unigrpo import config
from unigrpo.config import ConfigError, Recipe
from unigrpo.evaluation.evaluator import Evaluation, Judge, evaluate
from unigrpo.models.bagel.checkpoint import load_autoencoder, load_policy, load_weights, read_weights, save_policy
from unigrpo.models.bagel.policy import BagelPolicy
from unigrpo.models.micro import build_micro
from unigrpo.objectives import methods, settings
from unigrpo.policy import Policy
from unigrpo.rewards import registry
from unigrpo.rewards.composite import CompositeReward, WeightedReward
from unigrpo.rewards.protocol import RewardOutput
from unigrpo.rollout.engine import Sampling
from unigrpo.rollout.episode import single_round
from unigrpo.rollout.guidance import Guidance
from unigrpo.training import checkpoint
from unigrpo.training.sources import DemonstrationSource, PromptSource, RolloutSource, Source
from unigrpo.training.trainer import Parts
from unigrpo.trajectory import Prompt, Trajectory
from unigrpo.worlds import shapes
from unigrpo.worlds.shapes import tasks
from unigrpo.worlds.shapes.demonstrations import DemonstrationMix, demonstrations

ASSETS = "assets"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# Models


def builtin_folder(name: str) -> Path:
    """The folder of a checkpoint that ships with the package (``shapes-sft``)."""
    folder = Path(str(resources.files("unigrpo"))) / ASSETS / name
    if not folder.is_dir():
        raise ConfigError(f"builtin:{name} is not in this installation ({folder} is missing): `make base` makes it")
    return folder


def model_folder(path: str) -> Path:
    """The model folder that a name means: builtin:NAME, a model folder, or a run folder (its newest checkpoint)."""
    if path.startswith("builtin:"):
        return builtin_folder(path.removeprefix("builtin:"))
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"the model {path!r} is not a folder: give a model or run folder, or {_builtin_names()}")
    if (folder / "recipe.yaml").is_file():
        if not (saved := checkpoint.complete(folder)):
            raise ConfigError(f"the run {path} has no checkpoint yet: wait for one, or name a model folder")
        return saved[-1]
    return folder


def _builtin_names() -> str:
    return " or ".join(("builtin:shapes-sft", "builtin:shapes-pretrain"))


def policy(model: config.Model, *, seed: int = 0, image_side: int | None = None) -> BagelPolicy:
    """Load (or, for init:micro, make) a model, on the CPU: this version has not been run on an accelerator."""
    if model.path == "init:micro":
        return build_micro(shapes.vocabulary(), load_autoencoder(builtin_folder("shapes-autoencoder")), seed=seed)
    size, folder = None if image_side is None else (image_side, image_side), model_folder(model.path)
    loaded = load_policy(folder, compute_dtype=DTYPES[model.dtype], image_size=size)
    if loaded.autoencoder is None:
        raise ConfigError(f"{folder} cannot draw: it has no autoencoder (autoencoder.json and ae.safetensors); add one")
    return loaded


# Prompts, rewards, judges


def prompts(name: str, seed: int) -> PromptSource:
    """A stream of training prompts: ``shapes:train``."""
    return shapes.PromptStream(_shapes_split(name), seed)


def _shapes_split(name: str) -> str:
    world, _, split = name.partition(":")
    if world != "shapes" or split not in shapes.SPLITS:
        known = " or ".join(f"shapes:{s}" for s in shapes.SPLITS)
        raise ConfigError(f"there are no prompts called {name!r}: this version has {known}")
    return split


def _shapes_verifier(
    images: Tensor, texts: Sequence[str], metadata: Sequence[Mapping[str, Any]], thinking: Sequence[str | None]
) -> RewardOutput:
    values, parts = tasks.graded_reward(images, metadata)
    return RewardOutput(values, parts)


registry.register("shapes/verifier", lambda: _shapes_verifier)


def reward(scorers: Sequence[config.Scorer]) -> CompositeReward:
    """The weighted sum of named rewards."""
    return CompositeReward(tuple(WeightedReward(s.name, registry.build(s.name), s.weight) for s in scorers))


@dataclass(frozen=True)
class Suite:
    """A list of prompts to evaluate on, and who judges the pictures."""

    name: str
    prompts: Callable[[int], list[Prompt]]
    judge: Judge


def suite(name: str) -> Suite:
    """The evaluation of a prompt set, ``shapes:held-out`` or ``shapes:train``; ``shapes`` means held-out."""
    split = _shapes_split("shapes:held-out" if name == "shapes" else name)
    return Suite(name, lambda limit: shapes.fixed(split, limit), tasks.judge_pictures)


# Methods and sampling


def method(chosen: config.Method) -> methods.Method:
    """The terms that a recipe's method section names."""
    if isinstance(chosen, config.Supervised):
        return methods.Supervised(
            ce_weight=chosen.ce_weight,
            mse_weight=chosen.mse_weight,
            shift=chosen.timestep_shift,
            times_per_image=chosen.noisy_copies,
            times=chosen.times,
        )
    advantage = settings.AdvantageSettings(chosen.advantage.epsilon, chosen.advantage.clip)
    if isinstance(chosen, config.TextGRPO):
        return methods.PolicyGradient(text=_text(chosen.text), flow=None, advantage=advantage)
    if isinstance(chosen, config.FlowGRPO):
        return methods.PolicyGradient(
            text=None, flow=_flow(chosen.flow), regulariser=_regulariser(chosen.regulariser), advantage=advantage
        )
    return methods.PolicyGradient(
        text=_text(chosen.text),
        flow=_flow(chosen.flow),
        regulariser=_regulariser(chosen.regulariser),
        advantage=advantage,
        lambda_flow=chosen.lambda_flow,
        image_grad_through_context=chosen.image_grad_through_context,
    )


def _text(term: config.TextTerm) -> settings.TextSettings:
    return settings.TextSettings(term.clip_range, term.kl_weight)


def _flow(term: config.FlowTerm) -> settings.FlowSettings:
    return settings.FlowSettings(term.clip_range, term.ratio_norm, term.grad_reweight)


def _regulariser(term: config.Regulariser) -> settings.RegulariserSettings:
    if term.kind == "none":
        return settings.RegulariserSettings(weight=0.0)
    return settings.RegulariserSettings(term.kind, term.weight)


def training_sampling(recipe: Recipe) -> Sampling:
    """How training samples are drawn; methods without an image term draw by the ODE alone."""
    r, draws = recipe.rollout, isinstance(recipe.method, config.UniGRPO | config.FlowGRPO)
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
    )


def evaluation_sampling(recipe: Recipe) -> Sampling:
    """How evaluation pictures are drawn: the ODE, thinking sampled at temperature 1 (design: Words)."""
    return Sampling(
        num_points=recipe.eval.num_points,
        shift=recipe.rollout.shift,
        max_think_tokens=recipe.rollout.max_think_tokens,
        guidance=Guidance(text_scale=recipe.eval.guidance),
    )


# A run


@dataclass(frozen=True)
class RecipeEvaluator:
    """The evaluations that a recipe asks for: the same prompts and draws each time."""

    recipe: Recipe
    suite: Suite
    reward: CompositeReward

    def _evaluate(self, policy: Policy, limit: int, samples: int) -> Evaluation:
        return evaluate(
            policy,
            self.suite.prompts(limit),
            self.suite.judge,
            evaluation_sampling(self.recipe),
            samples=samples,
            seed=self.recipe.seed,
            think=self.recipe.eval.think,
            reward=self.reward,
        )

    def validate(self, policy: Policy) -> Evaluation:
        """One picture for each of the first ``eval.limit`` prompts."""
        return self._evaluate(policy, self.recipe.eval.limit, 1)

    def compare(self, policy: Policy) -> Evaluation:
        """``eval.compare_samples`` pictures for each of ``eval.compare_limit`` prompts."""
        return self._evaluate(policy, self.recipe.eval.compare_limit, self.recipe.eval.compare_samples)


def source(recipe: Recipe) -> Source:
    """Rollouts for RL, demonstrations for supervised training."""
    data = recipe.data
    if isinstance(data, config.DemonstrationData):
        if data.demonstrations != "shapes":
            raise ConfigError(f"there are no demonstrations called {data.demonstrations!r}: this version has shapes")
        return DemonstrationSource(_demonstration_maker(recipe, data))
    assert not isinstance(recipe.method, config.Supervised)
    return RolloutSource(
        prompts=prompts(data.prompts, recipe.seed),
        episode=single_round(think=recipe.rollout.think),
        sampling=training_sampling(recipe),
        reward=reward(recipe.reward.train),
        prompts_per_iteration=data.prompts_per_iteration,
        group_size=data.group_size,
        seed=recipe.seed,
        advantage_epsilon=recipe.method.advantage.epsilon,
        advantage_clip=recipe.method.advantage.clip,
    )


def _demonstration_maker(recipe: Recipe, data: config.DemonstrationData) -> Callable[[Policy, int], list[Trajectory]]:
    mix = data.mix

    def make(policy: Policy, iteration: int) -> list[Trajectory]:
        early = iteration < mix.dense_until * recipe.iterations
        now = DemonstrationMix(
            bad_plan=mix.bad_plan,
            mismatch=mix.mismatch,
            no_think=mix.no_think,
            unconditional=mix.unconditional,
            dense=mix.dense if early else mix.dense_late,
            unsorted=mix.unsorted,
            plan_only=mix.plan_only,
        )
        return tasks.supervised_trajectories(policy, demonstrations(recipe.seed, iteration, data.batch_size, now))

    return make


def parts(recipe: Recipe) -> Parts:
    """Build everything a run needs; a name that means nothing is a ConfigError before anything is written."""
    chosen = method(recipe.method)
    made_source, made_suite = source(recipe), suite(recipe.eval.prompts)
    watched = reward(recipe.reward.validation)
    trained = policy(recipe.model, seed=recipe.seed, image_side=recipe.rollout.image_size)
    if trained.spec.image_size != (shapes.IMAGE_SIZE, shapes.IMAGE_SIZE):
        (height, width), side = trained.spec.image_size, shapes.IMAGE_SIZE
        raise ConfigError(
            f"the model would draw {height} x {width} pixels, but the shapes world has {side} x {side}: "
            f"set rollout.image_size to {side}, or model.path to a model of that size"
        )
    wants_reference = chosen.needs_reference_velocity or chosen.needs_reference_log_probs
    frozen = policy(recipe.model, image_side=recipe.rollout.image_size) if wants_reference else None
    if frozen is not None:
        frozen.model.requires_grad_(False)

    def load_model(folder: Path) -> None:
        weights = folder / "model.safetensors"
        load_weights(trained.model, read_weights(weights), str(weights))

    flow = None if isinstance(recipe.method, config.Supervised | config.TextGRPO) else recipe.method.flow
    return Parts(
        policy=trained,
        reference=frozen,
        method=chosen,
        source=made_source,
        evaluator=RecipeEvaluator(recipe, made_suite, watched),
        save_model=lambda folder: save_policy(trained, folder),
        load_model=load_model,
        compute_dtype=DTYPES[recipe.model.dtype],
        clip_range=None if flow is None else flow.clip_range,
    )
