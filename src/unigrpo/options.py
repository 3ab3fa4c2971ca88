"""Options that several verbs of the command line have; those of one verb are in ``cli``. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every verb takes."""

    quiet: Annotated[bool, arg(aliases=("-q",))] = False
    """Print only errors and the result: figures, or where they were written."""
    json: bool = False
    """Print one JSON object and nothing else; notes go to stderr."""


@dataclass(frozen=True, kw_only=True)
class Drawing(Common):
    """What the verbs that draw have in common; what is not set, the model (or for eval the convention) decides."""

    model: str = "builtin:shapes-sft"
    """builtin:shapes-sft, builtin:shapes-pretrain, a model or run folder (its newest checkpoint), or a hub id."""
    no_think: bool = False
    """Draw without thinking first."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels, for example 1024x768 (default: the model's own; an edit keeps its picture's)."""
    guidance: float | None = None
    """Scale of classifier-free guidance on the words; 1 is none (generate: shapes 1, BAGEL 4; eval: 1)."""
    image_guidance: float | None = None
    """Scale of guidance on the given pictures; 1 is none (edits: 2)."""
    renorm: Literal["global", "channel", "text_channel"] | None = None
    """How guided velocities are brought back to size (global; edits: text_channel)."""
    interval: tuple[float, float] | None = None
    """Guidance is on where LOW < t <= HIGH (generate on BAGEL: 0.4 1; edits, shapes and eval: 0 1)."""
    steps: int | None = None
    """Points of the timestep grid, as num_points in recipes (default: the model's own): 50 points are 49 forwards."""
    temperature: float | None = None
    """Of the thinking; 0 always takes the likeliest word (generate: shapes 1, BAGEL 0; eval: 1)."""
    max_think_tokens: int | None = None
    """Where the thinking is cut (default: shapes 32, BAGEL 1024)."""
    seed: int = 0
    """Keys all draws: another seed, other drawings."""
    batch: int | None = None
    """Pictures that are drawn together (default: shapes 192, BAGEL 4); changes memory, not pictures."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto is the accelerator where there is one (shapes: the CPU)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision; auto is bfloat16 on an accelerator and float32 on a CPU."""
