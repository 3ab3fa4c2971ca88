"""What the words world shows to its pupils: signs, their plans and likely mistakes (:mod:`...demonstrations`)."""

from __future__ import annotations

from unigrpo.worlds.demonstrations import Teacher
from unigrpo.worlds.words.planner import corrupt_sign, format_plan, random_sign, sample_sign, slip
from unigrpo.worlds.words.prompts import PromptStream
from unigrpo.worlds.words.renderer import render
from unigrpo.worlds.words.signs import Sign

TEACHER = Teacher[Sign](
    "words",
    prompt=lambda seed, position: PromptStream("train", seed).at(position),
    sample=sample_sign,
    dense=random_sign,
    corrupt=corrupt_sign,
    slip=slip,
    write=format_plan,
    render=render,
)
