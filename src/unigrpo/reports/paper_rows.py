"""Rows of the paper's tables 1 and 2 (UniGRPO, arXiv 2603.23500), to stand beside what is measured here.

They are of a 7B BAGEL at 1024 pixels and 50 steps, measured by the authors: with GenEval's own detector, and with their
own unpublished text-alignment benchmark ("TA").
"""

from __future__ import annotations

from typing import Any

COLUMNS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The categories of table 2, by GenEval's names."""
GENEVAL: dict[str, tuple[float, ...]] = {
    "BAGEL": (0.78, 0.98, 0.96, 0.78, 0.84, 0.52, 0.58),
    "BAGEL, thinking": (0.79, 0.99, 0.92, 0.77, 0.88, 0.56, 0.62),
    "SFT": (0.83, 0.99, 0.95, 0.83, 0.89, 0.58, 0.75),
    "SFT, thinking": (0.82, 0.98, 0.93, 0.63, 0.91, 0.68, 0.79),
    "FlowGRPO": (0.88, 0.99, 0.98, 0.93, 0.94, 0.60, 0.86),
    "FlowGRPO, thinking": (0.86, 0.99, 0.96, 0.76, 0.90, 0.71, 0.84),
    "TextGRPO, thinking": (0.88, 0.99, 0.96, 0.87, 0.91, 0.76, 0.84),
    "UniGRPO, thinking": (0.90, 0.99, 0.99, 0.91, 0.91, 0.73, 0.86),
}
"""Overall, then the categories."""
TEXT_ALIGNMENT: dict[str, tuple[float, ...]] = {
    "BAGEL": (0.6810,),
    "BAGEL, thinking": (0.7132,),
    "SFT": (0.7486,),
    "SFT, thinking": (0.7769,),
    "FlowGRPO": (0.8112,),
    "FlowGRPO, thinking": (0.8208,),
    "TextGRPO, thinking": (0.8078,),
    "UniGRPO, thinking": (0.8381,),
}


def beside(paper: str | None) -> dict[str, Any] | None:
    """The paper's table for a suite: a caption, the columns' names and the rows; None where the paper has none."""
    if paper == "geneval":
        rows, columns = GENEVAL, ["overall", *(name.replace("_", " ") for name in COLUMNS)]
        caption = (
            "GenEval, tables 1 and 2: a 7B BAGEL at 1024 pixels, scored by the authors with GenEval's own detector."
        )
    elif paper == "exam":
        rows, columns = TEXT_ALIGNMENT, ["TA"]
        caption = (
            "TA, table 1: a 7B BAGEL at 1024 pixels on the authors' own 150 prompts, which are not published, marked "
            "by a judge that is not named. The prompts here are others, and so are the figures: not to be compared."
        )
    else:
        return None
    digits = 2 if paper == "geneval" else 4
    shown = [{"name": name, "values": [f"{value:.{digits}f}" for value in values]} for name, values in rows.items()]
    return {"caption": caption, "columns": columns, "rows": shown}
