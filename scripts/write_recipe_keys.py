"""Write docs/recipe-keys.md: every key of a recipe, from the dataclasses that read it."""

from pathlib import Path

from unigrpo.recipe import keys_page

PAGE = Path(__file__).parents[1] / "docs" / "recipe-keys.md"


def main():
    PAGE.write_text(keys_page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
