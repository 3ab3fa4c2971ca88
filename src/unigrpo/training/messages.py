"""What ranks tell each other, as bytes (docs/ranks.md): small messages in one collective, tensors as NumPy arrays.

``torch.distributed.all_gather_object`` pickles a tensor with the whole storage that it is a view of, and takes two
collectives for whatever it is; a sample's texts are views of a batch, and most messages are a few numbers.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ROOM = 4096
"""Bytes of the first collective; a message that fits beside its length needs no second one."""
_LENGTH = 8


class _Writer(pickle.Pickler):
    """Plain tensors of the CPU by their numbers alone; one that occurs twice in a message is sent once."""

    def reducer_override(self, value: Any) -> Any:
        """Pickle's hook: how to make a tensor again, and of what."""
        if type(value) is not Tensor or value.device.type != "cpu" or value.requires_grad:
            return NotImplemented
        flat = value.contiguous().reshape(-1).view(torch.uint8)
        return _made_again, (flat.numpy().tobytes(), value.dtype, tuple(value.shape))


def _made_again(numbers: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not numbers:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(numbers), dtype=dtype).reshape(shape)


def dumps(value: Any) -> bytes:
    """A value as bytes; :func:`loads` undoes it, bit for bit."""
    written = io.BytesIO()
    _Writer(written, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return written.getvalue()


def loads(message: bytes) -> Any:
    """What :func:`dumps` wrote; only ever used between the ranks of one run."""
    return pickle.loads(message)


def gather(value: Any, size: int, group: dist.ProcessGroup | None = None) -> list[Any]:
    """What each of ``size`` ranks says, in the order of ranks, the same on all; every rank has to call it.

    ``group``: the ranks' own group for what goes on beside training; None: the one that all else uses.
    """
    message = dumps(value)
    firsts = _exchanged(len(message).to_bytes(_LENGTH, "little") + message, ROOM, size, group)
    lengths = [int.from_bytes(first[:_LENGTH], "little") for first in firsts]
    if max(lengths) > ROOM - _LENGTH:
        wholes = _exchanged(message, max(lengths), size, group)
    else:
        wholes = [first[_LENGTH:] for first in firsts]
    return [loads(whole[:length]) for whole, length in zip(wholes, lengths, strict=True)]


def _exchanged(message: bytes, room: int, size: int, group: dist.ProcessGroup | None) -> list[bytes]:
    """The first ``room`` bytes of every rank's message, padded with zeros."""
    own = torch.zeros(room, dtype=torch.uint8)
    start = bytearray(message[:room])
    own[: len(start)] = torch.frombuffer(start, dtype=torch.uint8)
    everybody = [torch.empty(room, dtype=torch.uint8) for _ in range(size)]
    dist.all_gather(everybody, own, group=group)
    return [theirs.numpy().tobytes() for theirs in everybody]
