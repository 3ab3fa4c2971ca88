"""What an iteration of a recipe costs, in words."""

from __future__ import annotations

import math

from unigrpo.recipe.schema import Recipe
from unigrpo.recipe.sections import DemonstrationData, PromptData


def batch_arithmetic(recipe: Recipe) -> list[str]:
    """Say in words what an iteration costs (for ``--dry-run``): trajectories, steps, forwards, micro-batches."""
    body = _supervised_arithmetic(recipe) if isinstance(recipe.data, DemonstrationData) else _rl_arithmetic(recipe)
    evaluation = recipe.eval
    return [
        *body,
        f"evaluation: every {evaluation.every} iterations on {evaluation.limit} prompts of {evaluation.prompts}, and "
        f"before and after on {evaluation.compare_limit} prompts x {evaluation.compare_samples} images, "
        f"{_forwards(evaluation.num_points, evaluation.guidance)} per image",
        f"checkpoint: every {recipe.checkpoint.every} iterations, the newest {recipe.checkpoint.keep} kept",
    ]


def _counted(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("ch") and noun != "epoch" else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def _forwards(num_points: int, guidance: float) -> str:
    steps = num_points - 1
    if guidance == 1:
        return f"{num_points} grid points = {steps} forwards"
    return f"{num_points} grid points = {2 * steps} forwards ({steps} steps x 2 for guidance {guidance:g})"


def _supervised_arithmetic(recipe: Recipe) -> list[str]:
    data, method = recipe.data, recipe.method
    assert isinstance(data, DemonstrationData)
    return [
        f"batch: {data.batch_size} demonstrations x {method.copies(0)} noisy copies of each image",
        f"updates: 1 optimizer step per iteration, {recipe.iterations} in the run",
        _micro_batches(data.batch_size, recipe.optimizer.micro_batch),
    ]


def _rl_arithmetic(recipe: Recipe) -> list[str]:
    data, rollout, optimizer = recipe.data, recipe.rollout, recipe.optimizer
    assert isinstance(data, PromptData)
    updates = optimizer.ppo_epochs * optimizer.minibatches
    prompts, group = data.prompts_per_iteration, data.group_size
    trajectories = prompts * group
    thinking = f"up to {rollout.max_think_tokens} thinking tokens, then " if rollout.think else ""
    drawing = _forwards(rollout.num_points, rollout.guidance)
    lines = [
        f"trajectories: {prompts} prompts x {group} samples = {trajectories} per iteration",
        f"rollout: {thinking}{drawing} per image{_rounds(recipe)}",
        f"updates: {_counted(optimizer.ppo_epochs, 'epoch')} x {_counted(optimizer.minibatches, 'minibatch')} = "
        f"{updates} optimizer steps per iteration, {updates * recipe.iterations} in {recipe.iterations} iterations",
        _micro_batches(trajectories // optimizer.minibatches, optimizer.micro_batch),
    ]
    if recipe.method.needs_sde:
        (lo, hi), size = rollout.window, rollout.window_size
        lines.insert(2, f"SDE window: {size} steps of each image are trained, starting at step {lo} to {hi - size}")
    if recipe.method.needs_reward_gradient:
        lines.append("gradients pass through the decoder: what it keeps for them is not in the memory below")
    return lines


def _rounds(recipe: Recipe) -> str:
    """How many images a trajectory has, where it has several."""
    rounds, stops = recipe.rollout.rounds, recipe.rollout.stop == "said"
    if rounds == 1:
        return ""
    most = "at most " if stops else ""
    return f", {most}{rounds} images per trajectory, each but the last one looked at"


def _micro_batches(sequences: int, micro_batch: int) -> str:
    count = math.ceil(sequences / micro_batch)
    return f"micro-batches: {sequences} sequences, {min(micro_batch, sequences)} at a time = {count} per optimizer step"
