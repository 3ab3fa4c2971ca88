"""From a call of ``unigrpo.train`` to a run: what is given becomes keys of a recipe; begun, or gone on with."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigrpo.api import overrides as keys
from unigrpo.api import prompts as own_prompts
from unigrpo.api.prompts import Prompts
from unigrpo.api.rewards import Named
from unigrpo.ranges import ConfigError, shown
from unigrpo.recipe import PromptData, Recipe, StagedRecipe, is_recipe_file, load_experiment
from unigrpo.reports import runlog
from unigrpo.rewards import registry
from unigrpo.runs import inputs, own_rewards
from unigrpo.runs.folders import PYTHON, begun_run, new_run
from unigrpo.runs.training import ITERATIONS, Going, begin, resumed_recipe
from unigrpo.worlds.sources import names_records

RECIPE = "shapes/unigrpo"


@dataclass(frozen=True)
class Call:
    """What was asked for: ``own`` are the other keys of the recipe, nested."""

    recipe: str
    model: str | None
    prompts: Prompts | None
    reward: Any
    own: Mapping[str, Any]

    def own_keys(self, named: Named) -> dict[str, Any]:
        """The keys that are set, without prompts that are rows; ConfigError where one is set twice."""
        made = dict(self.own)
        if self.model is not None:
            made = keys.joined(made, {"model": {"path": self.model}})
        if (name := own_prompts.name_of(self.prompts)) is not None:
            made = keys.joined(made, {"data": {"prompts": name}})
        if self.reward is not None:
            section = self.reward if isinstance(self.reward, Mapping) else {"train": self.reward}
            made = keys.joined(made, {"reward": section})
        if isinstance(rewards := made.get("reward"), Mapping):
            lists = {key: named.scorers(rewards[key], f"reward.{key}") for key in LISTS if key in rewards}
            made["reward"] = {**rewards, **lists}
        return made


LISTS = ("train", "validation")


# A new run


def begun_by(call: Call, out: Path | None) -> Path:
    """Begin a run; returns its folder."""
    named = Named()
    own = call.own_keys(named)
    asked = load_experiment(call.recipe, keys.words(call.recipe, own))  # before a stream is read or a folder made
    rows = None
    if call.prompts is not None and own_prompts.name_of(call.prompts) is None:
        rows = own_prompts.rows_of(call.prompts, _needed(asked))  # type: ignore[arg-type]
    own_rewards.recall(None)
    with new_run(out, asked.name, PYTHON) as run_dir, own_prompts.kept(run_dir, rows):
        if rows is not None:
            own = keys.joined(own, {"data": {"prompts": str(run_dir.absolute() / own_prompts.FILE)}})
        own = _with_evaluations(own, own["data"]["prompts"] if call.prompts is not None else "")
        asked = load_experiment(call.recipe, keys.words(call.recipe, own))
        with registry.meaning(named.meant):
            _train(asked, run_dir, resume=False)
    return run_dir


def _needed(asked: Recipe | StagedRecipe) -> int:
    """How many prompts a run (or any stage of one) has use for."""
    recipes = asked.stages if isinstance(asked, StagedRecipe) else (asked,)
    needs = [r.iterations * r.data.prompts_per_iteration for r in recipes if isinstance(r.data, PromptData)]
    return max(needs, default=1)


def _with_evaluations(own: Mapping[str, Any], prompts: str) -> dict[str, Any]:
    """Keys with evaluations on the prompts that are given, if they are one's own, where the keys do not say it.

    One's own are judged by the reward that is given to train, where the keys do not say that either: what judges the
    recipe's prompts seldom knows what these ask for.
    """
    made, rewards = dict(own), own.get("reward", {})
    if names_records(prompts):
        made["eval"] = {"prompts": prompts, **own.get("eval", {})}
    watched = made.get("eval", {}).get("prompts")
    if watched is not None and names_records(str(watched)) and "train" in rewards and "validation" not in rewards:
        made["reward"] = {**rewards, "validation": _watched(rewards["train"])}
    return made


# One that goes on


def resumed_by(call: Call, out: Path | None) -> Path:
    """Go on with a run; returns its folder."""
    with begun_run(out, PYTHON) as run_dir:
        begun = load_experiment(run_dir / runlog.RECIPE)
        if call.recipe not in (RECIPE, begun.name) and not is_recipe_file(call.recipe):
            raise ConfigError(
                f"{run_dir} is a run of {begun.name}, not of {call.recipe}: leave out recipe, or name another out"
            )
        _check_rows(call.prompts, run_dir)
        named = Named(_to_be_given(begun, run_dir))
        changed = _changed(begun, keys.words(str(run_dir / runlog.RECIPE), call.own_keys(named)), run_dir)
        asked = resumed_recipe(run_dir, begun.name, [*changed, *_moved_along(begun, run_dir, changed)])
        with registry.meaning(named.meant):
            _train(asked, run_dir, resume=True)
    return run_dir


def _check_rows(prompts: Prompts | None, run_dir: Path) -> None:
    """ConfigError where a list of prompts is not the one that the run keeps; a stream cannot be read again."""
    if prompts is None or isinstance(prompts, str | Path) or not isinstance(prompts, Sized):
        return
    path = run_dir / own_prompts.FILE
    if not path.is_file() or path.read_text(encoding="utf-8") != own_prompts.text_of(own_prompts.rows_of(prompts)):
        raise ConfigError(
            f"prompts with resume=True: the run in {run_dir} has others, and goes on with those: leave prompts out, or "
            "start a new run"
        )


def _to_be_given(begun: Recipe | StagedRecipe, run_dir: Path) -> dict[str, list[str]]:
    """The names of the rewards by key, "" for those that are found by their names."""
    reward = (begun.stages[0] if isinstance(begun, StagedRecipe) else begun).reward
    lists, lost = {"reward.train": reward.train, "reward.validation": reward.validation}, own_rewards.lost(run_dir)
    return {key: [one.name if one.name in lost else "" for one in scorers] for key, scorers in lists.items()}


def _changed(begun: Recipe | StagedRecipe, words: Sequence[str], run_dir: Path) -> list[str]:
    """The overrides that would change the recipe of a run; ConfigError for what may not change."""
    path = run_dir / runlog.RECIPE
    changed = [word for word in words if not _same(load_experiment(path, [word]), begun)]
    for word in changed:
        option, _, value = word.partition("=")
        if not (ITERATIONS.fullmatch(option) or inputs.MOVABLE.fullmatch(option)):
            raise ConfigError(
                f"{option.removeprefix('--')} = {shown(value)} with resume=True: the recipe of the run in {run_dir} "
                "holds, and only iterations may change (and the place of a file that has moved); leave it out, or "
                "start a new run"
            )
    return changed


def _same(one: Recipe | StagedRecipe, other: Recipe | StagedRecipe) -> bool:
    """Whether two recipes say the same, whatever is written out in them."""
    if isinstance(one, StagedRecipe) and isinstance(other, StagedRecipe):
        return one.stages == other.stages
    return one == other


def _moved_along(begun: Recipe | StagedRecipe, run_dir: Path, given: Sequence[str] = ()) -> list[str]:
    """Overrides for the prompts that a run keeps in its folder, where that is not where it was."""
    here = run_dir.absolute() / own_prompts.FILE
    if isinstance(begun, StagedRecipe) or not here.is_file():
        return []
    names = inputs.names_of(begun)
    old = {key: Path(names[key]) for key in ("data.prompts", "eval.prompts") if key in names}
    gone = [key for key, path in old.items() if path.name == own_prompts.FILE and path != here and not path.exists()]
    return [f"--{key}={here}" for key in gone if not any(word.startswith(f"--{key}=") for word in given)]


# Both


def _train(asked: Recipe | StagedRecipe, run_dir: Path, *, resume: bool) -> None:
    """Train in a folder that is this call's alone; KeyboardInterrupt where the run was stopped and saved."""
    going = Going(resume, again)
    if begin(asked, run_dir, going):
        return
    by = "Ctrl-C" if going.stop.by in (None, signal.SIGINT) else signal.Signals(going.stop.by).name
    raise KeyboardInterrupt(f"stopped by {by} and saved; to go on: {again(asked.name, run_dir)}")


def again(name: str, run_dir: Path) -> str:
    """How to go on with a run from Python, in any working folder."""
    place = str(run_dir.resolve())
    lost = own_rewards.lost(run_dir)
    if not lost:
        return f"unigrpo.Run({place!r}).resume()"
    rewards = " and ".join(f"{name!r} (which came from {origin})" for name, origin in lost.items())
    return f"define the reward {rewards} again and call unigrpo.train(reward=..., out={place!r}, resume=True)"


def go_on(run_dir: Path, iterations: int | None) -> None:
    """Resume a run as it is, perhaps to more iterations."""
    own = {} if iterations is None else {"iterations": iterations}
    resumed_by(Call(RECIPE, None, None, None, own), run_dir)


def _watched(train: Any) -> Any:
    """Training rewards as those of a validation, from which nothing learns."""
    if not isinstance(train, list | tuple):
        return train
    return [{k: v for k, v in one.items() if k != "teaches"} if isinstance(one, Mapping) else one for one in train]
