"""The verb ``generate``: think and draw, edit pictures, or answer questions about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unigrpo import cli, resolve
from unigrpo.config import ConfigError
from unigrpo.config.data_names import SUFFIXES
from unigrpo.models.bagel.opening import Opened, UnknownWords
from unigrpo.models.bagel.policy import Bagel
from unigrpo.pictures import read_picture
from unigrpo.policy import Policy
from unigrpo.reports import runlog
from unigrpo.reports.grids import contact_sheet, save_png_atomic
from unigrpo.rollout.engine import Draws, Sampling, rollout
from unigrpo.rollout.episode import single_round
from unigrpo.rollout.outcome import decode_pictures, thinking_of
from unigrpo.trajectory import Prompt
from unigrpo.verbs.folders import must_be_new, usable
from unigrpo.verbs.sampling import Defaults, batch_size, editing, load, own, sampling
from unigrpo.worlds import shapes
from unigrpo.worlds.prompt_files import Row
from unigrpo.worlds.records import names_records
from unigrpo.worlds.shapes import tasks

ALL = 10**9  # prompts of a file


@dataclass(frozen=True)
class Drawn:
    """One picture uint8 [3, H, W] with what led to it; ``correct`` is None where no rules can judge."""

    prompt: Prompt
    sample: int
    thinking: str | None
    picture: Tensor
    correct: bool | None


def generate(verb: cli.Generate) -> int:
    """Draw (or answer) one prompt or a file of them."""
    prompts = asked(verb)
    if verb.num is not None and verb.num < 1:
        raise ConfigError(f"--num {verb.num}: draw at least one picture")
    if verb.understand:
        return answer(verb, prompts)
    out = verb.out or Path("generated" if verb.prompts else "generated.png")
    folder = out.suffix.lower() != ".png"
    if folder and out.suffix:
        raise ConfigError(f"--out {out}: pictures are written as .png, or into a folder")
    if verb.prompts is not None and not folder:
        raise ConfigError(f"--out {out}: the pictures of a file of prompts go into a folder; name one without .png")
    if folder:
        must_be_new(out)
    policy = load(verb)
    prompts = [in_the_world(policy, prompt) for prompt in prompts]
    number = verb.num or (4 if policy.origin is None else 1)
    usable(out if folder else out.parent)
    parts = (draw(policy, part, verb, number) for part in together(policy, prompts, verb))
    if folder:
        return write_folder(out, parts, verb)
    return write_png(out, [one for part in parts for one in part], bare=policy.origin is not None)


def asked(verb: cli.Generate) -> list[Prompt]:
    """The prompts that the options name, with their pictures."""
    if (verb.prompt is None) == (verb.prompts is None):
        raise ConfigError("say what to draw: give a PROMPT, or a file of them with --prompts (one of the two)")
    images = tuple(read_picture(path) for path in verb.image)
    if verb.prompt is not None:
        return [Prompt(0, verb.prompt, images=images)]
    assert verb.prompts is not None
    name = str(verb.prompts)
    if not names_records(name):  # the lists of worlds have no end
        raise ConfigError(
            f"--prompts {name}: prompts to draw are read from a file ({', '.join(SUFFIXES)}) or a data set"
        )
    resolve.check_drawn(name, verb.model, lambda model, row: readable(model, row, len(images)))
    found = resolve.suite(name).prompts(ALL)
    if images and any(prompt.images for prompt in found):
        raise ConfigError(
            f"--image with {verb.prompts}, whose prompts have pictures of their own: leave one of them out"
        )
    return [replace(prompt, images=images) for prompt in found] if images else found


def readable(model: Opened, row: Row, images: int) -> None:
    """ValueError for a prompt that the model cannot read; of the shapes world other spellings are understood too."""
    try:
        model.read(row.text, images or len(row.pictures))
    except UnknownWords:
        if model.public or images or row.pictures:
            raise
        shapes.parse_prompt(row.text)  # explains what can be asked for


def in_the_world(policy: Bagel, prompt: Prompt) -> Prompt:
    """The prompt as the model reads it; of the shapes world also with the requirements to judge it by."""
    if policy.origin is not None or prompt.images:
        return prompt
    plain = shapes.normalise_prompt(prompt.text)
    try:
        policy.encode_text(prompt.text)
    except ValueError:
        metadata = shapes.parse_prompt(prompt.text)  # explains what can be asked for
        return replace(prompt, text=plain, metadata=dict(metadata))
    if policy.config.image_size != (shapes.IMAGE_SIZE, shapes.IMAGE_SIZE):
        return prompt
    return replace(prompt, text=plain, metadata=dict(shapes.parse_prompt(prompt.text)))


def together(policy: Bagel, prompts: Sequence[Prompt], verb: cli.Drawing) -> Iterator[list[Prompt]]:
    """Prompts that are drawn in one call: as many as fit, of one picture size, edits or not, in order."""
    most, part, kind = batch_size(policy, verb), [], None
    for prompt in prompts:
        here = drawn_size(policy, prompt, verb), bool(prompt.images)  # edits are guided otherwise
        if part and (here != kind or len(part) >= most):
            yield part
            part = []
        part, kind = [*part, prompt], here
    if part:
        yield part


def drawn_size(policy: Bagel, prompt: Prompt, verb: cli.Drawing) -> tuple[int, int]:
    """(height, width) of a prompt's picture: --size, else that of the last picture it shows, else the model's."""
    if verb.size is None and prompt.images:
        return policy.edit_size(prompt.images[-1])
    return policy.spec.image_size


def draw(policy: Bagel, prompts: Sequence[Prompt], verb: cli.Generate, number: int) -> list[Drawn]:
    """Draw every prompt ``number`` times, at most a batch at once."""
    sized = policy.at_size(drawn_size(policy, prompts[0], verb))
    defaults: Defaults = editing(policy) if prompts[0].images else own(policy)
    how, most = sampling(policy, verb, defaults), batch_size(policy, verb)
    at_once = max(1, most // len(prompts))
    drawn: list[Drawn] = []
    for first in range(0, number, at_once):
        drawn += draw_part(sized, prompts, how, verb, first, min(at_once, number - first))
    return sorted(drawn, key=lambda one: one.prompt.position)  # stable: samples stay in order


def draw_part(
    policy: Policy, prompts: Sequence[Prompt], how: Sampling, verb: cli.Generate, first: int, count: int
) -> list[Drawn]:
    """One call: samples first ... first + count - 1 of some prompts, judged where rules can."""
    episode, draws = single_round(think=not verb.no_think), Draws(verb.seed, 0)
    made = rollout(policy, episode, prompts, how, group_size=count, draws=draws, first_sample=first)
    pictures = decode_pictures(policy, made)
    thinking = [thinking_of(policy, trajectory) for trajectory in made]
    drawn = []
    for trajectory, words, picture in zip(made, thinking, pictures, strict=True):
        correct = None
        if "objects" in trajectory.prompt.metadata and picture.shape[1:] == (shapes.IMAGE_SIZE, shapes.IMAGE_SIZE):
            (record,) = tasks.judge_pictures(picture[None].float() / 255.0, [trajectory.prompt], [words])
            correct = record["correct"]
        drawn.append(Drawn(trajectory.prompt, trajectory.sample, words, picture, correct))
        said = "(did not think)" if words is None else words or "(thought nothing)"
        print({True: "right  ", False: "wrong  ", None: ""}[correct] + said, flush=True)
    return drawn


def write_png(out: Path, drawn: Sequence[Drawn], *, bare: bool) -> int:
    """A single picture as it is, if it is to be ``bare``; else a grid, with the thinking under each."""
    if bare and len(drawn) == 1:
        save_png_atomic(as_png(drawn[0].picture), out)
    else:
        sheet = contact_sheet(
            torch.stack([one.picture for one in drawn]).permute(0, 2, 3, 1).numpy(),
            [one.prompt.text for one in drawn],
            [one.correct for one in drawn],
            columns=min(4, len(drawn)),
            thinking=[one.thinking or "" for one in drawn],
        )
        save_png_atomic(sheet, out)
    print(f"wrote {out}")
    return 0


def write_folder(out: Path, parts: Iterable[Sequence[Drawn]], verb: cli.Generate) -> int:
    """Every picture by itself as soon as it is drawn, and results.jsonl with what led to it."""
    records: list[dict[str, Any]] = []
    for part in parts:
        for one in part:
            name = f"{one.prompt.position:05d}-{one.sample}.png"
            save_png_atomic(as_png(one.picture), out / name)
            record = {"picture": name, "prompt": one.prompt.text, "thinking": one.thinking, "sample": one.sample}
            records.append({**record, "seed": verb.seed} | ({} if one.correct is None else {"correct": one.correct}))
        runlog.write_records_atomic(out / "results.jsonl", records)  # whole after every part, whatever comes next
    print(f"wrote {len(records)} pictures and results.jsonl to {out}")
    return 0


def as_png(picture: Tensor):
    """A picture uint8 [3, H, W] as Pillow's image."""
    from PIL import Image

    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())


# Answers


@torch.no_grad()
def answer(verb: cli.Generate, prompts: Sequence[Prompt]) -> int:
    """Answer questions about pictures in words (spec/bagel.md 6: pictures are only seen)."""
    if verb.out is not None and verb.out.suffix.lower() != ".jsonl":
        raise ConfigError(f"--out {verb.out}: answers are written as .jsonl")
    if verb.out is not None:
        usable(verb.out.parent)
    policy = load(verb)
    how, records = sampling(policy, verb, own(policy)), []
    for prompt in prompts:
        context = policy.prefill([policy.question_segments(prompt.text, prompt.images, think=not verb.no_think)])
        uniforms = torch.rand(
            how.max_think_tokens, generator=Draws(verb.seed, 0).generator(prompt.position, 0, "think")
        )
        (text,), _ = policy.think(context, uniforms=uniforms[None], temperature=how.temperature)
        words = policy.decode_text(text.ids)
        print(words or "(said nothing)", flush=True)
        records.append({"prompt": prompt.text, "answer": words, "ended": text.ended})
        if verb.out is not None:
            runlog.write_records_atomic(verb.out, records)  # after every answer, whatever comes next
    if verb.out is not None:
        print(f"wrote {verb.out}")
    return 0
