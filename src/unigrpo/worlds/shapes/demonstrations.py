"""What the shapes world shows to its pupils: scenes, their plans and likely mistakes (:mod:`...demonstrations`)."""

from __future__ import annotations

from unigrpo.worlds.demonstrations import Demonstration, DemonstrationMix
from unigrpo.worlds.shapes.looking import LookingTeacher
from unigrpo.worlds.shapes.planner import corrupt_scene, format_plan, random_scene, sample_scene, slip
from unigrpo.worlds.shapes.prompts import PromptStream
from unigrpo.worlds.shapes.renderer import render
from unigrpo.worlds.shapes.scenes import Scene

TEACHER = LookingTeacher(
    "shapes",
    prompt=lambda seed, position: PromptStream("train", seed).at(position),
    sample=sample_scene,
    dense=lambda draws, unsorted: random_scene(draws, unsorted=unsorted),
    corrupt=corrupt_scene,
    slip=slip,
    write=format_plan,
    render=render,
)


def demonstrations(seed: int, iteration: int, n: int, mix: DemonstrationMix) -> list[Demonstration[Scene]]:
    """n demonstrations of the shapes world for one step of supervised training."""
    return TEACHER.batch(seed, iteration, n, mix)
