"""Which keys of a recipe to turn down where memory is full, by phase, in the order in which they cost least."""

from __future__ import annotations

from dataclasses import replace

from unigrpo.memory import Advice
from unigrpo.recipe import DemonstrationData, Recipe

LOADING, ROLLOUT, REFRESH, REWARD = (
    "loading the model",
    "drawing samples",
    "copying the weights to draw with",
    "scoring",
)
ANNOTATE, UPDATE, EVALUATION = "asking the reference", "updating", "evaluating"
EIGHT_BIT_EPSILON = 1e-8
"""Below it an optimizer of 8 bits is refused (``recipe``)."""
OFTEN = 192
"""Pictures that an evaluation draws together where ``rollout.batch`` is null (``build.runs``)."""


def advice_for(recipe: Recipe) -> Advice:
    """What to turn down in each phase of a recipe's run, with the values that the keys have now."""
    kinds = {
        LOADING: _loading,
        ROLLOUT: _rollout,
        REFRESH: _refresh,
        REWARD: _reward,
        ANNOTATE: _annotate,
        UPDATE: _update,
        EVALUATION: _evaluation,
    }

    def advice(phase: str) -> str:
        steps = [step for step in kinds.get(phase, _update)(recipe) if step]
        if not steps:
            return "nothing of this recipe can be turned down further there: take a device with more memory"
        return "Turn down, in this order: " + "; ".join(dict.fromkeys(steps))

    return advice


def _key(name: str, now: object, what: str) -> str:
    shown = "null" if now is None else str(now).lower() if isinstance(now, bool) else now
    return f"{name} (now {shown}): {what}"


def _batch(recipe: Recipe, all_now: int) -> str:
    batch = recipe.rollout.batch
    if batch == 1 or isinstance(recipe.data, DemonstrationData):
        return ""
    if batch is not None:
        return _key("rollout.batch", batch, f"{max(1, batch // 2)}, the samples that are drawn together")
    return _key("rollout.batch", None, f"{max(1, all_now // 2)} instead of all {all_now} at a time")


def _samples(recipe: Recipe) -> int:
    if isinstance(recipe.data, DemonstrationData):
        return recipe.data.batch_size
    return recipe.data.prompts_per_iteration * recipe.data.group_size


def _pixels(recipe: Recipe) -> list[str]:
    kind, better = recipe.model.autoencoder, {"whole": "sliced", "sliced": "tiled"}
    steps = [_key("model.autoencoder", kind, better[kind])] if kind in better else []
    side = recipe.rollout.image_size
    return [*steps, _key("rollout.image_size", side, "smaller pictures") if side is not None else ""]


def _words(recipe: Recipe) -> str:
    if not recipe.rollout.think or isinstance(recipe.data, DemonstrationData):
        return ""
    return _key("rollout.max_think_tokens", recipe.rollout.max_think_tokens, "shorter thinking")


def _weights(recipe: Recipe) -> list[str]:
    model, parallel = recipe.model, recipe.parallel
    return [
        _key("model.dtype", model.dtype, "bfloat16") if model.dtype == "float32" else "",
        _key("model.lora", None, "{rank: 64, alpha: 128}, adapters instead of all weights")
        if model.lora is None
        else "",
        _key("parallel.mode", parallel.mode, "shard, with more GPUs (--nproc)") if _can_share(recipe) else "",
    ]


def _can_share(recipe: Recipe) -> bool:
    """Whether the recipe's weights could be shared out, and are not yet."""
    if recipe.parallel.mode == "shard":
        return False
    try:
        replace(recipe, parallel=replace(recipe.parallel, mode="shard"))
    except ValueError:
        return False
    return True


def _loading(recipe: Recipe) -> list[str]:
    return [*_weights(recipe), *_offload(recipe)]


def _offload(recipe: Recipe) -> list[str]:
    parallel = recipe.parallel
    if parallel.mode != "shard":
        return []
    replica, offload = parallel.rollout_weights == "replica", not parallel.cpu_offload
    return [
        _key("parallel.rollout_weights", "replica", "sharded, without a copy of the weights") if replica else "",
        _key("parallel.cpu_offload", False, "true") if offload else "",
    ]


def _refresh(recipe: Recipe) -> list[str]:
    return [*_offload(recipe), *_weights(recipe)]


def _rollout(recipe: Recipe) -> list[str]:
    return [_batch(recipe, _samples(recipe)), *_pixels(recipe), _words(recipe), *_offload(recipe), *_weights(recipe)]


def _reward(recipe: Recipe) -> list[str]:
    names = ", ".join(scorer.name for scorer in (*recipe.reward.train, *recipe.reward.validation))
    served = (
        f"reward.train (now {names}): a reward that has a model of its own can be served by another machine or GPU "
    )
    return [_batch(recipe, _samples(recipe)), f"{served}(unigrpo rewards serve, remote/http)" if names else ""]


def _evaluation(recipe: Recipe) -> list[str]:
    drawn = min(OFTEN, max(recipe.eval.limit, recipe.eval.compare_limit * recipe.eval.compare_samples))
    return [_batch(recipe, drawn), *_pixels(recipe), *_offload(recipe), *_weights(recipe)]


def _annotate(recipe: Recipe) -> list[str]:
    return [_micro(recipe), _words(recipe), *_weights(recipe), *_offload(recipe)]


def _micro(recipe: Recipe) -> str:
    size = recipe.optimizer.micro_batch
    if size == 1:
        return ""
    return _key("optimizer.micro_batch", size, f"{max(1, size // 2)}, which changes no number but rounding")


def _update(recipe: Recipe) -> list[str]:
    kind, recompute = recipe.optimizer.kind, recipe.model.activation_checkpointing
    shared = recipe.parallel.mode == "shard"  # for which bitsandbytes has no optimizer
    smaller = {"adamw": "adamw_8bit", "adamw_8bit": "paged_adamw_8bit"}
    fine = " with optimizer.eps_denoising 1e-8" if recipe.optimizer.eps_denoising < EIGHT_BIT_EPSILON else ""
    return [
        _micro(recipe),
        "" if recompute else _key("model.activation_checkpointing", False, "true"),
        _key("optimizer.kind", kind, f"{smaller[kind]}{fine}") if kind in smaller and not shared else "",
        *_weights(recipe),
        *_offload(recipe),
        _words(recipe),
    ]
