"""A recipe, whole, and the checks that its parts fit each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from unigrpo.loading import reference
from unigrpo.objectives.advantage import Advantage
from unigrpo.objectives.method import Method
from unigrpo.ranges import ConfigError, Count, Description, Name, PathOrName, Seed, did_you_mean, shown
from unigrpo.recipe.demonstrations import check_teaches
from unigrpo.recipe.rounds import check_rounds
from unigrpo.recipe.sections import (
    Checkpoint,
    DemonstrationData,
    Eval,
    Model,
    Optimizer,
    Parallel,
    PromptData,
    Reward,
    Rollout,
    Scorer,
)

LOGGERS = ("tensorboard", "wandb", "trackio")
"""The loggers that ship (training/sinks has a file each)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment, whole; building one checks that its parts fit each other (ConfigError)."""

    name: Name
    """What the run is called; its folder is named after it."""
    description: Description = ""
    """What it is for, in a sentence."""
    seed: Seed = 0
    """Keys every random draw of the run."""
    iterations: Count
    """How many iterations the run has."""
    model: Model
    data: PromptData | DemonstrationData
    rollout: Rollout = field(default_factory=Rollout)
    reward: Reward
    method: Method
    optimizer: Optimizer = field(default_factory=Optimizer)
    eval: Eval
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    parallel: Parallel = field(default_factory=Parallel)
    log: tuple[PathOrName, ...] = ()
    """Where the run is logged besides its folder: tensorboard, wandb, trackio, a logger of your own (file.py:Thing)."""

    def __post_init__(self) -> None:
        _check_log(self.log)
        _check_data(self)
        _check_rewards(self)
        _check_schedule(self)
        _check_lora(self)
        _check_eps(self)
        if self.method.needs_sde:
            _check_window(self)
        else:
            _check_no_window(self)
        if self.method.needs_thinking:
            _check_thinking(self)
        _check_thoughts(self)
        check_rounds(self)
        _check_advantages(self)
        _check_parallel(self)
        if self.method.learns_from == "prompts":
            _check_rates(self)
            _check_learns(self)


def _check_log(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in LOGGERS and reference(name) is None:
            raise ConfigError(
                f"log = {shown(name)} is not known{did_you_mean(name, LOGGERS)}; choose one of {', '.join(LOGGERS)}, "
                "or name a logger of your own as file.py:Thing or package.module:Thing"
            )
    if len(set(names)) < len(names):
        raise ConfigError(f"log = {list(names)} names a place twice: once is enough")


def _check_data(recipe: Recipe) -> None:
    data, optimizer, method = recipe.data, recipe.optimizer, recipe.method
    if (method.learns_from == "demonstrations") != isinstance(data, DemonstrationData):
        raise ConfigError(
            f"method {recipe.method.name} with {type(data).__name__}: supervised runs learn from demonstrations, "
            "RL runs from prompts; change data or method"
        )
    if isinstance(data, DemonstrationData):
        check_teaches(data, method)
        for key, value in (("ppo_epochs", optimizer.ppo_epochs), ("minibatches", optimizer.minibatches)):
            if value != 1:
                raise ConfigError(
                    f"optimizer.{key} = {value}: a batch of demonstrations is used once, in one step; set it to 1"
                )
        return
    if data.group_size < 2 and method.uses_advantages:
        raise ConfigError(
            "data.group_size = 1: an advantage compares the samples of one prompt, and a single sample always gets 0; "
            "set it to 2 or more"
        )
    if data.prompts_per_iteration % optimizer.minibatches:
        raise ConfigError(
            f"optimizer.minibatches = {optimizer.minibatches} does not divide data.prompts_per_iteration = "
            f"{data.prompts_per_iteration}: a minibatch takes whole groups; change either so that it divides"
        )


def _check_rewards(recipe: Recipe) -> None:
    example = "for example [{name: shapes/verifier}]"
    if not recipe.reward.validation:
        raise ConfigError(f"reward.validation is empty: an evaluation would measure nothing; list a reward, {example}")
    if not recipe.reward.train and recipe.method.learns_from == "prompts":
        raise ConfigError(
            f"reward.train is empty: {recipe.method.name} has nothing to optimise; list a reward, {example}"
        )
    if recipe.method.learns_from == "prompts":
        _check_teaching(recipe)
    if any(s.teaches != "both" for s in recipe.reward.validation):
        raise ConfigError("reward.validation has teaches, and nothing learns from a validation: leave it out")


def _check_thoughts(recipe: Recipe) -> None:
    """Whether thoughts can be shared by pictures as rollout.images_per_thinking says (docs/math.md#j-x-k)."""
    each, method, data = recipe.rollout.images_per_thinking, recipe.method, recipe.data
    said = f"rollout.images_per_thinking = {each}"
    if method.advantage.within == "thought" and each == 1:
        raise ConfigError(
            f"method.advantage.within = thought with {said}: a picture alone on its thought would never be better than "
            "another; set images_per_thinking to 2 or more, or within to group"
        )
    if method.advantage.within == "thought" and not method.trains_drawing:
        raise ConfigError(
            f"method.advantage.within = thought compares pictures, and {method.name} trains the thinking alone: "
            "leave it out"
        )
    if each == 1 or not isinstance(data, PromptData):
        return
    if not recipe.rollout.think:
        raise ConfigError(f"{said}, and rollout.think is false: there is no thinking to share; set one of them back")
    if data.group_size % each:
        raise ConfigError(
            f"{said} does not divide data.group_size = {data.group_size}: a group is made of thoughts with so many "
            "pictures each; change either"
        )
    if recipe.rollout.batch is not None and recipe.rollout.batch < each:
        raise ConfigError(
            f"rollout.batch = {recipe.rollout.batch} is less than {said}, which are drawn together: set it to {each} "
            "or more"
        )
    if recipe.rollout.same_initial_noise and not method.needs_sde:
        raise ConfigError(
            f"{said} with rollout.same_initial_noise: {method.name} draws by the ODE, so all pictures of a thought "
            "would be the same; set either back"
        )
    if method.trains_thinking and data.group_size == each:
        raise ConfigError(
            f"{said} is data.group_size: every prompt has one thought, and {method.name} compares thoughts; lower it"
        )


def _check_teaching(recipe: Recipe) -> None:
    """Whether every half that is trained has a reward to learn from."""
    method, shares = recipe.method, recipe.reward.train
    for half, trains in (("thinking", method.trains_thinking), ("drawing", method.trains_drawing)):
        if trains and not any(s.teaches in ("both", half) for s in shares):
            raise ConfigError(
                f"reward.train has nothing that teaches the {half}, which {method.name} trains: set teaches to both or "
                f"{half} for one of them, or use {'flow_grpo' if half == 'thinking' else 'text_grpo'}"
            )
        if trains and all(total == 0 for total in _totals(shares, half).values()):
            raise ConfigError(
                f"the weights of reward.train are 0, or cancel for each reward that teaches the {half}: there is "
                "nothing to optimise; change one"
            )
        if not trains and any(s.teaches == half for s in shares):
            raise ConfigError(
                f"reward.train has a reward that teaches the {half} alone, which {method.name} does not train: leave "
                "it out, or set its teaches to both"
            )


def _check_parallel(recipe: Recipe) -> None:
    """Settings of sharding that go with nothing else, and what cannot be shared out."""
    p, plain = recipe.parallel, Parallel()
    if p.mode == "replicate":
        for key in ("replicas", "rollout_weights", "cpu_offload"):
            if vars(p)[key] != vars(plain)[key]:
                raise ConfigError(
                    f"parallel.{key} = {vars(p)[key]} with parallel.mode = replicate, where every rank holds all "
                    "weights: leave it out, or set mode to shard"
                )
    if p.mode == "shard" and recipe.optimizer.kind != "adamw":
        raise ConfigError(
            f"optimizer.kind = {recipe.optimizer.kind} with parallel.mode = shard: bitsandbytes does not know weights "
            "that are shared out; set kind to adamw, or mode to replicate"
        )
    if p.mode == "shard" and recipe.model.quantize != "none":
        raise ConfigError(
            f"model.quantize = {recipe.model.quantize} with parallel.mode = shard: weights in 4 bits are not shared "
            "out; set mode to replicate (every rank holds all of them), or quantize to none"
        )
    if p.mode == "shard" and recipe.method.learns_from == "demonstrations":
        raise ConfigError(
            "parallel.mode = shard with demonstrations: their rows differ in what they teach, and sharded ranks must "
            "all do the same; set mode to replicate"
        )


def _check_advantages(recipe: Recipe) -> None:
    """Ways to compare rewards that a method does not use."""
    if recipe.method.uses_advantages:
        return
    asked, plain = vars(recipe.method.advantage), vars(Advantage())
    for key in ("combine", "scale", "baseline", "within", "credit"):
        if asked[key] != plain[key]:
            raise ConfigError(
                f"method.advantage.{key} = {asked[key]}: {recipe.method.name} compares no rewards; leave it out"
            )


def _totals(shares: Sequence[Scorer], half: str) -> dict[str, float]:
    """The weights of each reward that teaches a half; with other arguments, or another value, it is another."""
    totals: dict[str, float] = {}
    for s in shares:
        if s.teaches in ("both", half):
            key = f"{s.name} {s.value} {sorted(s.args.items())}"
            totals[key] = totals.get(key, 0.0) + s.weight
    return totals


def trained_experts(recipe: Recipe) -> tuple[str, ...]:
    """Which experts the method trains: its terms decide (docs/math.md#joint)."""
    trained = (("reasoning", recipe.method.trains_thinking), ("denoising", recipe.method.trains_drawing))
    return tuple(expert for expert, trains in trained if trains)


def how_trained(recipe: Recipe, expert: Literal["reasoning", "denoising"]) -> Literal["full", "lora", "frozen"]:
    """How a run trains an expert: all of its weights, adapters on them, or nothing."""
    if expert not in trained_experts(recipe):
        return "frozen"
    return "full" if recipe.model.lora is None else "lora"


def _check_lora(recipe: Recipe) -> None:
    lora, method = recipe.model.lora, recipe.method
    if lora is None:
        return
    missing = [expert for expert in trained_experts(recipe) if expert not in lora.experts]
    if missing and method.learns_from == "prompts":  # demonstrations teach whichever expert has adapters
        alone = " (method.name flow_grpo trains denoising alone, text_grpo reasoning alone)"
        raise ConfigError(
            f"model.lora.experts = {list(lora.experts)}: {method.name} also trains {missing[0]}, which would have no "
            f"weights to train; add it{alone if method.trains_thinking and method.trains_drawing else ''}"
        )
    if method.train_vision:
        raise ConfigError(
            "method.train_vision = true with model.lora: adapters train the experts only; set one of them off"
        )


def _check_eps(recipe: Recipe) -> None:
    o = recipe.optimizer
    for key, eps in (("eps_reasoning", o.eps_reasoning), ("eps_denoising", o.eps_denoising)):
        if o.kind != "adamw" and eps < 1e-8:
            raise ConfigError(
                f"optimizer.{key} = {eps:g} with {o.kind}: in 8 bits a small second moment rounds to 0 where the first "
                "does not, and such a weight would move by thousands of learning rates; set it to 1e-8 or more"
            )


def _check_schedule(recipe: Recipe) -> None:
    warmup, decay = recipe.optimizer.warmup, recipe.optimizer.decay
    if warmup + decay * recipe.iterations > recipe.iterations:
        raise ConfigError(
            f"optimizer.warmup = {warmup} iterations and optimizer.decay = {decay:g} of the run overlap in "
            f"{recipe.iterations} iterations: shorten either, or set more iterations"
        )


def _check_rates(recipe: Recipe) -> None:
    """Rates, norms and weights with which a trained expert would stay where it is."""
    o, name = recipe.optimizer, recipe.method.name
    for expert, rate, eps in (
        ("reasoning", o.lr_reasoning, o.eps_reasoning),
        ("denoising", o.lr_denoising, o.eps_denoising),
    ):
        if expert not in trained_experts(recipe):
            continue
        if rate < SMALLEST_RATE:
            raise ConfigError(
                f"optimizer.lr_{expert} = {rate:g}: {name} trains the {expert} expert, whose weights would not move in "
                f"fp32; set it to {SMALLEST_RATE:g} or more"
            )
        if o.max_grad_norm < eps:
            raise ConfigError(
                f"optimizer.max_grad_norm = {o.max_grad_norm:g} is below optimizer.eps_{expert} = {eps:g}: a gradient "
                "clipped to that is nothing beside epsilon, and no weight would move; set it to 1, or epsilon lower"
            )


SMALLEST_RATE = 1e-12  # a step of Adam is about the learning rate; fp32 has 1e-9 beside weights of 0.01
SMALLEST_CLIP = 1e-9  # replays in fp32 leave 1e-9 to 1e-8 of a ratio of 1; the paper's range is 1e-6
COLDEST = 1e-3  # below it every chain of one prompt is the same, to fp32


def _check_learns(recipe: Recipe) -> None:
    """Settings of the method with which one half, or both, would learn nothing."""
    method, rollout = recipe.method, recipe.rollout
    if method.trains_thinking and method.trains_drawing and method.lambda_flow == 0:
        raise ConfigError(
            f"method.lambda_flow = 0: {method.name} would not train the drawing; set it above 0, or method.name to "
            "text_grpo"
        )
    for section, clip_range in method.clip_ranges.items():
        if isinstance(clip_range, float) and clip_range < SMALLEST_CLIP:
            raise ConfigError(
                f"method.{section}.clip_range = {clip_range:g} is below the rounding of a ratio of 1, so that "
                f"every ratio is clipped; set it to {SMALLEST_CLIP:g} or more"
            )
    if method.needs_thinking and rollout.temperature < COLDEST:
        raise ConfigError(
            f"rollout.temperature = {rollout.temperature:g}: {method.name} compares different chains of one prompt, "
            f"and so cold they are all the same; set it to {COLDEST:g} or more (the paper: 1)"
        )
    if method.needs_thinking and rollout.max_think_tokens == 1:
        raise ConfigError(
            f"rollout.max_think_tokens = 1: {method.name} trains the thinking, and one token is none; set it to 2 or "
            "more (the paper's model: about 1024)"
        )


def _check_no_window(recipe: Recipe) -> None:
    """Methods without SDE steps: guidance and window must make sense without."""
    method, rollout = recipe.method, recipe.rollout
    if not method.of_guided_pictures and rollout.guidance != 1:
        raise ConfigError(
            f"rollout.guidance = {rollout.guidance:g}: {method.name} trains the model's own velocity, and a guided "
            "picture is not drawn by that alone; set it to 1, and guide evaluations with eval.guidance"
        )
    alike = not rollout.think or rollout.temperature == 0
    if method.uses_advantages and not method.trains_thinking and rollout.same_initial_noise and alike:
        raise ConfigError(
            "rollout.same_initial_noise = true, and nothing else differs between the samples of a prompt: "
            f"{method.name} draws by the ODE, so all their pictures would be the same; set it to false"
        )
    if rollout.window_motion == "sliding":
        raise ConfigError(
            f"rollout.window_motion = sliding: {method.name} has no SDE window that could move; set it to random, or "
            "method.name to unigrpo or flow_grpo"
        )


def _check_window(recipe: Recipe) -> None:
    rollout, method = recipe.rollout, recipe.method
    (lo, hi), size = rollout.window, rollout.window_size
    if size == 0:
        raise ConfigError(
            f"rollout.window_size = 0: {method.name} scores the SDE steps of a picture (RatioNorm divides by their "
            "noise), and there would be none; set it to 1 or more (Table 3: 3)"
        )
    if lo + size > hi:
        raise ConfigError(
            f"rollout.window_size = {size} does not fit rollout.window = [{lo}, {hi}], which holds {max(hi - lo, 0)} "
            f"steps: set window_size to at most that, or widen the window to [{lo}, {lo + size}]"
        )
    starts = hi - size - lo + 1
    if rollout.window_motion == "sliding" and rollout.window_stride % starts == 0:
        raise ConfigError(
            f"rollout.window_motion = sliding: rollout.window = [{lo}, {hi}] has {starts} places for {size} steps, and "
            f"a window_stride of {rollout.window_stride} never moves among them; widen the window, or change the stride"
        )
    if hi > rollout.num_points - 2:
        raise ConfigError(
            f"rollout.window = [{lo}, {hi}] reaches the last of the {rollout.num_points - 1} steps of "
            f"rollout.num_points = {rollout.num_points}, where an SDE leaves noise in the picture: end it at "
            f"{rollout.num_points - 2} or before, or set num_points to {hi + 2} or more"
        )
    if rollout.noise_level == 0 or (rollout.sde == "cps" and rollout.noise_level > 1):
        raise ConfigError(
            f"rollout.noise_level = {rollout.noise_level:g} with rollout.sde = {rollout.sde}: without noise there is "
            "no choice to score, and cps mixes noise by sin(pi/2 x level); set it above 0 (cps: at most 1), e.g. 0.8"
        )


def _check_thinking(recipe: Recipe) -> None:
    name, rollout = recipe.method.name, recipe.rollout
    if not rollout.think:
        raise ConfigError(
            f"rollout.think = false: {name} trains the thinking, and there would be none; "
            "set it to true, or method.name to flow_grpo, fpo or refl"
        )
    if rollout.temperature == 0:
        raise ConfigError(
            f"rollout.temperature = 0: {name} compares different chains of one prompt, and greedy ones are all "
            "the same; set it above 0 (the paper: 1)"
        )
