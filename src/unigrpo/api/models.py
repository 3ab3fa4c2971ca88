"""``unigrpo.load`` and ``unigrpo.evaluate``: a model to draw with, and how well it draws."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from unigrpo import build
from unigrpo.api import prompts as own_prompts
from unigrpo.api.prompts import Prompts
from unigrpo.api.rewards import Named
from unigrpo.evaluation.evaluator import describe_summary, unjudged
from unigrpo.evaluation.suites import Suite
from unigrpo.pictures import read_picture
from unigrpo.policy import Policy
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Model, Scorer
from unigrpo.rewards import registry
from unigrpo.rollout.episode import rounds_of
from unigrpo.rollout.generate import EVALUATION, MOST, Generates, Picture, check_rounds, how_to_draw
from unigrpo.runs.evaluating import Drawing, check_folder, folder_for, weights_of
from unigrpo.runs.evaluations import evaluate as evaluate_into
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
    """What an evaluation found: plain figures, one record per picture, and the pictures in the same order.

    result: what result.json holds, with the intervals of the figures and all that they depend on.
    """

    summary: dict[str, Any]
    records: list[dict[str, Any]]
    result: dict[str, Any]
    pictures: list[Picture]

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
    rounds: int = 1,
) -> Evaluated:
    """Draw ``samples`` pictures of each of the first ``limit`` prompts and judge them, as ``unigrpo eval`` does.

    model: a name, as of :func:`load`, or a model. prompts: shapes or words (held out), shapes:train, geneval, a file,
    or a list of texts or dicts. reward: who judges (a function, a name, a list of these); prompts outside of shapes and
    words need one. out: a folder for pictures, records, figures and a page (docs/evaluation.md); one that this call
    wrote before goes on. rounds: of think, draw and look; the last picture is judged, and records hold the others.
    ConfigError says what cannot work.
    """
    for name, number in (("samples", samples), ("limit", limit)):
        if not 1 <= number <= MOST:
            raise ConfigError(f"evaluate: {name} = {number}: it must be from 1 to {MOST:,}")
    named = Named()
    scorers = () if reward is None else tuple(Scorer(**one) for one in named.scorers(reward))
    folder = None if out is None else Path(out).expanduser()
    if folder is not None:
        check_folder(folder, "out")
    source, named_model = _suite(prompts, limit), str(model) if isinstance(model, str | Path) else None
    if not source.judged and not scorers:
        raise ConfigError(f"evaluate: {source.name} has no judge of its own: give reward, a function or a name")
    with registry.meaning(named.meant):
        drawn_by = None if named_model is None else Model(named_model)
        suite = build.of_prompts(source, limit, build.Examining(scorers=scorers, model=drawn_by))
        if named_model is not None and own_prompts.name_of(prompts) is not None:
            build.check_suite(source.name, limit, named_model, scorers)
        policy = load(model) if isinstance(model, str | Path) else model
        check_rounds(policy, rounds, "evaluate: rounds")
        build.try_suite(suite, policy.spec.image_size, think=think)
        about = {"name": repr(model), "sha256": None} if named_model is None else weights_of(named_model)
        how = how_to_draw(policy, EVALUATION)
        drawing = Drawing(how, samples, seed, rounds_of(rounds, think=think), policy.defaults.batch)
        return _evaluated(policy, suite, drawing, about, folder)


def _evaluated(policy: Policy, suite: Suite, drawing: Drawing, about: dict[str, Any], out: Path | None) -> Evaluated:
    """Evaluate in a folder, or in one that is gone again."""
    with folder_for(out) as folder:
        outcome = evaluate_into(policy, suite, drawing, model=about, out=folder)
        assert outcome is not None
        pictures = [
            Picture.of(read_picture(folder / r["picture"]), r["prompt"], r["thinking"], r["sample"])
            for r in outcome.records
        ]
    return Evaluated(outcome.summary, outcome.records, outcome.result, pictures)


def _suite(prompts: Prompts, limit: int) -> build.Suite:
    """Prompts by name, or those that are given, of a stream at most ``limit``."""
    if (name := own_prompts.name_of(prompts)) is not None:
        return build.suite(name)
    rows = RowPrompts("prompts", own_prompts.read(own_prompts.rows_of(prompts, limit)), 0)  # type: ignore[arg-type]
    return build.Suite("prompts", rows.fixed, unjudged, judged=False, rows=rows)
