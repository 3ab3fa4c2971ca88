"""From names to data: prompts, demonstrations, and the suites that evaluations run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from unigrpo import seeds
from unigrpo.build.worlds import EMBEDDED, EmbeddedWorld, named
from unigrpo.data_names import HUB, SUFFIXES
from unigrpo.evaluation.evaluator import Judge, unjudged
from unigrpo.evaluation.understanding import Asked
from unigrpo.policy import Policy
from unigrpo.ranges import ConfigError
from unigrpo.recipe import DemonstrationData, Mix, Recipe
from unigrpo.training.parallel import World
from unigrpo.training.sharing import share_of
from unigrpo.training.sources import PromptSource
from unigrpo.trajectory import Prompt, Trajectory
from unigrpo.worlds import geneval, pairs
from unigrpo.worlds.demonstrations import DemonstrationMix, Teacher
from unigrpo.worlds.prompt_files import RowPrompts, own_prompts
from unigrpo.worlds.sources import names_records

WORLDS = (*EMBEDDED, "geneval")
GENEVAL = ("geneval:train", "geneval:fixed")
OWN = f"a file ({', '.join(SUFFIXES)}), a folder of save_to_disk, {HUB}..."
SPLITS = [f"{world.name}:{split}" for world in EMBEDDED.values() for split in world.splits]
KNOWN = f"{', '.join([*SPLITS, *GENEVAL])}, {OWN}"


# Prompts


def prompts(name: str, seed: int) -> PromptSource:
    """A stream of training prompts: of a world (``shapes:train``, ``geneval:train``), a file or a data set."""
    if name == "geneval:train":
        return geneval.PromptStream(seed)
    if name == "geneval:fixed":
        raise ConfigError(f"{name} is a list to evaluate on: set data.prompts to geneval:train")
    if (rows := _rows(name, seed)) is not None:
        return rows
    world, split = _split(name)
    return world.stream(split, seed)


def _rows(name: str, seed: int) -> RowPrompts | None:
    """Prompts of one's own; None where the name is a world's."""
    if name.partition(":")[0] in WORLDS or not names_records(name):
        return None
    return own_prompts(name, seed)


def _split(name: str) -> tuple[EmbeddedWorld, str]:
    """The world and the split of ``shapes:train``."""
    world, split = named(name), name.partition(":")[2]
    if world is None or split not in world.splits:
        raise ConfigError(f"there are no prompts called {name!r}: there are {KNOWN}")
    return world, split


# Demonstrations


Maker = Callable[[Policy, int, World], list[Trajectory]]
"""(policy, iteration, world) -> a rank's share of the iteration's trajectories with targets."""


def demonstration_maker(recipe: Recipe, data: DemonstrationData) -> Maker:
    """A maker of batches."""
    if (world := EMBEDDED.get(data.demonstrations)) is not None:
        return _world_maker(recipe, data, world.teacher)
    source = own_demonstrations(recipe, data)

    def make(policy: Policy, iteration: int, world: World) -> list[Trajectory]:
        batch = source.batch(iteration, data.batch_size)[share_of(world, data.batch_size)]
        keys = [seeds.generator(recipe.seed, iteration, pair.prompt.position, 0, "drop prompt") for pair in batch]
        drop = [float(torch.rand((), generator=key)) < data.drop_prompt for key in keys]
        return pairs.supervised_trajectories(policy, batch, drop=drop)

    return make


def own_demonstrations(recipe: Recipe, data: DemonstrationData) -> pairs.RowPairs:
    """Demonstrations of a file or a data set."""
    if data.mix != Mix():
        of = " and ".join(EMBEDDED)
        raise ConfigError(f"data.mix is for the demonstrations of {of}, not for {data.demonstrations}: leave it out")
    if not names_records(data.demonstrations):
        known = f"{', '.join(EMBEDDED)}, {OWN}"
        raise ConfigError(f"there are no demonstrations called {data.demonstrations!r}: there are {known}")
    return pairs.own_pairs(data.demonstrations, recipe.seed)


def _world_maker(recipe: Recipe, data: DemonstrationData, teacher: Teacher[Any]) -> Maker:
    mix = data.mix

    def make(policy: Policy, iteration: int, world: World) -> list[Trajectory]:
        early = iteration < mix.dense_until * recipe.iterations
        now = DemonstrationMix(
            bad_plan=mix.bad_plan,
            mismatch=mix.mismatch,
            no_think=mix.no_think,
            unconditional=mix.unconditional,
            dense=mix.dense if early else mix.dense_late,
            unsorted=mix.unsorted,
            plan_only=mix.plan_only,
            **mix.looking(),
            misseen=mix.misseen,
            bad_revision=mix.bad_revision,
            look_edits=mix.look_edits,
        )
        batch = teacher.batch(recipe.seed, iteration, data.batch_size, now)
        return teacher.trajectories(policy, batch[share_of(world, len(batch))])

    return make


# Questions

QUESTIONS = "questions"
"""The suite NAME:questions of a world that has any: answers in words, no drawing."""


def is_questions(name: str) -> bool:
    """Whether a suite is questions about pictures."""
    return name.partition(":")[0] in EMBEDDED and name.partition(":")[2] == QUESTIONS


def questions(name: str, n: int) -> list[Asked]:
    """The first n held-out questions of a world; ConfigError for one that has none."""
    world = EMBEDDED[name.partition(":")[0]]
    if world.questions is None:
        having = ", ".join(f"{w.name}:{QUESTIONS}" for w in EMBEDDED.values() if w.questions is not None)
        raise ConfigError(f"--suite {name}: the {world.name} world has no questions; there are {having}")
    return [Asked(kind, words, answer, picture) for kind, words, answer, picture in world.questions(n)]


# Evaluations


@dataclass(frozen=True)
class Suite:
    """A list of prompts to evaluate on, and who judges the pictures (``judged``: by rules; else a reward must say).

    ``rows``: the prompts as they are stored, where they are one's own.
    """

    name: str
    prompts: Callable[[int], list[Prompt]]
    judge: Judge
    judged: bool = True
    rows: RowPrompts | None = None


def suite(name: str) -> Suite:
    """The evaluation of a prompt set; a world's name means held-out, ``geneval`` the fixed list."""
    if name in ("geneval", *GENEVAL):
        return Suite(name, geneval.fixed, unjudged, judged=False)
    if (rows := _rows(name, 0)) is not None:
        return Suite(name, rows.fixed, unjudged, judged=False, rows=rows)
    world, split = _split(f"{name}:held-out" if name in EMBEDDED else name)
    world.check_judge()
    return Suite(name, lambda limit: world.fixed(split, limit), world.judge)
