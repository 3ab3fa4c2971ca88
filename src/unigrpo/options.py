"""What the verbs of the command line take. Nothing here imports torch, so that ``unigrpo --help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Union

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, UseAppendAction, arg, subcommand


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
    """builtin:shapes-sft, builtin:words-sft, a model or run folder (its newest checkpoint), or a hub id."""
    no_think: bool = False
    """Draw without thinking first."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels, for example 1024x768 (default: the model's own; an edit keeps its picture's)."""
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
    rounds: int = 1
    """Pictures of a sample: look at each, think and draw again; the last one counts (docs/guide.md, rounds)."""
    look: Literal["seen", "grey", "other"] = "seen"
    """With --rounds, what a look shows: the picture, or as a control a grey one or another prompt's."""
    rethink: str = "own"
    """With --rounds, what follows a look: own (a thinking), none, or these words in place of one (controls)."""
    stop_word: Annotated[tuple[str, ...], UseAppendAction] = ()
    """With --rounds, a thinking after a look that ends the sample; the picture before it stands. May be given again."""
    seed: int = 0
    """Keys all draws: another seed, other drawings."""
    batch: int | None = None
    """Pictures that are drawn together (default: shapes 192, BAGEL 4); changes memory, not pictures."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto is the accelerator where there is one (shapes: the CPU)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision; auto is bfloat16 on an accelerator and float32 on a CPU."""


@dataclass(frozen=True)
class Train(Common):
    """Train by a recipe: unigrpo train shapes/unigrpo [--dotted.key value ...].

    Any key of the recipe can be set, for example --iterations 50 --method.flow.clip-range 1e-5; --log tensorboard,wandb
    also logs there (or to trackio).
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
    """Go on with the run in --out from its last complete checkpoint; where --out is empty or not there, start it."""
    nproc: int = 1
    """Ranks (processes) that share the run on this machine, each with a GPU of its own where there are any; 0: as many
    as a measurement of a second finds faster. Several machines: torchrun."""


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
    guidance: float | None = None
    """Scale of classifier-free guidance on the words; 1 is none (default: shapes 1, BAGEL 4)."""
    num: int | None = None
    """How many to draw of each prompt (default: shapes 4, BAGEL 1)."""
    go_on: Annotated[bool, arg(name="continue")] = False
    """Go on in the folder --out: what is there is not drawn again."""
    overwrite: bool = False
    """Replace what an earlier generate wrote into the folder --out, and nothing else."""


@dataclass(frozen=True)
class Eval(Drawing):
    """Draw for a suite of prompts and examine the pictures; or examine a folder: unigrpo eval score FOLDER.

    The same command goes on in its folder --out: what is there is not drawn or examined again.
    """

    words: Annotated[Positional[tuple[str, ...]], arg(metavar="[score FOLDER]")] = ()
    """Nothing, or score and a folder with 00000/metadata.jsonl and 00000/samples/0000.png, whoever drew them."""
    suite: str = "shapes"
    """shapes, words (held-out), shapes:train, shapes:questions (answers in words), geneval, exam, ocr; geneval, tiif,
    geneval2 or wise with the path of their own file (wise:PATH); a file of prompts as generate --prompts,
    hf:owner/name, or -."""
    limit: int | None = None
    """How many of these prompts, from the first (default: all of a fixed list; 504 of others)."""
    samples: int = 4
    """Pictures per prompt."""
    guidance: str | None = None
    """Scale of classifier-free guidance on the words; 1 is none (default). Several (1,2,4) make a table of them."""
    reward: str | None = None
    """The reward that judges prompts outside shapes and words, for example image/jpeg-compressibility; with arguments
    as in a recipe: "{name: ..., value: ..., args: {...}}"."""
    judge: str | None = None
    """The judge of exam, tiif, geneval2, wise and prompts with points, as the arguments of judge/exam:
    "{url: http://127.0.0.1:8000/v1, model: ...}"."""
    detector: str | None = None
    """The detector of geneval: "{name: mask2former-mmdet, weights: PATH, clip: PATH}", or path/file.py:thing."""
    draw_only: bool = False
    """Draw the pictures and leave them to `unigrpo eval score` (on another machine, perhaps)."""
    out: Path | None = None
    """The folder for pictures, records.jsonl, result.json and report.html (default: print only; score: FOLDER)."""


@dataclass(frozen=True)
class Report(Common):
    """Write report.html for a run folder."""

    run_dir: Annotated[Positional[Path], arg(metavar="RUN")]
    """The folder of a run, finished or not."""


@dataclass(frozen=True)
class Compare(Common):
    """Overlay the curves of several runs on one page, or compare evaluations (folders of eval, or their result.json).

    Of runs it says what differs in their recipes; of evaluations, their differences to the first.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")]
    """Two to seven folders of runs, finished or not (stages are laid one after the other); or evaluations."""
    out: Path = Path("compare.html")
    """The page to write."""


@dataclass(frozen=True)
class Recipes(Common):
    """List the recipes that ship with the package."""


@dataclass(frozen=True)
class ListRewards:
    """List the rewards that ship, those of installed packages, and what each still lacks."""


@dataclass(frozen=True)
class TryReward:
    """Score pictures: unigrpo rewards try image/jpeg-compressibility --image a.png --prompt "a red circle"."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """A reward (see `unigrpo rewards`), path/file.py:thing or package.module:thing."""
    image: Annotated[tuple[Path, ...], UseAppendAction] = ()
    """A picture; may be given several times, of one size."""
    prompt: str = ""
    """What was asked of them."""
    source: Annotated[tuple[Path, ...], UseAppendAction] = ()
    """For edits: a picture that they were made from; may be given several times."""
    thinking: str | None = None
    """What the model thought before it drew (default: it did not)."""
    metadata: str | None = None
    """What else is known of the prompt, as YAML: "{word: HI}" (default: what a world reads in its own prompts)."""
    args: str = "{}"
    """Arguments of the reward, as in a recipe: "{batch: 4}"."""
    value: str | None = None
    """Which of its values counts, where it gives several by name."""
    timeout_s: float = 600.0
    """Seconds that it may take."""


@dataclass(frozen=True)
class ServeReward:
    """Serve a reward over HTTP, so that it can have its own machine or environment (reward remote/http asks it)."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """A reward (see `unigrpo rewards`), path/file.py:thing or package.module:thing."""
    args: str = "{}"
    """Arguments of the reward, as in a recipe: "{batch: 4}"."""
    host: str = "127.0.0.1"
    """The address to answer at; one that others can reach needs a token."""
    port: int = 8765
    """The port; 0 is any that is free."""
    workers: int = 1
    """Processes, each with the reward in its own memory."""
    token_env: str | None = None
    """NAME of the environment variable that holds the token which askers must show."""
    max_pictures: int = 64
    """Pictures of one request."""
    max_pixels: int = 67_108_864
    """Pixels of one request, all its pictures together."""
    max_body_mb: int = 64
    """Megabytes of one request."""
    timeout_s: float = 600.0
    """Seconds that one call of the reward may take."""


@dataclass(frozen=True)
class Rewards(Common):
    """List the rewards there are; try one on a picture, or serve it over HTTP."""

    action: Annotated[
        Union[  # noqa: UP007 (tyro reads it when it runs)
            Annotated[ListRewards, subcommand("list")],
            Annotated[TryReward, subcommand("try")],
            Annotated[ServeReward, subcommand("serve")],
        ],
        OmitArgPrefixes,
        OmitSubcommandPrefixes,
    ] = ListRewards()


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


@dataclass(frozen=True)
class Doctor(Common):
    """Look whether this machine can do what runs need, and try it in ten seconds; exit 1 if a check failed.

    Versions, extras, threads, memory, disk, GPUs; a small update, a checkpoint and two ranks; what parallel.mode auto
    would choose.
    """

    gpus: int | None = None
    """GPUs to plan for, in place of those that are here (what parallel.mode auto would choose)."""
    gpu_gb: float | None = None
    """Memory of one of them in GB, with --gpus (an H100 has 80, an H200 141)."""
    no_self_test: bool = False
    """Only look; try nothing."""


VERBS: dict[str, type[Common]] = {
    "train": Train,
    "generate": Generate,
    "eval": Eval,
    "report": Report,
    "compare": Compare,
    "recipes": Recipes,
    "recipe": RecipeToEdit,
    "rewards": Rewards,
    "parity": Parity,
    "export": Export,
    "make-tiny-bagel": MakeTinyBagel,
    "reproduce": Reproduce,
    "doctor": Doctor,
}
"""The verbs; what each does is ``run`` in the module of ``commands`` that is named like it."""
WITH_OVERRIDES = (Train, RecipeToEdit)
"""Verbs that also take keys of a recipe."""
