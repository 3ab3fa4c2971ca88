"""The verb ``recipes``: the list of those that ship."""

from __future__ import annotations

from unigrpo import options, output
from unigrpo.recipe import list_recipes


def run(verb: options.Recipes) -> int:
    """Print the recipes that ship with the package."""
    found = [(name, " ".join(description.split())) for name, description in list_recipes()]
    lines = [f"{name:24} {description}" for name, description in found]
    output.result("\n".join(lines), recipes=[{"name": name, "description": about} for name, about in found])
    return 0
