"""Pictures among the paper's figures: thinking traces side by side, and strips of what each row of Figure 5 draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unigrpo.reports import grids
from unigrpo.tools.paper import rows as paper
from unigrpo.tools.paper.rows import Json

if TYPE_CHECKING:
    from PIL.Image import Image

STRIP = 8  # pictures of a row of Figure 5
SIDE, HEAD, HEAD_SIZE = 272, 44, 19  # pixels: a picture's side, the prompt's line above a row of them, its letters


def read_strips(results: Json, folder: Path | str) -> dict[str, list[np.ndarray]]:
    """Read the first pictures of each row of Figure 5, from the first seed that has some: uint8 [H, W, 3] each.

    A contact sheet (``grids.contact_sheet``) gives its tiles, another PNG itself. Paths are relative to ``folder``.
    """
    from PIL import Image as Images

    found: dict[str, list[np.ndarray]] = {}
    for row, cells in paper.cells_by_row(results, "fig5").items():
        path = next((Path(folder) / cell["picture"] for cell in paper.ran(cells) if cell["picture"]), None)
        if path is not None:
            tiles = [tile.picture for tile in grids.read_tiles(path)][:STRIP]
            with Images.open(path) as image:
                found[row] = tiles or [np.asarray(image.convert("RGB"))]
    return found


def draw_traces(items: Sequence[Json]) -> bytes:
    """Draw prompts as rows and models as columns, each picture with its verdict and the thinking below it; a PNG.

    items: ``{"prompt", "models": [{"name", "thinking", "correct", "picture": uint8 [H, W, 3]}]}``, the same models
    everywhere. ValueError without items.
    """
    if not items:
        raise ValueError("no traces to draw: give at least one prompt with the models' pictures")
    from PIL import Image as Images
    from PIL import ImageDraw as Drawing
    from PIL import ImageFont as Fonts

    font = Fonts.load_default(size=HEAD_SIZE)
    sheets = [_sheet(item["models"]) for item in items]
    size = max(sheet.width for sheet in sheets), sum(sheet.height + HEAD for sheet in sheets)
    page = Images.new("RGB", size, grids.PAPER)
    draw, top = Drawing.Draw(page), 0
    for item, sheet in zip(items, sheets, strict=True):
        (line,) = grids.wrap(font, f"“{item['prompt']}”", page.width - 2 * grids.GAP, 1)
        draw.text((grids.GAP, top + HEAD - HEAD_SIZE - 6), line, fill=grids.INK, font=font)
        page.paste(sheet, (0, top + HEAD))
        top += sheet.height + HEAD
    return grids.png_bytes(page)


def _sheet(models: Sequence[Json]) -> Image:
    """The contact sheet of one prompt: a column for each model, its name as the caption."""
    pictures = grids.reduced(np.stack([model["picture"] for model in models]))
    return grids.contact_sheet(
        pictures,
        [model["name"] for model in models],
        [model["correct"] for model in models],
        columns=len(models),
        scale=max(1, SIDE // pictures.shape[2]),
        thinking=[model["thinking"] or "(no thinking)" for model in models],
    )
