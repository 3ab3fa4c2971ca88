"""The folder of pictures that ``generate`` writes: POSITION-SAMPLE.png, and results.jsonl with what led to each.

results.jsonl names a picture before it is written, so it names all that was written there, whenever the power goes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from unigrpo.files import json_line, write_records_atomic
from unigrpo.ranges import ConfigError
from unigrpo.reports import runlog
from unigrpo.reports.grids import numbered, save_png_atomic
from unigrpo.runs.places import no_source, try_folder
from unigrpo.trajectory import Prompt

RESULTS = "results.jsonl"
NAME = re.compile(r"\d{5,}-\d+\.png")
ONCE = ("prompt", "metadata", "sources", "seed", "settings")
"""What a record says of its picture before that is drawn: it must be the same to go on."""


@dataclass(frozen=True)
class Drawn:
    """One picture uint8 [3, H, W] with what led to it; ``correct`` is None where no rules can judge.

    earlier: of several rounds, the pictures that were looked at before it, with the thinking of each; ended: the
    thinking that ended the sample, if one did.
    """

    prompt: Prompt
    sample: int
    thinking: str | None
    picture: Tensor
    correct: bool | None
    earlier: Sequence[tuple[str | None, Tensor]] = ()
    ended: str | None = None

    @property
    def whole_thinking(self) -> str:
        """What was thought in all rounds, numbered where there are several."""
        thoughts = [*(words for words, _ in self.earlier), self.thinking, *([] if self.ended is None else [self.ended])]
        return numbered(thoughts)


def picture_name(position: int, sample: int) -> str:
    """The file of a picture in the folder."""
    return f"{position:05d}-{sample}.png"


def round_name(name: str, turn: int) -> str:
    """The file of a picture that was looked at, beside the one of its sample."""
    return f"{name.removesuffix('.png')}-round-{turn}.png"


@dataclass
class PictureFolder:
    """A folder to draw into: new, to go on with (``there`` is kept), or with old pictures to ``replace``.

    ``there`` and ``records``: what results.jsonl says and will say, by the names of the pictures. ``plan``: what every
    picture's record will say before it is drawn.
    """

    out: Path
    there: dict[str, dict[str, Any]] = field(default_factory=dict)
    replace: bool = False
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    plan: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, out: Path, *, go_on: bool, overwrite: bool) -> PictureFolder:
        """Look at a folder before the model is loaded; ConfigError where nothing can, or may, be written."""
        if go_on and overwrite:
            raise ConfigError("--continue keeps what is there and --overwrite replaces it: choose one of them")
        try_folder(out)
        if not out.is_dir() or not any(out.iterdir()):
            return cls(out)
        if not (go_on or overwrite):
            raise ConfigError(
                f"--out {out} is there and not empty: add --continue to draw what is missing, or --overwrite to "
                "replace the pictures that generate wrote there, or name another folder"
            )
        written = {str(record.get("picture")): record for record in runlog.read_records(out / RESULTS)}
        return cls(out, {name: record for name, record in written.items() if NAME.fullmatch(name)}, overwrite)

    def prepare(self, plan: Mapping[str, Mapping[str, Any]], files: Iterable[Path]) -> None:
        """Take the plan; ConfigError if it would harm a file that is read or not ours, or does not go on with ours."""
        self.plan = {name: json.loads(json_line(record)) for name, record in plan.items()}  # as read back
        ours = {RESULTS, *self.there} if self.there else set()
        for name in (RESULTS, *plan):
            if name not in ours and os.path.lexists(self.out / name):
                raise ConfigError(
                    f"{self.out / name} is there, and no {RESULTS} says that generate wrote it: move it, or name "
                    "another --out"
                )
        for name in plan:
            if name not in ours and (
                strange := next(self.out.glob(round_name(name, 1).replace("-1.png", "-*.png")), None)
            ):
                raise ConfigError(f"{strange} is there, and no {RESULTS} says that generate wrote it: move it")
        no_source([self.out / name for name in (RESULTS, *plan, *self.there)], files)
        if not self.replace:
            self._check_same()
            self.records = {name: record for name, record in self.there.items() if (self.out / name).is_file()}

    def _check_same(self) -> None:
        for name, record in self.there.items():
            if name not in self.plan:
                raise ConfigError(
                    f"--continue: {self.out / name} is there, and this command would not draw it: give the command "
                    "that wrote this folder, or another --out"
                )
            for key in ONCE:
                if record.get(key) != (now := self.plan[name][key]):
                    raise ConfigError(
                        f"--continue: {self.out / name} was drawn with {_difference(key, record.get(key), now)}: give "
                        "the command that wrote this folder, or another --out"
                    )

    def has(self, names: Iterable[str]) -> bool:
        """Whether all these pictures are there already, and stay."""
        return all(name in self.records for name in names)

    def write(self, drawn: Sequence[Drawn]) -> None:
        """Write some pictures and what led to them."""
        if self.replace:
            for name in self.there:
                for path in (self.out / name, *self.out.glob(f"{name.removesuffix('.png')}-round-*.png")):
                    path.unlink(missing_ok=True)
            self.replace = False
        new = [one for one in drawn if not self.has([picture_name(one.prompt.position, one.sample)])]
        for one in new:
            name = picture_name(one.prompt.position, one.sample)
            record = {"picture": name, **self.plan[name], "thinking": one.thinking, "sample": one.sample}
            self.records[name] = record | ({} if one.correct is None else {"correct": one.correct}) | rounds_of(one)
        in_order = [self.records[name] for name in self.plan if name in self.records]
        write_records_atomic(self.out / RESULTS, in_order)
        for one in new:
            path = self.out / picture_name(one.prompt.position, one.sample)
            save_rounds(one, path)
            save_png_atomic(as_png(one.picture), path)


def rounds_of(drawn: Drawn) -> dict[str, Any]:
    """What a record says of several rounds: the thinking and the file of each; the last may say stop."""
    if not drawn.earlier and drawn.ended is None:
        return {}
    name = picture_name(drawn.prompt.position, drawn.sample)
    rows: list[dict[str, Any]] = [
        {"thinking": words, "picture": round_name(name, turn)} for turn, (words, _) in enumerate(drawn.earlier, start=1)
    ]
    rows.append({"thinking": drawn.thinking, "picture": name})
    return {"rounds": [*rows, *([] if drawn.ended is None else [{"thinking": drawn.ended}])]}


def save_rounds(drawn: Drawn, path: Path) -> None:
    """Write the pictures of earlier rounds beside the one of its sample."""
    for turn, (_, picture) in enumerate(drawn.earlier, start=1):
        save_png_atomic(as_png(picture), path.with_name(round_name(path.name, turn)))


def _difference(key: str, old: Any, new: Any) -> str:
    """What is not the same, in words: one entry of a mapping, or the whole value."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        key = next(name for name in {**new, **old} if old.get(name) != new.get(name))
        old, new = old.get(key), new.get(key)
    return f"{key} {old!r}, not {new!r}"


def as_png(picture: Tensor):
    """A picture uint8 [3, H, W] as Pillow's image."""
    from PIL import Image

    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
