"""An evaluation of a model on a suite: drawn into a folder, examined there, and summed up; every step goes on.

A folder of pictures is all that the two halves have in common, so they may run on different machines, and anybody's
folder can be examined.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unigrpo import build, doing, version
from unigrpo.evaluation.evaluator import EVALUATION_ITERATION
from unigrpo.evaluation.suites import Suite
from unigrpo.files import clear_temporaries, read_json_object, write_json_atomic
from unigrpo.plurals import counted
from unigrpo.policy import Policy
from unigrpo.ranges import ConfigError
from unigrpo.rollout.engine import RandomKeys, Sampling
from unigrpo.rollout.episode import NONE, OWN, Action, Episode
from unigrpo.rollout.sample import portions, present, sample
from unigrpo.runs import eval_folder, inputs
from unigrpo.runs.eval_ranks import Ranks
from unigrpo.runs.folders import must_be_new, usable
from unigrpo.runs.locks import LOCK, hold

VERSIONS = ("unigrpo", "torch", "transformers", "numpy")
OTHER_PLAN = "give the command that wrote this folder to go on, or name another --out"


@dataclass(frozen=True)
class Drawing:
    """How the pictures of an evaluation are drawn; ``batch`` (together) changes memory, not pictures."""

    how: Sampling
    samples: int
    seed: int
    episode: Episode
    batch: int


def described(how: Sampling) -> dict[str, Any]:
    """A sampling as results.jsonl, result.json and --json name it (M grid points are M - 1 forwards)."""
    guided = how.guidance
    return {
        "num_points": how.num_points,
        "guidance": guided.text_scale,
        "image_guidance": guided.image_scale,
        "interval": guided.interval,
        "renorm": guided.renorm,
        "temperature": how.temperature,
        "max_think_tokens": how.max_think_tokens,
    }


def turns_of(episode: Episode) -> dict[str, Any]:
    """The turns of several rounds as the same files name them; nothing for one round."""
    if episode.rounds == 1:
        return {}
    again = episode.told or (OWN if Action.THINK in episode.actions[1:] else NONE)
    stop = list(episode.stop_words)
    return {"rounds": episode.rounds, "look": episode.look, "rethink": again, "stop_words": stop}


def plan_of(policy: Policy, suite: Suite, drawing: Drawing, model: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what is drawn: a folder goes on only where all of it is the same."""
    height, width = policy.spec.image_size
    settings = {"model": model["name"], "suite": suite.name, "seed": drawing.seed, "think": drawing.episode.think}
    settings |= turns_of(drawing.episode)
    settings |= {"samples": drawing.samples, **described(drawing.how), "shift": drawing.how.shift}
    settings |= {"size": f"{width}x{height}", "dtype": str(policy.compute_dtype).removeprefix("torch.")}
    settings |= {"device": next(policy.module.parameters()).device.type, "solver": "ode"}
    about = {"name": suite.name, "version": suite.version, "prompts": len(suite.prompts), "variant": suite.variant}
    return {"model": dict(model), "suite": about, "settings": settings}


def weights_of(name: str) -> dict[str, Any]:
    """A model by its name and a hash of its files (and of the base of an adapter); None where it has none."""
    from unigrpo.build import bases, families

    if families.is_own(name) or name.startswith("init:"):
        return {"name": name, "sha256": inputs.digest("model.path", name)}
    folder = build.model_folder(name)
    found = {"name": name, "sha256": inputs.digest("model.path", str(folder))}
    if bases.is_adapter(folder) and (base := bases.base_of(folder)) is not None:
        found["base_sha256"] = weights_of(base.path)["sha256"]
    return found


def versions() -> dict[str, Any]:
    """What the figures were made with."""
    return {"commit": version.git_commit(), **{name: version.of(name) for name in VERSIONS}}


@contextlib.contextmanager
def folder_for(out: Path | None) -> Iterator[Path]:
    """The folder of an evaluation, or one that is gone when the block ends (None)."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="unigrpo-eval-") as temporary:
        yield Path(temporary)


def check_folder(out: Path, option: str = "--out") -> None:
    """ConfigError where a folder cannot be written, or holds what no evaluation of ours has written."""
    if not (out / eval_folder.PLAN).is_file():
        must_be_new(out, option)


@contextlib.contextmanager
def begun(out: Path, plan: Mapping[str, Any], suite: Suite, ranks: Ranks) -> Iterator[None]:
    """The folder with its plan and the lines of its prompts; locked by the first rank while the block lasts."""
    with contextlib.ExitStack() as held:
        if ranks.first:
            usable(out)
            held.enter_context(hold(out / LOCK))
            clear_temporaries(out)
            path = out / eval_folder.PLAN
            if path.is_file():
                eval_folder.check_plan(path, {**plan, "versions": read_json_object(path).get("versions")}, OTHER_PLAN)
            else:
                must_be_new(out)
                write_json_atomic(path, {**plan, "versions": versions()})
            eval_folder.write_prompts(out, suite.prompts)
        ranks.together()
        yield


@torch.no_grad()
def draw(policy: Policy, suite: Suite, drawing: Drawing, out: Path, ranks: Ranks) -> int:
    """Draw what is missing of a suite into a folder, this rank's part of it; returns how many pictures were drawn.

    The parts are cut as they would be for one rank and from the beginning, so that the pictures that are drawn together
    are always the same ones, whoever draws them and however often it was stopped.
    """
    parts = list(portions(suite.prompts, drawing.samples, drawing.batch))[ranks.rank :: ranks.size]
    total, seen, made = sum(len(some) * count for some, _, count in parts), 0, 0
    for some, first, count in parts:
        wanted = [(p, n) for p in some for n in range(first, first + count)]
        missing = {(p.position, n) for p, n in wanted if not eval_folder.picture_of(out, p.position, n).is_file()}
        if missing:
            with doing.within(f"drawing, {seen:,} of {counted(total, 'picture', ',')}"):
                (drawn,) = sample(
                    policy,
                    drawing.episode,
                    some,
                    drawing.how,
                    RandomKeys(drawing.seed, EVALUATION_ITERATION),
                    samples=count,
                    batch=None,
                    first_sample=first,
                )
            rows = zip(drawn.trajectories, drawn.pictures, drawn.thinking, drawn.thoughts, strict=True)
            for t, picture, thinking, thoughts in rows:
                earlier = [present(image.pixels) for image in t.drawings[:-1]]
                eval_folder.write_picture(out, t.prompt, t.sample, picture, thinking, earlier, thoughts)
        seen, made = seen + len(wanted), made + len(missing)
    ranks.together()
    return made


def told_where(out: Path, suite: Suite, samples: int) -> str:
    """What is there of an evaluation that was stopped, and how it goes on."""
    total = len(suite.prompts) * samples
    drawn = sum(eval_folder.picture_of(out, p.position, n).is_file() for p in suite.prompts for n in range(samples))
    return f"{drawn:,} of {counted(total, 'picture', ',')} are in {out}: the same command goes on from there"


class Clock:
    """Seconds of the parts of an evaluation, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of the block to a part's."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - begin, 3)


def refuse_several(ranks: Ranks, why: str) -> None:
    """ConfigError where several processes cannot share what is asked for."""
    if ranks.size > 1:
        raise ConfigError(f"WORLD_SIZE is {ranks.size} (torchrun), and {why}")
