"""The pictures that come with the prompts of a recipe: how large they are, of what a run would read first."""

from __future__ import annotations

from functools import lru_cache

from unigrpo.build import data
from unigrpo.build.checks import is_here
from unigrpo.costs.sizes import ModelSizes
from unigrpo.recipe.schema import Recipe
from unigrpo.recipe.sections import PromptData
from unigrpo.tools.planning.looks import LookSizes, sizes_of

FIRST = 64
"""Prompts of a stream that are looked at."""

Size = tuple[int, int]  # (height, width) in pixels


def given_looks(recipe: Recipe, sizes: ModelSizes) -> tuple[LookSizes, ...]:
    """What the pictures of a prompt give the model to read: of the prompt, among the first, that gives most.

    Empty where prompts have none, are not on this disk, or are demonstrations.
    """
    if not isinstance(recipe.data, PromptData):
        return ()
    shown = shown_by(recipe.data.prompts, recipe.seed)
    looks = [tuple(sizes_of(sizes, *size) for size in each) for each in shown]
    return max(looks, key=lambda some: sum(look.tokens for look in some), default=())


@lru_cache(maxsize=16)
def shown_by(prompts: str, seed: int) -> frozenset[tuple[Size, ...]]:
    """The sizes of the pictures that the first prompts of a stream come with, each once."""
    if not is_here(prompts):
        return frozenset()
    source = data.prompts(prompts, seed)
    return frozenset(tuple((p.shape[1], p.shape[2]) for p in prompt.images) for prompt in source.batch(0, FIRST))
