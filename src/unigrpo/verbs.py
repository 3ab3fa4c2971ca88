"""What the verbs of the command line do."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from unigrpo import cli, config, resolve
from unigrpo.config import ConfigError, Recipe
from unigrpo.evaluation.evaluator import evaluate, summarise
from unigrpo.models.bagel import parity
from unigrpo.models.bagel.policy import BagelPolicy
from unigrpo.reports import runlog
from unigrpo.reports.grids import contact_sheet, record_sheet, save_png_atomic
from unigrpo.reports.html import write_report
from unigrpo.reports.progress import Progress
from unigrpo.rollout.engine import Draws, Sampling, rollout
from unigrpo.rollout.episode import single_round
from unigrpo.rollout.guidance import Guidance
from unigrpo.rollout.outcome import decode_pictures, thinking_of
from unigrpo.training import checkpoint
from unigrpo.training.trainer import Stop, Trainer, describe_summary
from unigrpo.trajectory import Prompt
from unigrpo.worlds import shapes
from unigrpo.worlds.shapes import tasks


def run(verb: object, overrides: Sequence[str]) -> int:
    """Run one parsed verb and return the exit code."""
    match verb:
        case cli.Train():
            return train(verb, overrides)
        case cli.Generate():
            return generate(verb)
        case cli.Eval():
            return evaluate_model(verb)
        case cli.Report():
            print(f"wrote {write_report(verb.run_dir)}")
            return 0
        case cli.Recipes():
            for name, description in config.list_recipes():
                print(f"{name:18} {description}")
            return 0
        case cli.Parity():
            return check_parity(verb.folder)
    raise AssertionError(f"no verb for {verb!r}")


# Training


def train(verb: cli.Train, overrides: Sequence[str]) -> int:
    """Train, or print what would be trained."""
    if verb.resume:
        recipe, run_dir = resumed_recipe(verb, overrides)
    else:
        recipe, run_dir = config.load_recipe(verb.recipe, overrides), verb.out
    if verb.dry_run:
        print(config.to_yaml(recipe))
        print("\n".join(config.batch_arithmetic(recipe)))
        return 0
    if not verb.resume and run_dir is not None:
        if (run_dir / runlog.RECIPE).is_file():
            raise ConfigError(f"{run_dir} already holds a run: add --resume to go on with it, or name another --out")
        must_be_new(run_dir)
    if verb.resume and run_dir is not None and (finished := checkpoint.finished(run_dir)) > recipe.iterations:
        raise ConfigError(
            f"--iterations {recipe.iterations}: {run_dir} has {finished} finished iterations; ask for more"
        )
    parts = resolve.parts(recipe)
    if run_dir is not None:
        usable(run_dir)
    trainer = Trainer(recipe, parts, run_dir or new_folder(recipe), Stop())
    start = trainer.resume() if verb.resume else 0
    trainer.recorder.start(config.to_yaml(recipe))
    return run_trainer(trainer, verb, start)


def must_be_new(folder: Path) -> None:
    """Refuse a folder with anything in it: nothing of the user's is overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--out {folder} is there and not empty: name a new or an empty folder")


def usable(folder: Path) -> None:
    """Make a folder, or say why it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder} ({error.strerror}): choose another --out") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"cannot write to {folder} (no permission): choose another --out")


def new_folder(recipe: Recipe) -> Path:
    """Make runs/<recipe>-<time>; runs that start in the same second get numbers."""
    first = Path("runs") / f"{recipe.name.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        if not folder.exists():
            with contextlib.suppress(FileExistsError):  # another run was quicker
                folder.mkdir(parents=True)
                return folder
    raise AssertionError("unreachable")


def resumed_recipe(verb: cli.Train, overrides: Sequence[str]) -> tuple[Recipe, Path]:
    """The recipe of the run in --out; of all overrides only ``iterations`` may change it."""
    if verb.out is None:
        raise ConfigError("--resume needs --out, the folder of the run to go on with")
    path = verb.out / runlog.RECIPE
    if not path.is_file():
        raise ConfigError(f"{verb.out} is not a run folder (it has no {runlog.RECIPE}): nothing to resume")
    other = [o for o in overrides if o.startswith("--") and o.lstrip("-").split("=")[0] != "iterations"]
    if other:
        raise ConfigError(
            f"{other[0]} with --resume: the recipe of the run in {verb.out} holds, and only --iterations may change; "
            "leave it out, or start a new run"
        )
    recipe = config.load_recipe(path, overrides)
    if recipe.name != verb.recipe and not verb.recipe.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"{verb.out} is a run of {recipe.name}, not of {verb.recipe}: name that recipe, or another --out"
        )
    return recipe, verb.out


def run_trainer(trainer: Trainer, verb: cli.Train, start: int) -> int:
    """Run to the end or to Ctrl-C, with progress, and write the report."""
    again = shlex.join([program(), "train", verb.recipe, "--out", str(trainer.run_dir), "--resume"])
    began = time.perf_counter()
    with Progress(trainer.recipe.name, trainer.recipe.iterations, start=start) as progress:
        progress.note(f"run folder: {trainer.run_dir}" + (f" (resumed after {start} iterations)" if start else ""))
        previous = signal.signal(signal.SIGINT, stop_handler(trainer.stop, progress))
        try:
            finished = trainer.run(progress)
        except (Exception, KeyboardInterrupt) as error:
            how = "at once" if isinstance(error, KeyboardInterrupt) else "by an error"
            progress.note(f"stopped {how} after {trainer.done} finished iterations; to go on: {again}")
            raise
        finally:
            signal.signal(signal.SIGINT, previous)
    report = write_report(trainer.run_dir)
    if not finished:
        print(f"saved after {trainer.done} iterations; to go on: {again}")
        return 130
    print(f"finished in {time.perf_counter() - began:.0f} s, {trainer.trained_seconds:.0f} s of it training")
    print_comparison(trainer.run_dir)
    print(f"report: {report}")
    return 0


def program() -> str:
    """How this program was called, so that what it prints can be pasted."""
    called = Path(sys.argv[0])
    return "unigrpo" if called.name != "unigrpo" or shutil.which("unigrpo") == str(called) else str(called)


def stop_handler(stop: Stop, progress: Progress):
    """The first Ctrl-C ends the run after the iteration under way; the second at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        progress.note("stopping as soon as the step under way is finished, and saving (Ctrl-C again to stop at once)")

    return handle


def print_comparison(run_dir: Path) -> None:
    """Print before, after and the paired difference with its 95 % interval."""
    summary = runlog.read_json(run_dir / runlog.SUMMARY)
    if not {"before", "after", "paired"} <= set(summary):
        return
    pictures = f"{summary['after']['n']} held-out pictures, the same prompts and draws before and after"
    print(f"{pictures}:")
    names = {
        "score": "score",
        "exam_score": "exam score",
        "plan_right": "plan right",
        "follow": "follows plan",
        "parsable": "plan parsable",
    }
    for key, name in names.items():
        if key in summary["paired"]:
            d = summary["paired"][key]
            before, after = summary["before"][key], summary["after"][key]
            print(
                f"  {name:13} {before:.3f} -> {after:.3f}   difference {d['difference']:+.3f} "
                f"(95 % interval {d['low']:+.3f} to {d['high']:+.3f})"
            )


# Drawing and judging


def sampling(policy: BagelPolicy, verb: cli.Drawing) -> Sampling:
    """The sampling that the options ask for, on the model's own timestep grid."""
    points = policy.config.num_points if verb.steps is None else verb.steps
    if points < 2:
        raise ConfigError(f"--steps {points}: a timestep grid needs at least 2 points (M points are M - 1 forwards)")
    for option, value, least in (
        ("temperature", verb.temperature, 0),
        ("guidance", verb.guidance, 1),
        ("max-think-tokens", verb.max_think_tokens, 1),
    ):
        if not value >= least:
            raise ConfigError(f"--{option} {value}: it must be at least {least}")
    if not 0 <= verb.interval[0] < verb.interval[1] <= 1:
        raise ConfigError(f"--interval {verb.interval[0]} {verb.interval[1]}: it must be 0 <= LOW < HIGH <= 1")
    return Sampling(
        num_points=points,
        shift=policy.config.timestep_shift,
        temperature=verb.temperature,
        max_think_tokens=verb.max_think_tokens,
        guidance=Guidance(text_scale=verb.guidance, interval=verb.interval, renorm=verb.renorm),
    )


def generate(verb: cli.Generate) -> int:
    """Draw one prompt ``num`` times into one picture."""
    if verb.num < 1:
        raise ConfigError(f"--num {verb.num}: draw at least one picture")
    if verb.out.suffix.lower() != ".png":
        raise ConfigError(f"--out {verb.out}: pictures are written as .png")
    policy = resolve.policy(config.Model(verb.model))
    prompt = Prompt(0, *understood(policy, verb.prompt))
    drawn = rollout(
        policy,
        single_round(think=not verb.no_think),
        [prompt],
        sampling(policy, verb),
        group_size=verb.num,
        draws=Draws(verb.seed, 0),
    )
    pictures = decode_pictures(policy, drawn)
    thinking = [thinking_of(policy, t) for t in drawn]
    verdicts: list[bool | None] = [None] * len(drawn)
    if prompt.metadata:
        records = tasks.judge_pictures(pictures.float() / 255.0, [prompt] * len(drawn), thinking)
        verdicts = [record["correct"] for record in records]
    for text, verdict in zip(thinking, verdicts, strict=True):
        said = "(did not think)" if text is None else text or "(thought nothing)"
        print({True: "right  ", False: "wrong  ", None: ""}[verdict] + said)
    sheet = contact_sheet(
        pictures.permute(0, 2, 3, 1).numpy(),
        [prompt.text] * len(drawn),
        verdicts,
        columns=min(4, len(drawn)),
        thinking=[text or "" for text in thinking],
    )
    verb.out.parent.mkdir(parents=True, exist_ok=True)
    save_png_atomic(sheet, verb.out)
    print(f"wrote {verb.out}")
    return 0


def understood(policy: BagelPolicy, text: str) -> tuple[str, dict]:
    """The prompt as the model reads it, and the requirements to judge it by (none for a prompt outside the world)."""
    plain = shapes.normalise_prompt(text)
    try:
        policy.encode_text(text)
    except ValueError:
        metadata = shapes.parse_prompt(text)  # explains what can be asked for
        return plain, dict(metadata)
    if policy.spec.image_size != (shapes.IMAGE_SIZE, shapes.IMAGE_SIZE):
        return text, {}
    return plain, dict(shapes.parse_prompt(text))


def evaluate_model(verb: cli.Eval) -> int:
    """Evaluate a model on a suite and print its figures."""
    if verb.prompts < 1 or verb.samples < 1:
        raise ConfigError("--prompts and --samples must be at least 1")
    if verb.out is not None:
        must_be_new(verb.out)
        usable(verb.out)
    suite = resolve.suite(verb.suite)
    policy = resolve.policy(config.Model(verb.model))
    result = evaluate(
        policy,
        suite.prompts(verb.prompts),
        suite.judge,
        sampling(policy, verb),
        samples=verb.samples,
        seed=verb.seed,
        think=not verb.no_think,
    )
    summary = summarise(result.records)
    print(f"{verb.model} on {verb.suite}: {describe_summary(summary)}")
    for category, value in summary["by_category"].items():
        print(f"  {category:14} {value:.3f}")
    if verb.out is not None:
        settings = {"model": verb.model, "suite": verb.suite, "seed": verb.seed, "think": not verb.no_think}
        settings |= {
            "guidance": verb.guidance,
            "interval": verb.interval,
            "renorm": verb.renorm,
            "num_points": verb.steps or policy.config.num_points,
        }
        runlog.write_records_atomic(verb.out / "records.jsonl", result.records)
        runlog.write_json_atomic(verb.out / "summary.json", {**summary, "settings": settings})
        sheet = record_sheet(result.pictures[:24].permute(0, 2, 3, 1).numpy(), result.records[:24])
        save_png_atomic(sheet, verb.out / "sheet.png")
        print(f"wrote {verb.out}/records.jsonl, summary.json and sheet.png")
    return 0


def check_parity(folder: Path) -> int:
    """Print one line per group of reference numbers; 1 if any is out of tolerance."""
    checks, dropped = parity.run(folder)
    for check in checks:
        print(
            f"{'ok  ' if check.passed else 'FAIL'}  {check.group:36} largest error {check.error:9.2e}   "
            f"tolerance {check.tolerance:.0e}"
        )
    for name in parity.NEEDS_VISION:
        print(f"skip  {name:36} needs the vision tower")
    print(f"left out of the weights: {len(dropped)} tensors of the vision tower")
    failed = [check.group for check in checks if not check.passed]
    print(f"{len(checks) - len(failed)} of {len(checks)} groups within tolerance")
    return 1 if failed else 0
