"""Write the tables of docs/scaling.md: what the dry run says of two recipes, and the modes side by side.

    python scripts/write_scaling.py

All of it is computed by ``unigrpo.tools.planning``; nothing is loaded, and no GPU is needed.
"""

import re
from pathlib import Path

from unigrpo.costs.sizes import BAGEL_7B
from unigrpo.recipe import load_recipe
from unigrpo.tools.planning.modes_report import ASSUMED, SIDES, at_size, modes_report
from unigrpo.tools.planning.scaling import scaling_report

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
SAMPLES = ["--data.prompts_per_iteration=32", "--data.group_size=24"]
RECIPES = {"lora": "bagel/unigrpo-lora-1gpu", "full": "bagel/unigrpo"}


def tables():
    """Every table by its name in the page."""
    found = {}
    for short, name in RECIPES.items():
        found[f"dry run, {short}"] = scaling_report(load_recipe(name), BAGEL_7B, tflops=989.0, mfu=0.4)
        for side in SIDES:
            lines = modes_report(at_size(load_recipe(name, SAMPLES), side), BAGEL_7B)
            found[f"modes, {short}, {side}"] = [*lines, ASSUMED]
    return {name: "\n".join(lines) for name, lines in found.items()}


def written(page, made):
    """The page with every table in its place."""
    for name, table in made.items():
        place = re.compile(rf"(<!-- table: {re.escape(name)} -->\n```\n).*?(\n```)", re.DOTALL)
        page, count = place.subn(lambda found, table=table: found[1] + table + found[2], page)
        if count != 1:
            raise SystemExit(f"{PAGE} has {count} places for the table: {name}")
    return page


def main():
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
