"""What an iteration of a recipe costs, in words."""

from __future__ import annotations

import math

from unigrpo.plurals import counted
from unigrpo.recipe.schema import Recipe
from unigrpo.recipe.sections import DemonstrationData, PromptData


def batch_arithmetic(recipe: Recipe) -> list[str]:
    """Say in words what an iteration costs (for ``--dry-run``): trajectories, steps, forwards, micro-batches."""
    body = _supervised_arithmetic(recipe) if isinstance(recipe.data, DemonstrationData) else _rl_arithmetic(recipe)
    evaluation = recipe.eval
    return [
        *body,
        f"evaluation: every {counted(evaluation.every, 'iteration')} on {counted(evaluation.limit, 'prompt')} of "
        f"{evaluation.prompts}, and before and after on {counted(evaluation.compare_limit, 'prompt')} x "
        f"{counted(evaluation.compare_samples, 'image')}, "
        f"{_forwards(evaluation.num_points, evaluation.guidance, evaluation.image_guidance)} per image",
        f"checkpoint: every {counted(recipe.checkpoint.every, 'iteration')}, the newest {recipe.checkpoint.keep} kept",
    ]


def _forwards(num_points: int, guidance: float, of_images: float = 1.0) -> str:
    steps = num_points - 1
    points = counted(num_points, "grid point")
    if guidance == 1:
        return f"{counted(num_points, 'grid point')} = {counted(steps, 'forward')}"
    if of_images > 1:
        scales = f"{guidance:g} and image guidance {of_images:g}"
        return f"{points} = {3 * steps} forwards ({counted(steps, 'step')} x 3 for guidance {scales})"
    return f"{points} = {2 * steps} forwards ({counted(steps, 'step')} x 2 for guidance {guidance:g})"


def _supervised_arithmetic(recipe: Recipe) -> list[str]:
    data, method = recipe.data, recipe.method
    assert isinstance(data, DemonstrationData)
    return [
        f"batch: {counted(data.batch_size, 'demonstration')} x {counted(method.copies(0), 'noisy copy')} of each image",
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
        f"trajectories: {counted(prompts, 'prompt')} x {counted(group, 'sample')} = {trajectories} per iteration",
        f"rollout: {thinking}{drawing} per image{_rounds(recipe)}",
        f"updates: {counted(optimizer.ppo_epochs, 'epoch')} x {counted(optimizer.minibatches, 'minibatch')} = "
        f"{counted(updates, 'optimizer step')} per iteration, {updates * recipe.iterations} in "
        f"{counted(recipe.iterations, 'iteration')}",
        _micro_batches(trajectories // optimizer.minibatches, optimizer.micro_batch),
    ]
    if recipe.method.needs_sde:
        (lo, hi), size = rollout.window, rollout.window_size
        trained = f"{counted(size, 'step')} of each image {'is' if size == 1 else 'are'} trained"
        lines.insert(2, f"SDE window: {trained}, starting at step {lo} to {hi - size}")
    if recipe.method.needs_reward_gradient:
        lines.append("gradients pass through the decoder: what it keeps for them is not in the memory below")
    return lines


def _rounds(recipe: Recipe) -> str:
    """How many images a trajectory has, where it has several."""
    rounds, stops = recipe.rollout.rounds, recipe.rollout.stop == "said"
    if rounds == 1:
        return ""
    most = "at most " if stops else ""
    return f", {most}{counted(rounds, 'image')} per trajectory, each but the last one looked at"


def _micro_batches(sequences: int, micro_batch: int) -> str:
    count = math.ceil(sequences / micro_batch)
    at_once = min(micro_batch, sequences)
    return f"micro-batches: {counted(sequences, 'sequence')}, {at_once} at a time = {count} per optimizer step"
