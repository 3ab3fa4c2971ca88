"""unigrpo from Python: train, load, evaluate, and the run that comes of it.

training: from a call to a run · prompts, rewards, overrides: what a call gives, as a recipe says it · run: a run folder
to look at · models: load and evaluate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unigrpo import loading
from unigrpo.api.models import Evaluated, evaluate, load
from unigrpo.api.overrides import nested
from unigrpo.api.prompts import Prompts
from unigrpo.api.run import Run
from unigrpo.api.training import RECIPE, Call, begun_by, resumed_by
from unigrpo.ranges import ConfigError, shown
from unigrpo.runs.alone import refuse_ranks
from unigrpo.runs.folders import nothing_yet

__all__ = ["Evaluated", "Run", "evaluate", "load", "train"]


def train(
    *,
    model: str | Path | Run | None = None,
    prompts: Prompts | None = None,
    reward: Any = None,
    recipe: str | Path = RECIPE,
    out: str | Path | None = None,
    resume: bool = False,
    **overrides: Any,
) -> Run:
    """Train by a recipe, with what is given here in place of what it says, and return the finished run.

    model: what the recipe's ``model.path`` may be, or a run (its newest checkpoint). prompts: a list of texts or dicts
    (``prompt``, ``images``: paths, anything else is metadata for the reward), a file, a name such as ``shapes:train``,
    or a generator, of which as many are taken as the run has use for (iterations x prompts_per_iteration; one that ends
    sooner is gone through again).
    Lists and generators are kept in the run's folder, as ``prompts.jsonl``.

    reward: a function of (images, prompts, metadata, thinking) with one number a picture, a name, ``mine.py:f``, or a
    list of these; ``(reward, 0.5)`` is a weighted one. A function at the top of a file or module is named in the run's
    recipe, so that any later program goes on with it; of another one (a notebook's, a lambda) the run says that it must
    be given again.

    Evaluations: with prompts of your own, and unless ``eval={"prompts": ...}`` says otherwise, the evaluations before,
    during and after training draw for these very prompts, and ``reward`` judges them (unless ``reward__validation``
    says who does): nothing is held out. With a world's prompts, or without any, they stay the recipe's.

    overrides: keys of the recipe: ``iterations=20``, ``data={"group_size": 4}`` (merged key by key), and
    ``optimizer__lr_reasoning=1e-4``, with __ for a dot. out: the run's folder, new or empty; without it a new one in
    ``runs/``. resume: go on with the run in ``out``, or begin it there if the folder is new or empty; of a run that was
    begun, what else is given must be as it was, but for ``iterations`` (and places of files that have moved).

    Ctrl-C finishes the iteration, saves, says how to go on and raises KeyboardInterrupt. ConfigError (a ValueError)
    says what was set, why it cannot work and what to change.
    """
    loading.stop_if_loading()
    refuse_ranks("unigrpo.train from Python")
    call = Call(str(recipe), _named(model), prompts, reward, nested(overrides))
    folder = None if out is None else Path(out).expanduser()
    if resume and nothing_yet(folder):
        print(f"resume=True: {folder} holds no run yet, so a new one starts there")
        resume = False
    return Run(resumed_by(call, folder) if resume else begun_by(call, folder))


def _named(model: str | Path | Run | None) -> str | None:
    """The name of a model; ConfigError for one that is in memory alone."""
    if model is None or isinstance(model, str | Path):
        return None if model is None else str(model)
    if isinstance(model, Run):
        return str(model.path)
    raise ConfigError(
        f"model = {shown(model)} is a {type(model).__name__}, and a run starts from what it can read again: save it, "
        "model.save_pretrained(folder), and give the folder"
    )
