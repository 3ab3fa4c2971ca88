"""Tensors that ranks wrote together: each file has some rows of each, and the headers say from which row on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from unigrpo.models.bagel_files.tensor_headers import CODES, Stored, read_header
from unigrpo.shard_index import ShardIndex

OFFSETS = "DCP_SHARDING_INFO"  # torch.distributed.checkpoint's own name: {tensor: {"saved_offsets": [row, 0, ...]}}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in CODES.values()}


def together(index: ShardIndex) -> tuple[dict[str, Stored], dict[str, Sequence[Stored]]]:
    """Every tensor as a whole, and its pieces in order; ValueError names one whose rows are not all there.

    Rows lie one after the other in a file, so that pieces one after the other are the bytes of the whole.
    """
    found: dict[str, list[tuple[int, Stored]]] = {name: [] for name in index.tensors}
    for name in sorted(index.files):
        held, metadata = read_header(index.folder / name)
        for tensor, row in _rows(held, metadata, index).items():
            found[tensor].append((row, held[tensor]))
    entries: dict[str, Stored] = {}
    pieces: dict[str, Sequence[Stored]] = {}
    for tensor, parts in found.items():
        ordered = [part for _, part in sorted(parts, key=lambda pair: (pair[0], pair[1].num_bytes))]
        entries[tensor] = _whole(tensor, ordered, index)
        pieces[tensor] = ordered
    return entries, pieces


def _rows(held: Mapping[str, Stored], metadata: Mapping[str, str], index: ShardIndex) -> dict[str, int]:
    """The first row of each tensor of a file."""
    try:
        said = json.loads(metadata[OFFSETS])
        starts = {name: said[name]["saved_offsets"] for name in held}
        if unknown := sorted(held.keys() - index.tensors.keys()):
            raise ValueError(f"{unknown[0]} is not in the index")
        if odd := [name for name, start in starts.items() if any(start[1:])]:
            raise ValueError(f"{odd[0]} is not cut by rows")
        return {name: int(start[0]) if start else 0 for name, start in starts.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{index.path} and its files do not agree ({error}): copy the checkpoint again") from error


def _whole(name: str, parts: Sequence[Stored], index: ShardIndex) -> Stored:
    """One entry for all parts of a tensor."""
    kind, shape = index.tensors[name]
    dtype = DTYPES.get(kind)
    rows = sum(part.shape[0] for part in parts if part.shape)
    fit = all(part.dtype == dtype and part.shape[1:] == shape[1:] for part in parts)
    if not parts or dtype is None or not fit or (shape and rows != shape[0]):
        raise ValueError(
            f"{index.path}: the files have not all rows of {name} ({kind}, shape {shape}) but {rows}: "
            "copy the checkpoint again, or take the one before it"
        )
    return replace(parts[0], dtype=dtype, shape=shape)
