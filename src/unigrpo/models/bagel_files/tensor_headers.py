"""The headers of safetensors files: where each tensor lies, and every fault named.

The format is the library's: 8 bytes that give the length of a JSON header (names, dtypes, shapes, places), the header,
and the numbers.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unigrpo.files import parse_json_object, read_json_object
from unigrpo.models.bagel import limits

ADVICE = "copy or download it again"
Shape = tuple[int, ...]
# In the order in which the library puts tensors into a file: what needs the widest alignment first.
CODES: dict[str, torch.dtype] = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODE_OF = {dtype: code for code, dtype in CODES.items()}
_LONGEST_HEADER = 100_000_000  # the library's own limit
_SIZE = limits.Limit(0, 2**48)


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its file, its first byte there, and what its bytes mean."""

    path: Path
    start: int
    dtype: torch.dtype
    shape: Shape

    @property
    def num_bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def _unreadable(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} is not a readable safetensors file: {why}; {ADVICE}")


def read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name, of an index of several files."""
    said = read_json_object(index, ADVICE)
    if not isinstance(placed := said.get("weight_map"), dict):
        raise ValueError(f"{index} is not an index of weights (an object with a weight_map): {ADVICE}")
    sound = all(isinstance(shard, str) and Path(shard).name == shard for shard in placed.values())
    if not sound or not placed:
        raise ValueError(f"{index} is damaged: its weight_map should give every tensor a file of the same folder")
    return placed


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Tensors and metadata of one file; every byte must belong to a tensor, as the format demands."""
    raw, size = _header_bytes(path)
    try:
        header = parse_json_object(raw, "its header", ADVICE)
    except ValueError as error:
        raise _unreadable(path, str(error).removesuffix(f": {ADVICE}")) from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _unreadable(path, "its __metadata__ should give texts for names")
    end = 8 + len(raw)
    placed = sorted((_place(path, end, name, facts) for name, facts in header.items()), key=_order)
    for name, stored in placed:
        if stored.start != end:
            raise _unreadable(path, f"{name} does not begin where the tensor before it ends")
        end += stored.num_bytes
    if end != size:
        why = f"it has {size} bytes, and its header asks for {end}"
        raise _unreadable(path, f"it is cut short: {why}" if size < end else why)
    return dict(placed), metadata


def _header_bytes(path: Path) -> tuple[bytes, int]:
    """The header as it lies there, and the bytes of the whole file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise _unreadable(path, "it has no header, or is cut short in it")
            return file.read(length), size
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except OSError as error:
        raise _unreadable(path, error.strerror) from error


def _order(item: tuple[str, Stored]) -> tuple[int, int]:
    return item[1].start, item[1].num_bytes


def _place(path: Path, base: int, name: str, facts: Any) -> tuple[str, Stored]:
    try:
        code, shape, (start, end) = facts["dtype"], tuple(facts["shape"]), facts["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, f"its entry for {name} is damaged ({error!r})") from error
    if odd := [number for number in (*shape, start, end) if not _SIZE.allows(number)]:
        sizes = limits.shown(list(shape))
        raise _unreadable(path, f"{name} has shape {sizes} and a size or a place {limits.shown(odd[0])}, not {_SIZE}")
    if not isinstance(code, str) or code not in CODES:
        kind = limits.shown(code) if not isinstance(code, str) else code[: limits.LONGEST]
        raise ValueError(f"{path} keeps {name} as {kind}, which is not supported: convert it to {', '.join(CODES)}")
    stored = Stored(path, base + start, CODES[code], shape)
    if end - start != stored.num_bytes:
        raise _unreadable(path, f"{name} has shape {shape} of {code}, but {end - start} bytes")
    return name, stored
