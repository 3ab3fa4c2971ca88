"""The verbs of the command line; what they do is in ``verbs`` (imported only when a verb runs, so --help is quick).

Exit codes: 0 done, 1 a check failed (parity), 2 something was set that cannot work, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand


@dataclass(frozen=True)
class Train:
    """Train by a recipe: unigrpo train shapes/unigrpo [--dotted.key value ...].

    Any key of the recipe can be set, for example --iterations 50 --method.flow.clip-range 1e-5.
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """A shipped recipe (see `unigrpo recipes`) or the path of a .yaml file."""
    out: Path | None = None
    """The run folder (default: runs/<recipe>-<time>)."""
    dry_run: bool = False
    """Print the resolved recipe and what an iteration costs, and stop."""
    resume: bool = False
    """Go on with the run in --out from its last complete checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What the verbs that draw have in common."""

    model: str = "builtin:shapes-sft"
    """builtin:shapes-sft, builtin:shapes-pretrain, a model folder, or a run folder (its newest checkpoint)."""
    no_think: bool = False
    """Draw without thinking first."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is none."""
    renorm: Literal["global", "channel", "text_channel"] = "global"
    """How guided velocities are brought back to size."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Guidance is on where LOW < t <= HIGH."""
    steps: int | None = None
    """Points of the timestep grid (default: the model's own); M points are M - 1 forwards."""
    temperature: float = 1.0
    """Of the thinking; 0 always takes the likeliest word."""
    max_think_tokens: int = 32
    """Where the thinking is cut."""
    seed: int = 0
    """Keys all draws: another seed, other drawings."""


@dataclass(frozen=True)
class Generate(Drawing):
    """Think about a prompt, then draw it."""

    prompt: Annotated[Positional[str], arg(metavar="PROMPT")]
    """What to draw, for example "a red circle left of a blue square"."""
    out: Path = Path("generated.png")
    """The picture to write: a grid with the thinking under each drawing."""
    num: int = 4
    """How many to draw."""


@dataclass(frozen=True)
class Eval(Drawing):
    """Draw for held-out prompts and print score, exam score, plan right and follow."""

    suite: str = "shapes"
    """The prompts: shapes (held-out), shapes:held-out or shapes:train."""
    prompts: int = 504
    """How many prompts."""
    samples: int = 4
    """Pictures per prompt."""
    out: Path | None = None
    """A new folder for records.jsonl, summary.json and sheet.png (default: print only)."""


@dataclass(frozen=True)
class Report:
    """Write report.html for a run folder."""

    run_dir: Annotated[Positional[Path], arg(metavar="RUN")]
    """The folder of a run, finished or not."""


@dataclass(frozen=True)
class Recipes:
    """List the recipes that ship with the package."""


@dataclass(frozen=True)
class Parity:
    """Check this BAGEL against reference numbers of the original code; exit 1 if any is out of tolerance."""

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """A folder with config.json, weights.safetensors and golden.safetensors."""


Verb = (
    Annotated[Train, subcommand("train")]
    | Annotated[Generate, subcommand("generate")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Recipes, subcommand("recipes")]
    | Annotated[Parity, subcommand("parity")]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the ``unigrpo`` command; ends by SystemExit."""
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """Run one command line and return its exit code; user errors become one message on stderr and code 2."""
    verb, overrides = tyro.cli(
        Verb,  # type: ignore[arg-type]
        prog="unigrpo",
        description="Reinforcement learning for models that think, then draw (UniGRPO, arXiv 2603.23500).",
        args=argv,
        return_unknown_args=True,
        config=(FlagCreatePairsOff,),  # --no-think has no --no-no-think
    )
    if overrides and not isinstance(verb, Train):
        return fail(f"{type(verb).__name__.lower()} has no option {overrides[0]!r}: see unigrpo {argv[0]} --help")
    return guarded(lambda: _run(verb, overrides))


def _run(verb: object, overrides: Sequence[str]) -> int:
    from unigrpo import verbs  # here, because it takes torch along

    return verbs.run(verb, overrides)


def guarded(action: Callable[[], int]) -> int:
    """Run an action; a ValueError (reward and training faults are some) or a file error is told, not traced back."""
    try:
        return action()
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail("stopped", code=130)


def fail(message: str, code: int = 2) -> int:
    """Print an error to stderr and return its exit code."""
    print(f"unigrpo: error: {message}", file=sys.stderr)
    return code
