"""A folder of pictures in GenEval's layout: what is drawn into it, and what is found in anybody's (docs/evaluation.md).

``00000/metadata.jsonl`` is the prompt's line, ``00000/samples/0000.png`` a picture, ``00000/thinking/0000.txt`` what
was thought before it. A picture is written last and whole: where it is there, all of it is there.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from unigrpo.files import is_temporary, read_json_object, write_bytes_atomic, write_json_atomic
from unigrpo.ranges import ConfigError, shown
from unigrpo.reports.grids import save_png_atomic
from unigrpo.runs.eval_rounds import write_rounds
from unigrpo.trajectory import Prompt

PLAN, SCORING, RECORDS, RESULT, PAGE = "eval.json", "scoring.json", "records.jsonl", "result.json", "report.html"
METADATA, SAMPLES, THINKING, SOURCES = "metadata.jsonl", "samples", "thinking", "sources"
PICTURE = re.compile(r"(\d+)\.(png|jpg|jpeg|webp)", re.IGNORECASE)
NUMBERED = re.compile(r"\d+")


def folder_of(out: Path, position: int) -> Path:
    """The folder of a prompt."""
    return out / f"{position:05d}"


def picture_of(out: Path, position: int, sample: int) -> Path:
    """The file of a picture that is drawn."""
    return folder_of(out, position) / SAMPLES / f"{sample:04d}.png"


# Writing


def write_prompts(out: Path, prompts: Sequence[Prompt]) -> None:
    """Write every prompt's line, and the pictures that came with it, where they are not there yet."""
    for prompt in prompts:
        path = folder_of(out, prompt.position) / METADATA
        line = json.dumps(line_of(prompt), ensure_ascii=False, default=str) + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != line:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(line, encoding="utf-8")  # cut by a kill, it is written again
        for number, image in enumerate(prompt.images):
            source = path.parent / SOURCES / f"{number:04d}.png"
            if not source.is_file():
                save_png_atomic(_as_image(image), source)


def line_of(prompt: Prompt) -> dict[str, Any]:
    """A prompt as its line says it: metadata as in GenEval's own files, with the words under ``prompt``."""
    return {**prompt.metadata, "prompt": prompt.text}


def write_picture(
    out: Path,
    prompt: Prompt,
    sample: int,
    picture: Tensor,
    thinking: str | None,
    earlier: Sequence[Tensor] = (),
    thoughts: Sequence[str | None] = (),
) -> None:
    """Write a picture uint8 [3, H, W] and before it what was thought; one that is there stays.

    earlier, thoughts: of a sample with several rounds (:func:`eval_rounds.write_rounds`).
    """
    path = picture_of(out, prompt.position, sample)
    if path.is_file():
        return
    if len(thoughts) > 1:
        write_rounds(path.parent.parent, sample, earlier, thoughts)
    if thinking is not None:
        words = path.parent.parent / THINKING / f"{sample:04d}.txt"
        write_bytes_atomic(words, thinking.encode("utf-8", "backslashreplace"))
    save_png_atomic(_as_image(picture), path)


def _as_image(picture: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray(picture.permute(1, 2, 0).contiguous().cpu().numpy())


# Plans


def check_plan(path: Path, plan: Mapping[str, Any], advice: str) -> bool:
    """Write a plan where there is none, and return False; True where the same one is there.

    ConfigError names the first key in which another one differs, and ends with ``advice``.
    """
    if not path.is_file():
        write_json_atomic(path, plan)
        return False
    if (there := different(read_json_object(path), plan)) is not None:
        key, old, new = there
        raise ConfigError(f"{path} was written with {key} {shown(old)}, and it is {shown(new)} now: {advice}")
    return True


def different(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key (with dots) whose values differ, and both; None where all are the same."""
    ours = json.loads(json.dumps(new, default=str))
    theirs = json.loads(json.dumps(old, default=str))
    left, right = dict(leaves(theirs)), dict(leaves(ours))
    for key in dict.fromkeys([*right, *left]):
        if left.get(key) != right.get(key):
            return key, left.get(key), right.get(key)
    return None


def leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, by their keys with dots."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


# Reading


@dataclass(frozen=True)
class Found:
    """A picture of a prompt in a folder, with what was thought before it (None: nothing is there)."""

    prompt: Prompt
    sample: int
    path: Path
    thinking: str | None


@dataclass(frozen=True)
class Contents:
    """What a folder holds of a suite's prompts, in order; ``expected``: pictures that there should be.

    reworded: prompts whose words are not the suite's (another variant); odd: files that are no picture's name.
    """

    pictures: list[Found]
    expected: int
    reworded: int
    odd: list[str]


def contents(folder: Path, prompts: Sequence[Prompt], samples: int | None = None) -> Contents:
    """Look through a folder; ConfigError where it is of other prompts, or nothing of it can be told apart.

    samples: pictures that every prompt should have (None: as many as the prompt with the most).
    """
    there = numbered(folder)
    known = {prompt.position: prompt for prompt in prompts}
    if not there.keys() & known.keys():
        raise ConfigError(f"{folder} has no pictures in GenEval's layout (00000/samples/0000.png): name such a folder")
    found, odd, reworded = list[Found](), list[str](), 0
    for position, prompt in known.items():
        if position not in there:
            continue
        own = _worded(there[position], prompt)
        reworded += own.text != prompt.text
        pictures, strange = _pictures(there[position])
        odd += [str(path.relative_to(folder)) for path in strange]
        found += [Found(own, n, path, _thinking(there[position], path)) for n, path in sorted(pictures.items())]
    if not found:
        raise ConfigError(f"{folder} has no pictures yet: draw some, as 00000/samples/0000.png and so on")
    each = max(Counter(one.prompt.position for one in found).values()) if samples is None else samples
    return Contents(found, each * len(known), reworded, sorted(odd))


def numbered(folder: Path) -> dict[int, Path]:
    """The folders of prompts by their numbers; ConfigError where there is no such folder, or a number twice."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: name one with 00000/samples/0000.png and so on")
    found: dict[int, Path] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.is_dir() or not NUMBERED.fullmatch(entry.name):
            continue
        number = int(entry.name)
        if number in found:
            raise ConfigError(f"{folder} has {found[number].name} and {entry.name}, one prompt twice: remove one")
        found[number] = Path(entry.path)
    return found


def _worded(folder: Path, prompt: Prompt) -> Prompt:
    """The prompt in the words of its folder; ConfigError where that is of another prompt."""
    path = folder / METADATA
    if not path.is_file():
        raise ConfigError(f"{path} is not there: every folder needs its prompt's line, such as " + '{"prompt": "..."}')
    line = read_json_object(path)
    text = line.get("prompt")
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f'{path} has no prompt in words: write its line, such as {{"prompt": "a photo of a bench"}}')
    if text == prompt.text:
        return prompt
    known = json.loads(json.dumps(dict(prompt.metadata), default=str))
    known = {key: value for key, value in known.items() if key != "category"} or known  # official lines have none
    if not known or any(line.get(key) != value for key, value in known.items()):
        raise ConfigError(
            f"{path} is of the prompt {shown(text)}, and the suite has {shown(prompt.text)} at {prompt.position}: name "
            "the suite that was drawn"
        )
    return replace(prompt, text=text)


def _pictures(folder: Path) -> tuple[dict[int, Path], list[Path]]:
    """Pictures by their numbers, and other files; ConfigError where a number is there twice."""
    samples = folder / SAMPLES
    found: dict[int, Path] = {}
    odd: list[Path] = []
    for path in sorted(samples.iterdir()) if samples.is_dir() else ():
        name = PICTURE.fullmatch(path.name)
        if is_temporary(path.name) or path.name.startswith("."):
            continue
        if name is None or not path.is_file():
            odd.append(path)
        elif int(name[1]) in found:
            raise ConfigError(f"{samples} has {found[int(name[1])].name} and {path.name}, one sample twice: remove one")
        else:
            found[int(name[1])] = path
    return found, odd


def _thinking(folder: Path, picture: Path) -> str | None:
    path = folder / THINKING / f"{picture.stem}.txt"
    return path.read_bytes().decode("utf-8", "replace") if path.is_file() else None
