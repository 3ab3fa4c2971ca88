"""Thinking traces: the same held-out prompts and draws, by the models of Bagel, SFT and UniGRPO (paper Fig. 2, 6-8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unigrpo import build
from unigrpo.evaluation.evaluator import evaluate
from unigrpo.recipe import Model, Recipe
from unigrpo.tools.paper.cells import BAGEL, SFT
from unigrpo.trajectory import Prompt
from unigrpo.worlds import shapes

PER_CATEGORY = 1


def traces(trained: str, recipe: Recipe, seed: int) -> list[dict[str, Any]]:
    """What each model thinks and draws for the first prompt of every category; the draws are those of evaluations."""
    chosen = first_of_each(build.suite("shapes").prompts(10**4))
    models = []
    for name, path in (("Bagel", BAGEL), ("SFT", SFT), ("UniGRPO", trained)):
        policy = build.policy(Model(path=path, device="cpu"), merge=True)
        suite, how = build.suite("shapes"), build.evaluation_sampling(recipe)
        made = evaluate(policy, chosen, suite.judge, how, samples=1, seed=seed, think=True)
        pictures = made.pictures.permute(0, 2, 3, 1).numpy()
        models.append([
            {"name": name, "thinking": r["thinking"], "correct": r["correct"], "picture": picture}
            for r, picture in zip(made.records, pictures, strict=True)
        ])  # fmt: skip
    return [
        {"prompt": prompt.text, "models": list(columns)}
        for prompt, *columns in zip(chosen, *models, strict=True)
    ]  # fmt: skip


def first_of_each(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first prompts of every category, in the order of the categories; nobody picked them for their pictures."""
    found = []
    for category in shapes.CATEGORIES:
        found += [p for p in prompts if p.metadata["category"] == category][:PER_CATEGORY]
    return found
