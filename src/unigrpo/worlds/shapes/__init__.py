"""The embedded world: coloured shapes on a grid, small enough to train on a laptop and judged by rules alone.

The functions ``prompts.prompts`` and ``demonstrations.demonstrations`` are imported from their modules, because a name
here would hide the module of the same name.
"""

from unigrpo.worlds.shapes.demonstrations import Demonstration, DemonstrationMix
from unigrpo.worlds.shapes.parsing import END_THINK, SYSTEM_WORDS, THINK, normalise_prompt, parse_prompt, vocabulary
from unigrpo.worlds.shapes.planner import (
    corrupt_scene,
    format_plan,
    parse_plan,
    plan_satisfies,
    random_scene,
    sample_scene,
    slip,
)
from unigrpo.worlds.shapes.prompts import CATEGORIES, SPLITS, PromptStream, canonical, fixed
from unigrpo.worlds.shapes.renderer import IMAGE_SIZE, cell_labels, draw, render
from unigrpo.worlds.shapes.scenes import CELLS, COLOURS, RELATIONS, SHAPES, Judgement, Object, Scene, judge
from unigrpo.worlds.shapes.verifier import (
    Reading,
    RewardWeights,
    Tolerance,
    Verdict,
    cell_distances,
    follows,
    read_scenes,
    verify,
)

__all__ = [
    "CATEGORIES",
    "CELLS",
    "COLOURS",
    "END_THINK",
    "IMAGE_SIZE",
    "RELATIONS",
    "SHAPES",
    "SPLITS",
    "SYSTEM_WORDS",
    "THINK",
    "Demonstration",
    "DemonstrationMix",
    "Judgement",
    "Object",
    "PromptStream",
    "Reading",
    "RewardWeights",
    "Scene",
    "Tolerance",
    "Verdict",
    "canonical",
    "cell_distances",
    "cell_labels",
    "corrupt_scene",
    "draw",
    "fixed",
    "follows",
    "format_plan",
    "judge",
    "normalise_prompt",
    "parse_plan",
    "parse_prompt",
    "plan_satisfies",
    "random_scene",
    "read_scenes",
    "render",
    "sample_scene",
    "slip",
    "verify",
    "vocabulary",
]
