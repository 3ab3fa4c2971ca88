"""What the shapes world shows to a model that looks: critiques with corrected drawings, edits, and questions."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from unigrpo.trajectory import Prompt
from unigrpo.worlds.demonstrations import LOOKING, Demonstration, DemonstrationMix, Form, Teacher
from unigrpo.worlds.shapes.critiques import CRITIQUE_WORDS, applied, critique, format_rethinking
from unigrpo.worlds.shapes.edit_prompts import WORDS, EditStream
from unigrpo.worlds.shapes.edits import corrupt_target, sample_target
from unigrpo.worlds.shapes.planner import format_plan
from unigrpo.worlds.shapes.questions import QUESTION_WORDS, question
from unigrpo.worlds.shapes.renderer import render
from unigrpo.worlds.shapes.scenes import Scene

SECOND_SLIP = 0.15
"""Share of the pictures with a slip that have another one."""


def further_words() -> tuple[str, ...]:
    """All words that a model needs which looks: of critiques, of questions and answers, of instructions."""
    return tuple(dict.fromkeys((*CRITIQUE_WORDS, *QUESTION_WORDS, *WORDS)))


def seen(scene: Scene) -> Tensor:
    """The picture of a scene as it is saved, uint8 [3, 32, 32]."""
    return (render([scene])[0] * 255).round().to(torch.uint8)


def held_out_questions(n: int) -> list[tuple[str, str, str, Tensor]]:
    """The first n questions of the evaluation: (kind, question, answer, picture)."""
    asked = [question("held-out", 0, position) for position in range(n)]
    return [(item.kind, item.words, item.answer, seen(item.scene)) for item in asked]


@dataclass(frozen=True)
class LookingTeacher(Teacher[Scene]):
    """The teacher of a world in which a drawn picture is looked at and drawn again."""

    def demonstration(
        self, form: Form, prompt: Prompt, mix: DemonstrationMix, draws: random.Random
    ) -> Demonstration[Scene]:
        """One demonstration of a form, for a training prompt."""
        if form not in LOOKING:
            return super().demonstration(form, prompt, mix, draws)
        if form == "question":
            return self._question(prompt, draws)
        return self._edit(prompt, mix, draws) if form == "edit" else self._look(form, prompt, mix, draws)

    def _question(self, prompt: Prompt, draws: random.Random) -> Demonstration[Scene]:
        asked = question("train", draws.getrandbits(48), prompt.position)
        words = Prompt(prompt.position, asked.words)
        return Demonstration(words, None, None, "question", False, seen(asked.scene), asked.answer)

    def _edit(self, prompt: Prompt, mix: DemonstrationMix, draws: random.Random) -> Demonstration[Scene]:
        """An instruction over a picture, the plan of the whole result (``bad_plan`` of them wrong), and the result."""
        asked = EditStream("edit", draws.getrandbits(48)).at(prompt.position)
        plan = sample_target(asked.metadata, draws)
        if draws.random() < mix.bad_plan:
            plan = corrupt_target(plan, asked.metadata, draws)
        drawn = self.slip(plan, draws) if draws.random() < mix.bad_revision else plan
        words = Prompt(asked.position, asked.text, asked.metadata)
        return Demonstration(words, plan, drawn, "edit", True, asked.images[0], format_plan(plan))

    def _look(self, form: Form, prompt: Prompt, mix: DemonstrationMix, draws: random.Random) -> Demonstration[Scene]:
        """A picture as the first round leaves it, what is said of it, and what is drawn then.

        A share ``look_edits`` came of an edit. A share ``misseen`` is described as if one object more were otherwise;
        the plan follows what is said. A picture that is fine is drawn again as it is.
        """
        sample, corrupt = self.sample, self.corrupt
        if mix.look_edits and draws.random() < mix.look_edits:
            prompt = EditStream("edit", draws.getrandbits(48)).at(prompt.position)
            sample, corrupt = sample_target, corrupt_target
        plan = sample(prompt.metadata, draws, mix.unsorted)
        if draws.random() < mix.bad_plan:
            plan = corrupt(plan, prompt.metadata, draws)
        first = plan
        if draws.random() < mix.mismatch:
            first = self.slip(plan, draws)
            first = self.slip(first, draws) if draws.random() < SECOND_SLIP else first
        described = self.slip(first, draws) if draws.random() < mix.misseen else first
        remarks = critique(described, prompt.metadata, draws)
        revised = applied(described, remarks) if remarks else first
        assert revised is not None  # remarks of critique() are true of the scene
        said = format_rethinking(remarks, revised)
        drawn = self.slip(revised, draws) if draws.random() < mix.bad_revision else revised
        source = prompt.images[0] if prompt.images else None
        asked = Prompt(prompt.position, prompt.text, prompt.metadata)
        return Demonstration(asked, plan, None if form == "look_only" else drawn, form, True, seen(first), said, source)
