"""What a reward service and its client say to each other: JSON with pictures as base64 PNG (docs/rewards-serve.md).

PNG keeps every byte of a picture, and JSON every bit of a float, so a reward sees and gives the same numbers as in
process. Nothing that comes from the other side is believed before it is checked.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unigrpo.plurals import counted
from unigrpo.ranges import shown
from unigrpo.rewards.png import as_bytes, as_floats, as_png
from unigrpo.rewards.protocol import SOURCES, RewardInput, RewardOutput

FIELDS = ("reward", "images", "prompts", "metadata", "thinking", "sources")
HEADER = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
RGB8 = b"\x08\x02"  # bits of a channel, and the colour type


class Refused(Exception):
    """A request that cannot be answered: the status and one sentence for whoever sent it."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, dict(headers or {})


class WrongAnswer(ValueError):
    """A service answered something that is no answer; the message says what."""


class Unsendable(ValueError):
    """A picture, or what is known of it, has no place in a request; the message says why."""


@dataclass(frozen=True)
class Limits:
    """What one request may hold: pictures, pixels of all of them together (source pictures too), and MB of its body."""

    max_pictures: int
    max_pixels: int
    max_body_mb: int

    @property
    def body(self) -> int:
        """Bytes of a body."""
        return self.max_body_mb * 1_000_000


# The request, at the client


def check(image: Tensor) -> None:
    """Unsendable where a tensor is no picture float [3, H, W] that a PNG can hold."""
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise Unsendable(f"a picture has the shape {list(image.shape)}, not [3, H, W]")
    if not bool(torch.isfinite(image).all()):
        raise Unsendable("a picture holds NaN or infinity, which no PNG can hold")


def picture(image: Tensor) -> str:
    """A picture float [3, H, W] in [0, 1] as base64 of a PNG."""
    return base64.b64encode(as_png(as_bytes(image.float()[None])[0])).decode()


def about(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
    """Metadata of a prompt as they can be sent, and its source pictures; Unsendable names what cannot."""
    row, sources = dict(metadata), []
    given = row.get(SOURCES)
    if isinstance(given, list | tuple) and given and all(isinstance(source, Tensor) for source in given):
        sources = list(row.pop(SOURCES))
    for source in sources:
        check(source)
    for key, value in row.items():
        try:
            same = isinstance(key, str) and json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError, RecursionError):
            same = False
        if not same:
            raise Unsendable(
                f"its metadata hold {shown(key)}: {shown(value)}, which JSON would change: make it of texts, finite "
                "numbers, lists and mappings by text"
            )
    return row, sources


def request(given: RewardInput, reward: str) -> bytes:
    """The body of a request for the rewards of some pictures; ``reward``: the name that must be served."""
    rows = [about(row) for row in given.metadata]
    body: dict[str, Any] = {
        "reward": reward,
        "images": [picture(image) for image in given.images],
        "prompts": list(given.prompts),
        "metadata": [row for row, _ in rows],
        "thinking": list(given.thinking),
    }
    if any(sources for _, sources in rows):
        body["sources"] = [[picture(source) for source in sources] for _, sources in rows]
    return json.dumps(body, allow_nan=False).encode()


# The request, at the service


def read_request(body: bytes, served: str, limits: Limits) -> RewardInput:
    """What a body asks for; Refused says what is wrong with it."""
    fields = _fields(body)
    if (wanted := fields.get("reward")) is not None and wanted != served:
        raise Refused(404, f"this service has the reward {served!r}, not {shown(wanted)}")
    images = _list(fields, "images")
    count = len(images)
    if not 0 < count <= limits.max_pictures:
        why = f"images has {counted(count, 'picture')}: send 1 to {limits.max_pictures} in one request"
        raise Refused(413 if count else 400, why)
    prompts, metadata, thinking, sources = (
        _list(fields, key, count, fill)
        for key, fill in (("prompts", _MISSING), ("metadata", {}), ("thinking", None), ("sources", []))
    )
    _check(prompts, "prompts", _is_text, "a text")
    _check(thinking, "thinking", lambda text: text is None or _is_text(text), "a text or null")
    _check(metadata, "metadata", lambda row: isinstance(row, dict), "an object")
    _check(sources, "sources", lambda row: isinstance(row, list), "a list of pictures")
    room = _Room(limits.max_pixels)
    read = [room.read(text, f"images[{i}]") for i, text in enumerate(images)]
    if len(sizes := {tuple(image.shape[1:]) for image in read}) > 1:
        raise Refused(400, f"images have different sizes ({_sizes(sizes)}): send those of one size in one request")
    shown_with = [[room.read(text, f"sources[{i}][{k}]") for k, text in enumerate(s)] for i, s in enumerate(sources)]
    rows = [{**row, SOURCES: own} if own else row for row, own in zip(metadata, shown_with, strict=True)]
    return RewardInput(torch.stack(read), prompts, rows, thinking)


_MISSING = object()


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise Refused(400, f"the body is no JSON: {why[:200]}") from None
    if not isinstance(fields, dict):
        raise Refused(400, f"the body must be a JSON object with images and prompts, and is {shown(fields)}")
    if unknown := [key for key in fields if key not in FIELDS]:
        raise Refused(400, f"the body has {shown(unknown[0])}, which is none of {', '.join(FIELDS)}")
    return fields


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number in JSON")


def _list(fields: Mapping[str, Any], key: str, count: int | None = None, fill: Any = _MISSING) -> list[Any]:
    """The list under a key, with one entry a picture; ``fill`` for each where there is no list."""
    if fields.get(key) is None and fill is not _MISSING and count is not None:
        return [fill] * count
    if key not in fields:
        raise Refused(400, f"the body has no {key}: send a list with one entry a picture")
    if not isinstance(found := fields[key], list):
        raise Refused(400, f"{key} must be a list with one entry a picture, and is {shown(found)}")
    if count is not None and len(found) != count:
        raise Refused(400, f"{key} has {len(found)} entries for {counted(count, 'picture')}")
    return found


def _check(values: Sequence[Any], key: str, fine: Any, what: str) -> None:
    for index, value in enumerate(values):
        if not fine(value):
            raise Refused(400, f"{key}[{index}] must be {what}, and is {shown(value)}")


def _is_text(value: Any) -> bool:
    """Whether a value is a text of whole characters (JSON can hold halves)."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _sizes(sizes: set[tuple[int, ...]]) -> str:
    return ", ".join(f"{width} x {height}" for height, width in sorted(sizes)[:3])


class _Room:
    """Reads pictures until the pixels of a request are used up; a size is looked at before anything is unpacked."""

    def __init__(self, pixels: int) -> None:
        self.left = self.all = pixels

    def read(self, text: Any, where: str) -> Tensor:
        """A base64 PNG as float32 [3, H, W]; Refused names the place."""
        if not isinstance(text, str):
            raise Refused(400, f"{where} must be a PNG as base64, and is {shown(text)}")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise Refused(400, f"{where} is no base64: {shown(text)}") from None
        if not data.startswith(HEADER):
            raise Refused(400, f"{where} is no PNG")
        if data[24:26] != RGB8:
            raise Refused(400, f"{where} is a PNG of another kind than 8-bit RGB: convert it")
        self._take(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"), where)
        return as_floats(_unpacked(data, where))

    def _take(self, width: int, height: int, where: str) -> None:
        if not width or not height:
            raise Refused(400, f"{where} has {width} x {height} pixels")
        self.left -= width * height
        if self.left < 0:
            raise Refused(
                413, f"{where} with its {width} x {height} pixels makes a request of more than {self.all}: send fewer"
            )


def _unpacked(data: bytes, where: str) -> np.ndarray:
    """The pixels uint8 [H, W, 3] of a PNG whose header was checked."""
    size = (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as file:
            if file.size != size or file.mode != "RGB":  # a second header
                raise Refused(400, f"{where} is a broken PNG: it has two sizes")
            return np.array(file)
    except Refused:
        raise
    except Exception as error:  # broken files make the reader raise all kinds
        raise Refused(400, f"{where} is a broken PNG ({str(error)[:100]})") from None


# The answer


def answer(output: RewardOutput) -> bytes:
    """What a reward said; pictures that it could not judge have null, and an error. No values: only named ones."""
    said = {
        "values": [_or_null(value) for value in output.values] or None,
        "parts": {name: [_or_null(value) for value in part] for name, part in output.parts.items()},
        "errors": {str(index): message for index, message in output.errors.items()},
    }
    return json.dumps(said, allow_nan=False).encode()


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read_answer(body: bytes, count: int) -> RewardOutput:
    """The answer about ``count`` pictures; without values, it has only named ones. WrongAnswer where it is none."""
    try:
        said = json.loads(body.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise WrongAnswer(f"it answered no JSON: {body[:60]!r}") from None
    if not isinstance(said, dict) or not {"values", "parts", "errors"} <= set(said):
        raise WrongAnswer(f"it answered {shown(said)}, not an object with values, parts and errors")
    errors, parts = said["errors"], said["parts"]
    places = {str(index) for index in range(count)}
    if not isinstance(errors, dict) or not set(errors) <= places or not all(map(_is_message, errors.values())):
        many = counted(count, "picture")
        raise WrongAnswer(f"it answered the errors {shown(errors)}, which are no messages of {many}")
    if not isinstance(parts, dict):
        raise WrongAnswer(f"it answered the parts {shown(parts)}, which are no object")
    failed = {int(index): message for index, message in errors.items()}
    numbers = {name: _numbers(part, f"the part {name!r}", count, failed) for name, part in parts.items()}
    named = said["values"] is None and numbers
    return RewardOutput([] if named else _numbers(said["values"], "values", count, failed), numbers, failed)


def _is_message(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _numbers(given: Any, what: str, count: int, failed: Mapping[int, str]) -> list[float]:
    """One finite number for each picture; NaN for those that failed."""
    if not isinstance(given, list) or len(given) != count:
        raise WrongAnswer(f"it answered for {what} {shown(given)}, and not {count} numbers")
    found = []
    for index, value in enumerate(given):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number or value is None) or (value is None and index not in failed):
            raise WrongAnswer(f"it answered for {what} of picture {index} {shown(value)}, and no error")
        found.append(math.nan if value is None else _finite(value, what, index))
    return found


def _finite(value: float, what: str, index: int) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):  # 1e999
        raise WrongAnswer(f"it answered for {what} of picture {index} a number that no float holds")
    return number
