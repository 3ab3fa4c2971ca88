"""``unigrpo.load`` and ``unigrpo.evaluate``: a model to draw with, and how well it draws."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from unigrpo import build
from unigrpo.api import prompts as own_prompts
from unigrpo.api.prompts import Prompts
from unigrpo.api.rewards import Named
from unigrpo.evaluation.evaluator import Evaluation, describe_summary, unjudged
from unigrpo.policy import Policy
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Model, Scorer
from unigrpo.rewards import registry
from unigrpo.rollout.generate import EVALUATION, MOST, Generates, Picture, how_to_draw
from unigrpo.runs.evaluating import evaluated, figures, write
from unigrpo.runs.folders import must_be_new
from unigrpo.runs.models import Device, Dtype, in_the_world, loaded
from unigrpo.worlds.prompt_files import RowPrompts

if TYPE_CHECKING:
    from unigrpo.models.bagel_files.pretrained import Bagel


def load(path: str | Path, *, device: Device = "auto", dtype: Dtype = "auto") -> Bagel:
    """Load a model to draw with: ``load("builtin:shapes-sft").generate("a red circle")``.

    path: builtin:shapes-sft, builtin:shapes-pretrain, a model folder, a run folder (its newest checkpoint, adapters
    merged), or a hub id. A family of your own (``file.py:Thing@folder``) gives its Policy, which has ``generate`` where
    it inherits from ``unigrpo.rollout.generate.Generates``. dtype: auto is bfloat16 on an accelerator, float32 on a
    CPU. ConfigError (a ValueError) says what is wrong with the name or the folder.
    """
    name = str(path.expanduser() if isinstance(path, Path) else path)
    policy = loaded(name, device=device, dtype=dtype, merge=True)
    if isinstance(policy, Generates):
        policy.understands = in_the_world
    return cast("Bagel", policy)


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found: the figures, one record per picture, and the pictures in the same order."""

    summary: dict[str, Any]
    records: list[dict[str, Any]]
    evaluation: Evaluation

    @cached_property
    def pictures(self) -> list[Picture]:
        """The pictures, with prompt and thinking."""
        rows = zip(self.records, self.evaluation.pictures, strict=True)
        return [Picture.of(pixels, r["prompt"], r["thinking"], r["sample"]) for r, pixels in rows]

    def __repr__(self) -> str:
        return f"Evaluated({describe_summary(self.summary)})"


def evaluate(
    model: str | Path | Policy,
    prompts: Prompts = "shapes",
    reward: Any = None,
    samples: int = 4,
    limit: int = 504,
    seed: int = 0,
    think: bool = True,
    out: str | Path | None = None,
) -> Evaluated:
    """Draw ``samples`` pictures of each of the first ``limit`` prompts and judge them, as ``unigrpo eval`` does.

    model: a name, as of :func:`load`, or a model. prompts: shapes or words (held out), shapes:train, geneval, a file,
    or a list of texts or dicts. reward: who judges (a function, a name, a list of these); prompts outside of shapes and
    words need one. out: a new folder for records, figures and a sheet of pictures. ConfigError says what cannot work.
    """
    for name, number in (("samples", samples), ("limit", limit)):
        if not 1 <= number <= MOST:
            raise ConfigError(f"evaluate: {name} = {number}: it must be from 1 to {MOST:,}")
    named = Named()
    scorers = () if reward is None else tuple(Scorer(**one) for one in named.scorers(reward))
    folder = None if out is None else Path(out).expanduser()
    if folder is not None:
        must_be_new(folder, "out")
    suite, named_model = _suite(prompts, limit), str(model) if isinstance(model, str | Path) else None
    if not suite.judged and not scorers:
        raise ConfigError(f"evaluate: {suite.name} has no judge of its own: give reward, a function or a name")
    with registry.meaning(named.meant):
        drawing = None if named_model is None else Model(named_model)
        judge = build.reward(scorers, model=drawing) if scorers else None
        if named_model is not None and own_prompts.name_of(prompts) is not None:
            build.check_suite(suite.name, limit, named_model, scorers)
        policy = load(model) if isinstance(model, str | Path) else model
        if judge is not None:
            build.try_reward(judge, suite.prompts(1)[0], policy.spec.image_size, think=think)
        how = how_to_draw(policy, EVALUATION)
        result = evaluated(policy, suite, how, limit=limit, samples=samples, seed=seed, think=think, reward=judge)
    summary = figures(result, how, model=named_model or repr(model), suite=suite.name, seed=seed, think=think)
    if folder is not None:
        write(folder, result, summary)
    return Evaluated(summary, result.records, result)


def _suite(prompts: Prompts, limit: int) -> build.Suite:
    """Prompts by name, or those that are given, of a stream at most ``limit``."""
    if (name := own_prompts.name_of(prompts)) is not None:
        return build.suite(name)
    rows = RowPrompts("prompts", own_prompts.read(own_prompts.rows_of(prompts, limit)), 0)  # type: ignore[arg-type]
    return build.Suite("prompts", rows.fixed, unjudged, judged=False, rows=rows)
