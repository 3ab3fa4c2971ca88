"""The verb ``generate``: think and draw, edit pictures, or answer questions about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unigrpo import build, options, output
from unigrpo.commands.drawing.asking import Asked, asked, names_of
from unigrpo.commands.drawing.picture_folder import Drawn, PictureFolder, as_png, picture_name, save_rounds
from unigrpo.commands.drawing.sampling import (
    batch_size,
    check,
    check_guidance,
    check_numbers,
    in_words,
    load,
    sampling,
    turns,
)
from unigrpo.files import write_records_atomic
from unigrpo.plurals import counted
from unigrpo.policy import Policy
from unigrpo.ranges import ConfigError
from unigrpo.reports.grids import contact_sheet, save_png_atomic
from unigrpo.rollout.engine import RandomKeys, Sampling
from unigrpo.rollout.generate import Defaults, editing, own
from unigrpo.rollout.sample import check_others, portions, present, sample
from unigrpo.runs.evaluating import described, turns_of
from unigrpo.runs.models import in_the_world
from unigrpo.runs.places import no_source, try_file
from unigrpo.trajectory import Prompt
from unigrpo.worlds.prompt_files import Source


def run(verb: options.Generate) -> int:
    """Draw (or answer) one prompt or a file of them."""
    asking = asked(verb)
    check(verb)
    check_guidance(verb.guidance)
    check_numbers(num=verb.num)
    if verb.understand:
        _refuse_drawing(verb)
        return answer(verb, asking)
    out = verb.out or Path("generated" if verb.prompts else "generated.png")
    if out.suffix.lower() != ".png":
        return generate_folder(verb, asking, out)
    if verb.prompts is not None:
        raise ConfigError(f"--out {out}: the pictures of a file of prompts go into a folder; name one without .png")
    refuse_folder_options(verb, out)
    try_file(out)
    no_source([out], asking.files)
    policy = load(verb)
    prompts = [in_the_world(policy, prompt) for prompt in asking.prompts]
    planned, drawn = list(calls(policy, prompts, verb, number_of(policy, verb))), []
    check_calls(planned, verb, policy)
    say_how(planned, verb)
    for call in planned:
        made = draw(policy, call, verb)
        drawn += made
        tell(made)
    write_png(out, drawn, bare=not policy.defaults.captioned)
    output.result(f"wrote {out}", wrote=str(out), thinking=[one.thinking for one in drawn])
    return 0


def generate_folder(verb: options.Generate, asking: Asked, out: Path) -> int:
    """Every picture by itself as soon as it is drawn, and results.jsonl with what led to it."""
    if out.suffix and not out.is_dir():
        raise ConfigError(f"--out {out}: pictures are written as .png, or into a folder")
    folder = PictureFolder.open(out, go_on=verb.go_on, overwrite=verb.overwrite)
    verb = replace(verb, model=lasting_model(verb.model))
    policy = load(verb)
    prompts = [in_the_world(policy, prompt) for prompt in asking.prompts]
    planned = list(calls(policy, prompts, verb, number_of(policy, verb)))
    plan = {name: row for call in planned for name, row in call.plan(policy, verb, asking.pictures).items()}
    folder.prepare(dict(sorted(plan.items(), key=lambda item: place(item[0]))), asking.files)
    kept = len(folder.records)
    say_how(planned, verb)
    check_calls(planned, verb, policy)
    if kept:
        print(f"{kept} of {counted(len(plan), 'picture')} are there")
    for call in planned:
        if not folder.has(call.names):
            made = draw(policy, call, verb)
            folder.write(made)
            tell(made)
    wrote = f"wrote {counted(len(plan) - kept, 'picture')} and results.jsonl to {out}"
    output.result(wrote, wrote=str(out), pictures=len(plan), drawn=len(plan) - kept)
    return 0


OF_DRAWING = ("rounds", "num", "size", "steps", "guidance", "image_guidance", "renorm", "interval")
"""Options that an answer in words has no use for."""


def _refuse_drawing(verb: options.Generate) -> None:
    """ConfigError where an option of drawing is set, and nothing is drawn."""
    for field in fields(verb):
        if field.name in OF_DRAWING and vars(verb)[field.name] != field.default:
            raise ConfigError(
                f"--understand answers in words and draws nothing: leave out --{field.name.replace('_', '-')}"
            )


def check_calls(planned: Sequence[Call], verb: options.Generate, policy: Policy) -> None:
    """ConfigError where a look at another's picture would find none."""
    for call in planned:
        check_others(turns(policy, verb), len(call.prompts), call.count, None, "--batch, or the prompts")


def say_how(planned: Sequence[Call], verb: options.Generate) -> None:
    """Print the settings; edits and drawings of one file have different ones."""
    for how in dict.fromkeys(in_words(call.how) for call in planned):
        print(f"drawing with {how}, seed {verb.seed}", flush=True)


def refuse_folder_options(verb: options.Generate, out: Path) -> None:
    """--continue and --overwrite are about folders; a single file is always written anew."""
    for option, given in (("--continue", verb.go_on), ("--overwrite", verb.overwrite)):
        if given:
            raise ConfigError(f"{option} is for a folder of pictures, and --out {out} is a file: leave {option} out")


def number_of(policy: Policy, verb: options.Generate) -> int:
    """How many pictures of each prompt."""
    return verb.num or policy.defaults.pictures


def lasting_model(name: str) -> str:
    """The model's name; of a run the checkpoint, since the newest one of tomorrow is another model."""
    return str(build.model_folder(name)) if Path(name).is_dir() else name


@dataclass(frozen=True)
class Call:
    """Samples ``first`` ... ``first + count - 1`` of some prompts of one size, drawn together as ``how`` says."""

    prompts: Sequence[Prompt]
    first: int
    count: int
    how: Sampling
    size: tuple[int, int]

    @property
    def names(self) -> list[str]:
        """The files of its pictures in a folder."""
        samples = range(self.first, self.first + self.count)
        return [picture_name(prompt.position, sample) for prompt in self.prompts for sample in samples]

    def plan(
        self, policy: Policy, verb: options.Generate, pictures: Sequence[Sequence[Source]]
    ) -> dict[str, dict[str, Any]]:
        """What is known of every picture before it is drawn."""
        height, width = self.size
        settings = {**described(self.how), "size": f"{width}x{height}", "think": not verb.no_think}
        settings |= turns_of(turns(policy, verb))
        settings |= {"model": verb.model, "dtype": str(policy.compute_dtype).removeprefix("torch.")}
        rows = {}
        for prompt in self.prompts:
            row = {"prompt": prompt.text, "metadata": prompt.metadata}
            row |= {"sources": names_of(pictures[prompt.position]), "seed": verb.seed}
            for number in range(self.first, self.first + self.count):
                rows[picture_name(prompt.position, number)] = {**row, "settings": settings}
        return rows


def place(name: str) -> tuple[int, ...]:
    """Position and sample of a picture's name, to sort by."""
    return tuple(int(part) for part in name.removesuffix(".png").split("-"))


def calls(policy: Policy, prompts: Sequence[Prompt], verb: options.Generate, number: int) -> Iterator[Call]:
    """All that is to be drawn, ``number`` pictures of every prompt, at most a batch at once."""
    for part in together(policy, prompts, verb):
        defaults: Defaults = editing(policy) if part[0].images else own(policy)
        how, size = sampling(policy, verb, defaults, verb.guidance), drawn_size(policy, part[0], verb)
        for some, first, count in portions(part, number, batch_size(policy, verb)):
            yield Call(some, first, count, how, size)


def together(policy: Policy, prompts: Sequence[Prompt], verb: options.Drawing) -> Iterator[list[Prompt]]:
    """Prompts that can be drawn together: of one picture size, edits or not, in order."""
    part, kind = list[Prompt](), None
    for prompt in prompts:
        here = drawn_size(policy, prompt, verb), bool(prompt.images)  # edits are guided otherwise
        if part and here != kind:
            yield part
            part = []
        part, kind = [*part, prompt], here
    if part:
        yield part


def drawn_size(policy: Policy, prompt: Prompt, verb: options.Drawing) -> tuple[int, int]:
    """(height, width) of a prompt's picture: --size, else that of the last picture it shows, else the model's."""
    if verb.size is None and prompt.images:
        return policy.edit_size(prompt.images[-1])
    return policy.spec.image_size


def draw(policy: Policy, call: Call, verb: options.Generate) -> list[Drawn]:
    """Draw the pictures of a call, judged where rules can."""
    world, judged = build.world_of(policy.words), []
    (drawn,) = sample(
        policy.at_size(call.size),
        turns(policy, verb),
        call.prompts,
        call.how,
        RandomKeys(verb.seed, 0),
        samples=call.count,
        batch=None,
        first_sample=call.first,
    )
    rows = zip(drawn.trajectories, drawn.thinking, drawn.thoughts, drawn.pictures, strict=True)
    for trajectory, words, thoughts, picture in rows:
        prompt, correct = trajectory.prompt, None
        if world is not None and build.can_judge(world, prompt, (picture.shape[1], picture.shape[2])):
            (record,) = world.judge(picture[None].float() / 255.0, [prompt], [words])
            correct = record["correct"]
        looked_at = [present(image.pixels) for image in trajectory.drawings[:-1]]
        earlier = list(zip(thoughts, looked_at, strict=False))
        ended = thoughts[-1] if len(thoughts) > len(trajectory.drawings) else None
        judged.append(Drawn(prompt, trajectory.sample, words, picture, correct, earlier, ended))
    return judged


def tell(drawn: Sequence[Drawn]) -> None:
    """Print what was thought, and whether the picture is right where that is known."""
    for one in drawn:
        said = one.whole_thinking if one.earlier or one.ended is not None else one.thinking
        said = "(did not think)" if said is None else said or "(thought nothing)"
        print({True: "right  ", False: "wrong  ", None: ""}[one.correct] + said, flush=True)


def write_png(out: Path, drawn: Sequence[Drawn], *, bare: bool) -> None:
    """A single picture as it is, if it is to be ``bare``; else a grid, with the thinking under each."""
    if bare and len(drawn) == 1:
        save_rounds(drawn[0], out)
        save_png_atomic(as_png(drawn[0].picture), out)
        return
    beside = [[as_array(p) for p in (*one.prompt.images, *(shown for _, shown in one.earlier))] for one in drawn]
    sheet = contact_sheet(
        torch.stack([one.picture for one in drawn]).permute(0, 2, 3, 1).numpy(),
        [one.prompt.text for one in drawn],
        [one.correct for one in drawn],
        columns=min(4, len(drawn)),
        thinking=[one.whole_thinking for one in drawn],
        given=beside,
    )
    save_png_atomic(sheet, out)


def as_array(picture: torch.Tensor) -> np.ndarray:
    """A picture uint8 [3, H, W] as [H, W, 3]."""
    return picture.permute(1, 2, 0).numpy()


# Answers


@torch.no_grad()
def answer(verb: options.Generate, asking: Asked) -> int:
    """Answer questions about pictures in words (docs/bagel-architecture.md#drawing: pictures are only seen)."""
    out = verb.out
    if out is not None:
        if out.suffix.lower() != ".jsonl":
            raise ConfigError(f"--out {out}: answers are written as .jsonl")
        try_file(out)
        no_source([out], asking.files)
    refuse_folder_options(verb, out or Path("answers.jsonl"))
    policy = load(verb)
    how, records = sampling(policy, verb, own(policy), verb.guidance), []
    for prompt, pictures in zip(asking.prompts, asking.pictures, strict=True):
        context = policy.prefill([policy.question_segments(prompt.text, prompt.images, think=not verb.no_think)])
        uniforms = torch.rand(
            how.max_think_tokens, generator=RandomKeys(verb.seed, 0).generator(prompt.position, 0, "think")
        )
        (text,), _ = policy.think(context, uniforms=uniforms[None], temperature=how.temperature)
        words = policy.decode_text(text.ids)
        row = {"prompt": prompt.text, "answer": words, "ended": text.ended, "metadata": prompt.metadata}
        settings = {"model": verb.model, "temperature": how.temperature, "max_think_tokens": how.max_think_tokens}
        records.append({**row, "sources": names_of(pictures), "seed": verb.seed, "settings": settings})
        if out is not None:
            write_records_atomic(out, records)  # after every answer, whatever comes next
        if out is not None:
            print(words or "(said nothing)", flush=True)
        else:
            output.result(words or "(said nothing)", answers=records)
    if out is not None:
        output.result(f"wrote {out}", wrote=str(out), answers=records)
    return 0
