"""From a run's folder to the card of its model, with names that mean the same on any machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from unigrpo.build import bases
from unigrpo.plurals import counted
from unigrpo.recipe import load_recipe, to_yaml
from unigrpo.reports import runlog
from unigrpo.reports.model_card import Card, figures_of, license_of
from unigrpo.training import checkpoint


def card(source: Path, name: str, *, adapter: bool, precision: str, readme: str) -> Card | None:
    """The card of the model in ``source``; None for a folder that no run made, which keeps the README that it has."""
    run_dir = source.resolve().parent.parent
    if not checkpoint.is_one(source) or not (run_dir / runlog.RECIPE).is_file():
        return None
    said: dict[str, Any] = yaml.safe_load(to_yaml(load_recipe(run_dir / runlog.RECIPE)))
    start = said["model"]["path"]
    base, root = portable(start), _root(start)
    found = "apache-2.0" if root.startswith(("builtin:", "init:")) else license_of(readme)
    done, method = int(source.resolve().name.removeprefix(checkpoint.PREFIX)), said["method"]["name"]
    if adapter and (named := bases.base_of(source)) is not None:
        base = portable(named.path)
    words = base if base == root else f"{base}, which itself came from {root}"
    return Card(
        name=name,
        what=f"A model that thinks, then draws: {words}, trained with unigrpo ({said['name']}) by the method {method}."
        + (" Only the LoRA adapter is here." if adapter else ""),
        facts=_facts(said, words, done),
        base=base,
        base_words=f"`{base}`" + ("" if base == root else f" (itself trained on {root}: export that one, too)"),
        precision=precision,
        license=found,
        license_words=_license_words(found, root),
        adapter=adapter,
        load_name=name,
        **_evaluation(run_dir, said, done),
    )


def portable(name: str) -> str:
    """A model's name without this machine's folders: a hub id or shipped model as it is, else the last names of a path.

    A checkpoint keeps its run's name (RUN/checkpoints/iteration-000100), so that the run may lie beside what needs it.
    """
    if name.startswith(("builtin:", "init:", "stage:")) or not (Path(name).is_absolute() or Path(name).exists()):
        return name
    path = Path(name).resolve()
    return "/".join(path.parts[-3:]) if path.parent.name == "checkpoints" else path.name


def readme_of_base(adapter: Path) -> str:
    """The README of the model that an adapter belongs to, where that is a folder here; else nothing."""
    found = bases.base_of(adapter)
    folder = None if found is None else Path(found.path)
    if folder is None or not folder.is_dir():
        return ""
    if bases.is_adapter(folder):
        return readme_of_base(folder)
    path = folder / "README.md"
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _root(name: str, depth: int = 0) -> str:
    """The model that a chain of runs began with."""
    path = Path(name)
    recipe = path.parent.parent / runlog.RECIPE
    if depth > bases.DEEPEST or path.parent.name != "checkpoints" or not recipe.is_file():
        return portable(name)
    return _root(load_recipe(recipe).model.path, depth + 1)


def _facts(said: dict[str, Any], base: str, done: int) -> list[tuple[str, str]]:
    lora, data = said["model"].get("lora"), said["data"]
    trained = "all weights of the trained experts" if lora is None else f"LoRA of rank {lora['rank']}"
    demonstrations = data.get("demonstrations")
    facts = [
        ("base", base),
        ("recipe", f"`{said['name']}`, method `{said['method']['name']}`, seed {said['seed']}"),
        ("trained", f"{trained}, {done} of {counted(said['iterations'], 'iteration')}"),
        ("data", f"`{short(data['prompts'] if demonstrations is None else demonstrations)}`"),
    ]
    if demonstrations is None:
        facts.append(("rewards", _rewards(said["reward"]["train"])))
    facts.append(("evaluated on", f"`{short(said['eval']['prompts'])}`"))
    return facts


def _rewards(rewards: Iterable[dict[str, Any]]) -> str:
    return ", ".join(f"`{short(reward['name'])}` (weight {reward['weight']:g})" for reward in rewards)


def short(name: str) -> str:
    """A name of data or of a reward without this machine's folders."""
    path, mark, rest = name.partition(":") if name.startswith(("/", ".", "~")) else (name, "", "")
    return (Path(path).name if Path(path).is_absolute() or Path(path).exists() else path) + mark + rest


def _evaluation(run_dir: Path, said: dict[str, Any], done: int) -> dict[str, Any]:
    """The figures where the run was evaluated before and after, and this is the model that was evaluated."""
    summary = runlog.read_json(run_dir / runlog.SUMMARY)
    rows = figures_of(summary)
    if not rows:
        return {"figures": [], "evaluation": ""}
    if done != checkpoint.finished(run_dir) or done != said["iterations"]:
        told = f"The run's figures are those of its last iteration, and this is the model after {done}: none here."
        return {"figures": [], "evaluation": told}
    count = summary["after"].get("n")
    shown = counted(count, "picture")
    told = f"{shown} for the same prompts and random draws before and after training; intervals over prompts."
    return {"figures": rows, "evaluation": told}


def _license_words(found: str | None, root: str) -> str:
    if found is None:
        return f"That of its base, {root}, which is not known here: look there before you pass this model on."
    return f"That of its base, {root}: {found}."
