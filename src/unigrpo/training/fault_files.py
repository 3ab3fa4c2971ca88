"""What a run keeps of trajectories from which a number came that is not finite: ``faults/`` in its folder."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from unigrpo.files import write_bytes_atomic, write_json_atomic
from unigrpo.policy import Policy
from unigrpo.reports.grids import png_bytes
from unigrpo.rollout.sample import thinking_of
from unigrpo.suspects import Suspects
from unigrpo.trajectory import Image, Text, Trajectory

FOLDER = "faults"
EVENT = "event.json"
"""Written last: a folder of an event without it is not whole."""
MOST_EVENTS, MOST_TRAJECTORIES = 20, 16
"""Of a run, and of one event: what is beyond is counted and not kept."""


class FaultFiles:
    """Writes the events of one rank; never a reason for a run to end: what cannot be written is said.

    ``iteration`` (from 0) is set by whoever trains, ``say`` by whoever shows it to a person.
    """

    def __init__(self, run_dir: Path, policy: Policy, rank: int = 0) -> None:
        self.folder, self.policy, self.rank = run_dir / FOLDER, policy, rank
        self.iteration = 0
        self.say: Callable[[str], None] = print
        self.told = False

    def keep(self, found: Suspects) -> None:
        """Write one event, if there are not ``MOST_EVENTS`` yet; say where, the first time."""
        place: Path | None = None
        try:
            if len(list(self.folder.glob(f"*/{EVENT}"))) >= MOST_EVENTS:
                return
            place = self._place(found.kind)
            self._write(place, found)
        # a full disk; pictures that cannot be decoded (again)
        except (OSError, RuntimeError, ValueError) as error:
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # if nothing else is in it
            self._tell(f"what a number that is not finite came from could not be saved in {self.folder}: {error}")
            return
        count = len(found.trajectories)
        what = "the trajectory" if count == 1 else f"{min(count, MOST_TRAJECTORIES)} of {count} trajectories"
        kept = f"{what} that it came from: {place} (so for the first {MOST_EVENTS} such events of a run)"
        self._tell(f"a number of the {found.kind} is not finite; {kept}")

    def _tell(self, text: str) -> None:
        if not self.told:
            self.told = True
            self.say(f"warning: {text}")

    def _place(self, kind: str) -> Path:
        for number in itertools.count(1):
            place = self.folder / f"iteration-{self.iteration + 1:06d}-rank-{self.rank}-{number}-{kind}"
            with contextlib.suppress(FileExistsError):
                place.mkdir(parents=True)
                return place
        raise AssertionError("unreachable")

    def _write(self, place: Path, found: Suspects) -> None:
        some = list(found.trajectories[:MOST_TRAJECTORIES])
        pictures = self._decoded(some) if found.pictures is None else list(found.pictures[: len(some)])
        names = [f"{t.prompt.position}-{t.sample}" for t in some]
        tensors = {f"{name}/{key}": value for name, t in zip(names, some, strict=True) for key, value in numbers(t)}
        write_bytes_atomic(place / "tensors.safetensors", save(tensors))
        records = []
        for name, t, picture in zip(names, some, pictures, strict=True):
            if picture is not None:
                write_bytes_atomic(place / f"{name}.png", _png(picture))
            shown = None if picture is None else f"{name}.png"
            records.append({**self._record(t), "picture": shown, "tensors": f"{name}/"})
        event = {
            "iteration": self.iteration + 1,
            "rank": self.rank,
            "kind": found.kind,
            "why": found.why,
            "trajectories": len(found.trajectories),
            "kept": records,
        }
        write_json_atomic(place / EVENT, event)

    def _record(self, t: Trajectory) -> dict[str, Any]:
        """A trajectory in words; numbers that are none are written as texts, for JSON has no word for them."""
        texts = t.sampled_texts
        return {
            "position": t.prompt.position,
            "sample": t.sample,
            "prompt": t.prompt.text,
            "thinking": thinking_of(self.policy, t),
            "reward": _shown(t.reward),
            "values": {name: _shown(value) for name, value in t.values.items()},
            "verdict": {name: _shown(value) for name, value in t.verdict.items()},
            "failure": t.failure,
            "advantage": _shown(t.advantage),
            "advantage_thinking": _shown(texts[0].advantage if texts else None),
        }

    @torch.no_grad()
    def _decoded(self, some: Sequence[Trajectory]) -> list[Tensor | None]:
        """The last picture of each, uint8 [3, H, W]; None where it is not here, or holds what is no number."""
        found: list[Tensor | None] = []
        for t in some:
            pictures = t.drawings or t.images
            latents = pictures[-1].latents if pictures else None
            if latents is None or not latents.numel() or not bool(latents.isfinite().all()):
                found.append(None)
                continue
            pixels = self.policy.decode_image(latents[None])[0]
            whole = bool(pixels.isfinite().all())
            found.append((pixels * 255.0).round().clamp(0, 255).to(torch.uint8).cpu() if whole else None)
        return found


def numbers(t: Trajectory) -> list[tuple[str, Tensor]]:
    """The tensors of a trajectory that are kept, by segment: ids and log-probs of texts, latents of pictures."""
    found: list[tuple[str, Tensor | None]] = []
    for place, segment in enumerate(t.segments):
        if isinstance(segment, Text):
            found += [(f"{place}.ids", segment.ids), (f"{place}.log_probs", segment.log_probs)]
        elif isinstance(segment, Image):
            path = segment.path
            found += [(f"{place}.latents", segment.latents)]
            found += [] if path is None else [(f"{place}.steps_{key}", vars(path)[key]) for key in ("log_prob", "std")]
    return [(key, value.detach().cpu().contiguous().clone()) for key, value in found if value is not None]


def _png(picture: Tensor) -> bytes:
    from PIL import Image as Images

    return png_bytes(Images.fromarray(picture.permute(1, 2, 0).numpy()))


def _shown(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return value if abs(value) < float("inf") else str(value)
