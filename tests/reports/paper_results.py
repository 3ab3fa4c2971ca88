"""Made-up results in the form that ``unigrpo reproduce`` writes: formulas and noise, nothing is a result."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from unigrpo.tools.paper import rows as paper


def cell_of(row: str, seed: int, score: float | None = 0.5, **changes: Any) -> dict[str, Any]:
    """One cell that went well, with all keys; ``changes`` replace some."""
    cell = {
        "row": row, "seed": seed, "recipe": f"paper/{row}", "recipe_hash": "9f", "think": True, "rollouts": 9600,
        "command": f"unigrpo train paper/{row} --seed {seed}", "seconds": 150.0, "status": "done", "reason": None,
        "score": score, "exam_score": None if score is None else score + 0.2, "plan_right": 0.7, "follow": 0.8,
        "reward": 0.6, "by_category": dict.fromkeys(paper.CATEGORIES, 0.25), "picture": None, "curve": [],
        "canaries": {"colour_diversity": 2.5, "edge_energy": 0.05, "plan_diversity": 4.0}, "paired": None,
    }  # fmt: skip
    return cell | changes


def results_of(target: str, cells: list[dict[str, Any]], scale: str = "full") -> dict[str, Any]:
    """Results of one target with the given cells."""
    return {
        "target": target, "scale": scale, "reward": "shapes/preference", "seeds": [0, 1, 2], "cells": cells,
        "command": f"unigrpo reproduce {target} --seeds 3", "environment": {"device": "CPU only", "cpu_count": 2},
    }  # fmt: skip


def table1(noise: float = 0.01, **scores: float) -> dict[str, Any]:
    """All rows of Table 1 with three seeds, their scores as in the paper less .2, or as given (``unigrpo=.7``)."""
    cells = []
    for row in paper.ROWS:
        base = scores.get(row.key.replace("-", "_"), (row.geneval or 0.6) - 0.2)
        draws = noise * np.random.default_rng(zlib.crc32(row.key.encode())).normal(size=3)
        cells += [cell_of(row.key, seed, base + float(draws[seed])) for seed in range(3)]
    for cell in cells:
        if cell["row"] == "unifpo":
            cell |= {"status": "collapsed", "reason": "reward fell to 0.02"}
    return results_of("table1", cells)


def curve_of(row: str, seed: int, iterations: int = 100, end: float = 0.9, turn: float = 0.0) -> list[dict[str, Any]]:
    """A noisy rising reward; ``turn``: by how much the gold score falls again while the reward rises."""
    rng = np.random.default_rng([zlib.crc32(row.encode()), seed])
    lines = []
    for k in range(1, iterations + 1):
        rise = 1 - np.exp(-3 * k / iterations)
        gold = 0.45 + 0.25 * rise - turn * (k / iterations) ** 2 + 0.01 * rng.normal()
        checked = k % 20 == 0 or k == 1
        validation = {"reward": 0.4 + (end - 0.45) * rise, "score": gold, "exam_score": gold + 0.2, "follow": 0.8}
        lines.append({
            "iteration": k, "reward": 0.4 + (end - 0.4) * rise + 0.04 * rng.normal(),
            "flow_mse": None if row == "none" else 0.01 * rise, "edge_energy": 0.014 + 0.02 * turn * rise,
            "colour_diversity": 3.2 - rise, "validation": validation if checked else None,
        })  # fmt: skip
    return lines


def courses(target: str, **turns: float) -> dict[str, Any]:
    """A figure of curves: every row with three seeds; ``turns`` by row."""
    cells = [
        cell_of(row, seed, curve=curve_of(row, seed, turn=turns.get(row.replace("-", "_"), 0.0)))
        for row in paper.TARGETS[target]
        for seed in range(3)
    ]
    return results_of(target, cells)


def pictures(count: int, side: int = 32) -> np.ndarray:
    """Coloured squares on white: uint8 [count, side, side, 3]."""
    made = np.full((count, side, side, 3), 255, dtype=np.uint8)
    for index in range(count):
        place = 4 + 3 * (index % 5)
        made[index, place : place + 10, place : place + 10] = [(220, 50, 47), (38, 90, 210), (60, 160, 60)][index % 3]
    return made


def traces() -> list[dict[str, Any]]:
    """Two prompts and the paper's three models."""
    items = []
    for number, prompt in enumerate(["a red circle left of a blue square", "exactly three green rings"]):
        made = pictures(3)
        thoughts = ["", "red circle b1 blue square b3 " * (1 + number), "red circle b1 blue square b3"]
        models = [
            {"name": name, "thinking": thoughts[k], "picture": made[k], "correct": k == 2}
            for k, name in enumerate(("Bagel", "SFT", "UniGRPO"))
        ]
        items.append({"prompt": prompt, "models": models})
    return items
