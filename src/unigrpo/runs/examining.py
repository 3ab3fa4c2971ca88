"""Examine a folder of pictures, and write what came of it: records, figures and one page; what is answered stays so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from unigrpo import doing
from unigrpo.evaluation.results import figures
from unigrpo.evaluation.suites import UNSEEN, Record, Suite, category_of, checked, no_answer
from unigrpo.files import json_line, read_json_object, write_json_atomic, write_records_atomic
from unigrpo.pictures import read_picture
from unigrpo.plurals import counted
from unigrpo.reports.evaluation_page import write_page
from unigrpo.runs import eval_folder, eval_rounds
from unigrpo.runs.eval_folder import Contents, Found
from unigrpo.runs.evaluating import versions
from unigrpo.trajectory import Prompt

TOGETHER, PIXELS = 32, 2**25
"""Pictures that are examined together at most, and pixels of all of them."""
OTHER_EXAMINER = "its answers stay as they are; name another --out for these"


def examine(folder: Path, out: Path, suite: Suite, samples: int | None = None) -> tuple[list[Record], Contents]:
    """Examine the pictures of a suite in ``folder``, those without an answer yet; records go to ``out``.

    ConfigError where the answers that are there are another examiner's.
    """
    held = eval_folder.contents(folder, suite.prompts, samples)
    about = {"suite": suite.name, "version": suite.version, "examiner": dict(suite.examiner.about)}
    out.mkdir(parents=True, exist_ok=True)
    eval_folder.check_plan(out / eval_folder.SCORING, about, OTHER_EXAMINER)
    path = out / eval_folder.RECORDS
    hashes = {_key(found): _hash(found.path) for found in held.pictures}
    known = {k: r for k, r in _answered(path).items() if hashes.get(k) == r["sha256"]}
    write_records_atomic(path, known.values())  # a line that a kill has cut is gone
    left = [found for found in held.pictures if _key(found) not in known]
    done = len(held.pictures) - len(left)
    with path.open("a", encoding="utf-8") as file:
        for some in _together(left):
            with doing.within(f"examining, {done:,} of {counted(len(held.pictures), 'picture', ',')}"):
                lines = [json_line(_line(f, r, hashes[_key(f)], folder)) for f, r in _examined(suite, some)]
            file.write("".join(lines))
            file.flush()
            known |= {(r["position"], r["sample"]): r for r in map(json.loads, lines)}
            done += len(lines)
    records = [known[_key(found)] for found in held.pictures]
    write_records_atomic(path, records)
    return records, held


def _key(found: Found) -> tuple[int, int]:
    return found.prompt.position, found.sample


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _answered(path: Path) -> dict[tuple[int, int], Record]:
    """The records of a file that have an answer; those without are asked again."""
    found: dict[tuple[int, int], Record] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:  # cut by a kill
            continue
        if record["failed"] is None:
            found[record["position"], record["sample"]] = record
    return found


def _together(left: Sequence[Found]) -> Iterator[list[tuple[Found, Tensor | None, str]]]:
    """Pictures that are examined together, read (or None, and why it cannot be)."""
    some: list[tuple[Found, Tensor | None, str]] = []
    pixels = 0
    for found in left:
        picture, why = _read(found.path)
        size = 0 if picture is None else picture.shape[1] * picture.shape[2]
        if some and (len(some) == TOGETHER or pixels + size > PIXELS):
            yield some
            some, pixels = [], 0
        some.append((found, picture, why))
        pixels += size
    if some:
        yield some


def _read(path: Path) -> tuple[Tensor | None, str]:
    try:
        return read_picture(path), ""
    except ValueError as error:
        return None, str(error).replace(str(path), path.name)


def _examined(suite: Suite, some: Sequence[tuple[Found, Tensor | None, str]]) -> Iterator[tuple[Found, Record]]:
    """The record of each: the examiner's, or that its file cannot be read; of earlier rounds too, where there are."""
    good = [(found, picture) for found, picture, _ in some if picture is not None]
    records = iter(_answers(suite, [(found.prompt, found.thinking, picture) for found, picture in good]))
    rounds = [eval_rounds.rounds_of(found.path.parent.parent, found.sample) for found, _, _ in some]
    asked = [(found.prompt, one) for (found, _, _), (earlier, _) in zip(some, rounds, strict=True) for one in earlier]
    read = [(prompt, one.thinking, eval_rounds.read(one)) for prompt, one in asked]
    seen = iter(_answers(suite, [(prompt, words, p) for prompt, words, p in read if p is not None]))
    verdicts = iter([None if picture is None else next(seen) for _, _, picture in read])
    for (found, picture, why), (earlier, ended) in zip(some, rounds, strict=True):
        record = no_answer(category_of(found.prompt), why, detail=UNSEEN) if picture is None else next(records)
        said = [next(verdicts) for _ in earlier]
        name = "/".join(found.path.parts[-3:])
        whole = {"picture": name, "thinking": found.thinking, **record, "category": category_of(found.prompt)}
        yield found, {**record, **eval_rounds.told(earlier, said, ended, whole)}


def _answers(suite: Suite, asked: Sequence[tuple[Prompt, str | None, Tensor]]) -> list[Record]:
    """What the examiner says of pictures."""
    if not asked:
        return []
    prompts, thinking, pictures = zip(*asked, strict=True)
    return checked(suite.examiner(pictures, prompts, thinking), len(asked), f"the examiner of {suite.name}")


def _line(found: Found, record: Record, sha256: str, folder: Path) -> dict[str, Any]:
    """A record with whose it is; its category is its prompt's, whoever answered."""
    who = {"position": found.prompt.position, "sample": found.sample, "prompt": found.prompt.text}
    who |= {"thinking": found.thinking, "picture": _name(found.path, folder), "sha256": sha256}
    return {**who, **record, "category": category_of(found.prompt)}


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def result_of(
    folder: Path, suite: Suite, records: Sequence[Record], held: Contents, seconds: Mapping[str, float], model: str
) -> dict[str, Any]:
    """The result of an evaluation: figures, and all that they depend on; only ``times`` differ from run to run."""
    plan = read_json_object(folder / eval_folder.PLAN) if (folder / eval_folder.PLAN).is_file() else {}
    about = {"name": suite.name, "version": suite.version, "prompts": len(suite.prompts), "variant": suite.variant}
    if held.reworded:
        about["variant"] = f"{held.reworded} of {counted(len(suite.prompts), 'prompt')} in other words than the suite's"
    summed = figures(
        records, headline=suite.headline, average=suite.average, expected=held.expected, further=suite.further
    )
    return {
        "format": 1,
        "model": plan.get("model") or {"name": model, "sha256": None},
        "suite": about | {"note": suite.note, "paper": suite.paper},
        "settings": plan.get("settings"),
        "examiner": dict(suite.examiner.about),
        **summed,
        "odd_files": held.odd,
        "versions": {"drawn": plan.get("versions"), "examined": versions()},
        "times": {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": dict(seconds)},
    }


def write_result(folder: Path, out: Path, result: Mapping[str, Any], records: Sequence[Record]) -> None:
    """Write result.json and the page."""
    write_json_atomic(out / eval_folder.RESULT, result)
    write_page(out / eval_folder.PAGE, result, records, folder)
