"""The verbs of the command line; what they do is in ``verbs`` (imported only when a verb runs, so --help is quick).

Exit codes: 0 done (or saved after SIGTERM or SIGHUP), 1 a check failed (parity), 2 something was set that cannot work,
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg, subcommand

from unigrpo import output, version
from unigrpo.options import Common, Drawing
from unigrpo.rewards import loading


@dataclass(frozen=True)
class Train(Common):
    """Train by a recipe: unigrpo train shapes/unigrpo [--dotted.key value ...].

    Any key of the recipe can be set, for example --iterations 50 --method.flow.clip-range 1e-5.
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """A shipped recipe (see `unigrpo recipes`) or the path of a .yaml file."""
    out: Path | None = None
    """The run folder (default: runs/<recipe>-<time>)."""
    dry_run: bool = False
    """Print the resolved recipe and what an iteration costs (memory, FLOPs, time), and stop."""
    keys: bool = False
    """List every key of the recipe with its value, default, range and one line of explanation, and stop."""
    tflops: float = 989.0
    """For --dry-run: TFLOP/s of one GPU at its best (an H100 or H200 in bfloat16: 989)."""
    mfu: float = 0.4
    """For --dry-run: the share of it that is reached."""
    resume: bool = False
    """Go on with the run in --out from its last complete checkpoint."""


@dataclass(frozen=True)
class Generate(Drawing):
    """Think about a prompt, then draw it; edit a picture (--image), or answer a question about it (--understand)."""

    prompt: Annotated[Positional[str | None], arg(metavar="PROMPT")] = None
    """What to draw, for example "a red circle left of a blue square"; with --image, what to change or to answer."""
    prompts: Path | None = None
    """Prompts from a file in place of PROMPT: .txt, one a line, or .jsonl, .json, .csv, .tsv or .parquet with prompt
    (FILE:COLUMN: another column) and images; - is stdin, one a line."""
    image: Annotated[tuple[Path, ...], UseAppendAction] = ()
    """A picture to edit or to talk about; may be given several times (the prompt may place them with <image>)."""
    understand: bool = False
    """Answer in words in place of drawing."""
    out: Path | None = None
    """A .png (one picture as it is, several as a grid), or a folder of pictures with results.jsonl; answers: a .jsonl.
    Default: generated.png, with --prompts the folder generated; answers are only printed."""
    num: int | None = None
    """How many to draw of each prompt (default: shapes 4, BAGEL 1)."""
    go_on: Annotated[bool, arg(name="continue")] = False
    """Go on in the folder --out: what is there is not drawn again."""
    overwrite: bool = False
    """Replace what an earlier generate wrote into the folder --out, and nothing else."""


@dataclass(frozen=True)
class Eval(Drawing):
    """Draw for held-out prompts and print score, exam score, plan right and follow."""

    suite: str = "shapes"
    """The prompts: shapes (held-out), shapes:train, geneval, a file as in generate --prompts, hf:owner/name, or -."""
    limit: int = 504
    """How many of these prompts, from the first."""
    samples: int = 4
    """Pictures per prompt."""
    reward: str | None = None
    """The reward that judges prompts outside the shapes world, for example image/jpeg-compressibility."""
    out: Path | None = None
    """A new folder for records.jsonl, summary.json and sheet.png (default: print only)."""


@dataclass(frozen=True)
class Report(Common):
    """Write report.html for a run folder."""

    run_dir: Annotated[Positional[Path], arg(metavar="RUN")]
    """The folder of a run, finished or not."""


@dataclass(frozen=True)
class Recipes(Common):
    """List the recipes that ship with the package."""


@dataclass(frozen=True)
class RecipeToEdit(Common):
    """Write a recipe to edit, every key with one line of explanation: unigrpo recipe shapes/unigrpo --out my.yaml.

    Any key can be set, as with train: --iterations 50.
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """A shipped recipe (see `unigrpo recipes`) or the path of a .yaml file."""
    out: Path | None = None
    """A new .yaml file (default: print it)."""


@dataclass(frozen=True)
class Parity(Common):
    """Check this BAGEL against reference numbers of the original code; exit 1 if any is out of tolerance."""

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """A folder with config.json, golden.safetensors and weights.safetensors (a model) or ae.safetensors (a VAE)."""


@dataclass(frozen=True)
class Export(Common):
    """Write a trained model as others load it, with a model card: adapters merged, in the layout that it came in."""

    model: Annotated[Positional[str], arg(metavar="RUN")]
    """A run folder (its newest checkpoint), a checkpoint, or a model folder."""
    out: Annotated[Positional[Path], arg(metavar="DIR")]
    """A new folder."""
    adapter: bool = False
    """Write only the LoRA adapter, in peft's format."""
    dtype: Literal["source", "float32", "bfloat16"] = "source"
    """Precision of the weights: as the model came, or another; what rounding changed is measured and said."""
    push_to_hub: str | None = None
    """Upload the finished folder to this OWNER/NAME on the Hugging Face hub, as a private repository."""
    public: bool = False
    """With --push-to-hub: let everybody see it."""


@dataclass(frozen=True)
class MakeTinyBagel(Common):
    """Write a random BAGEL of a few MB in the public layout, with samples to try recipes on.

    Its autoencoder is smaller than BAGEL's: unigrpo opens it, but the original code needs --full-autoencoder.
    """

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """A new folder."""
    seed: int = 0
    """Of the random weights."""
    full_autoencoder: bool = False
    """Give the autoencoder the sizes of the real one (335 MB), as the original code's loader has them built in."""


@dataclass(frozen=True)
class Reproduce(Common):
    """Make a table or a figure of the paper in the shapes world: runs what is missing, skips what is there."""

    target: Annotated[Positional[Literal["table1", "table2", "fig3", "fig4", "fig5", "traces"]], arg(metavar="TARGET")]
    """table1 (all methods), table2 (their categories), fig3 (reward curves of UniGRPO), fig4 (guidance in training),
    fig5 (regularisers), traces (thinking and pictures of three models)."""
    seeds: int | None = None
    """Seeds 0, 1, ... of every run (default: 3, quick 1)."""
    scale: Literal["quick", "full"] = "full"
    """quick proves the machinery in minutes; its figures mean nothing."""
    jobs: int | None = None
    """Runs at a time, each with one thread (default: the number of cores)."""
    reward: Literal["preference", "verifier"] = "preference"
    """What trains: a learned judge, as in the paper, or the rules that also judge (rows that need gradients: n/a)."""
    work: Path = Path("runs/reproduce")
    """Where the runs go; keep it, and the same command goes on where it was."""
    results: Path = Path("docs/results")
    """Where JSON, Markdown and PNG go."""


Verb = (
    Annotated[Train, subcommand("train")]
    | Annotated[Generate, subcommand("generate")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Recipes, subcommand("recipes")]
    | Annotated[RecipeToEdit, subcommand("recipe")]
    | Annotated[Parity, subcommand("parity")]
    | Annotated[Export, subcommand("export")]
    | Annotated[MakeTinyBagel, subcommand("make-tiny-bagel")]
    | Annotated[Reproduce, subcommand("reproduce")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """The ``unigrpo`` command, for programs and notebooks too: run it and return its exit code."""
    return run(list(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """Run one command line and return its exit code; user errors become one message on stderr and code 2."""
    loading.stop_if_loading()
    with output.safe_streams() as out:
        code = run_verb(argv)
        if (why := out.lost()) is not None:
            return fail(f"what was printed has not arrived ({why}): files that were to be written are there", code or 2)
    return code


def run_verb(argv: list[str]) -> int:
    """Find out which verb is meant, and run it."""
    if argv in (["--version"], ["-V"]):
        print(version.describe())
        return 0
    try:
        verb, overrides = parsed(argv)
    except SystemExit as left:  # after --help, and where the parser has said what it refuses
        return left.code if isinstance(left.code, int) else 2 * bool(left.code)
    if overrides and not isinstance(verb, Train | RecipeToEdit):
        return fail(unknown(verb, argv[0], overrides))
    return guarded(lambda: _run(verb, overrides))


def parsed(argv: list[str]) -> tuple[Common, list[str]]:
    """The verb with its options, and the overrides of a recipe; SystemExit where there is none to run."""
    return tyro.cli(
        Verb,  # type: ignore[arg-type]
        prog="unigrpo",
        description="Reinforcement learning for models that think, then draw (UniGRPO, arXiv 2603.23500). "
        "unigrpo --version says which one this is.",
        args=argv,
        return_unknown_args=True,
        config=(FlagCreatePairsOff,),  # --no-think has no --no-no-think
    )


def unknown(verb: object, name: str, words: Sequence[str]) -> str:
    """What to say of words that a verb does not know."""
    if name.startswith("-"):
        return f"{name} stands before the verb: write it after, as in unigrpo recipes --json"
    if isinstance(verb, Eval) and words[0].partition("=")[0] == "--prompts":
        return "eval has no --prompts: how many prompts is --limit, and a file of prompts is --suite FILE"
    return f"{name} has no option {words[0]!r}: see unigrpo {name} --help"


def _run(verb: Common, overrides: Sequence[str]) -> int:
    from unigrpo import verbs  # here, because it takes torch along

    with output.speaking(quiet=verb.quiet, json=verb.json):
        return verbs.run(verb, overrides)


def guarded(action: Callable[[], int]) -> int:
    """Run an action; a ValueError (reward and training faults are some) or a file error is told, not traced back."""
    try:
        return action()
    except OSError as error:
        return fail(output.told(error))
    except ValueError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail("stopped", code=130)


def fail(message: str, code: int = 2) -> int:
    """Print an error to stderr and return its exit code."""
    print(f"unigrpo: error: {message}", file=sys.stderr)
    return code
