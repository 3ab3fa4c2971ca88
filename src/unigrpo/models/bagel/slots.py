"""Room for the keys and values of what is written or drawn next, filled in place (without gradients).

Thinking fills one slot a token, and a picture fills the same slots at every step: nothing of what was read before is
copied again. One mask and, for a picture, one table of rotary positions serve all forwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unigrpo.models.bagel.blocks import Block
from unigrpo.models.bagel.cache import Cache
from unigrpo.models.bagel.layers import KeyValue, Place, Rope, rotate


class Slots:
    """A cache's keys and values [R, kv heads, length + more, d] in every layer, and its mask [R, 1, 1, length + more].

    ``dtype`` is that in which they are kept; ``rope`` is that of the next block (None: its keys need no rotation).
    Blocks of fewer than R rows belong to the first rows. Slots that are never filled hold zeros.
    """

    def __init__(self, cache: Cache, more: int, dtype: torch.dtype) -> None:
        self.length, self.room, self.rope = cache.length, cache.length + more, None
        self.rope: Rope | None
        self.keys: list[Tensor | None] = [self._roomy(keys, dtype) for keys in cache.keys]
        self.values: list[Tensor | None] = [self._roomy(values, dtype) for values in cache.values]
        self.dtype = dtype
        self.mask = torch.zeros((cache.valid.shape[0], 1, 1, self.room), dtype=dtype, device=cache.valid.device)
        self.mask[..., : self.length].masked_fill_(~cache.valid[:, None, None], float("-inf"))

    def _roomy(self, read: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if read is None:
            return None
        return self._copied(read[:, :, : self.length], read.shape[0], dtype)

    def _copied(self, read: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
        room = read.new_zeros((rows, read.shape[1], self.room, read.shape[3]), dtype=dtype)
        room[: read.shape[0], :, : read.shape[2]] = read
        return room

    def place(self, block: Block) -> Place:
        """Where all layers read a block of the first rows, whose every token sees all that is valid."""
        return Place(block, self.rope, self.mask[: block.rope.shape[0], ..., : self.length + block.rope.shape[1]])

    def append(self, index: int, keys: Tensor, values: Tensor) -> KeyValue:
        """Write what comes after ``length`` in one layer; return all up to there, of as many rows."""
        rows, end = keys.shape[0], self.length + keys.shape[2]
        old_keys, old_values = self.keys[index], self.values[index]
        if old_keys is None or old_values is None:  # an empty context
            total = self.mask.shape[0]
            old_keys = self.keys[index] = self._copied(keys[:, :, :0], total, self.dtype)
            old_values = self.values[index] = self._copied(values[:, :, :0], total, self.dtype)
        old_keys[:rows, :, self.length : end] = keys
        old_values[:rows, :, self.length : end] = values
        return old_keys[:rows, :, :end], old_values[:rows, :, :end]

    def turn_back(self, rope: Rope) -> None:
        """Rotate all keys back by one position a row: what stands there itself then needs no rotation."""
        cos, sin = rope
        self.keys = [None if keys is None else rotate(keys, cos, -sin) for keys in self.keys]

    def swap(self, one: Sequence[int], other: Sequence[int]) -> None:
        """Exchange rows of a context."""
        for rows in (*self.keys, *self.values, self.mask):
            if rows is not None:
                swap_rows(rows, one, other)

    def settle(self, cache: Cache, order: Sequence[int], fed: Tensor) -> None:
        """Put what was filled into the cache it came from: row r of these is its row order[r], of ``fed`` [R] tokens.

        ``fed`` is by row of the cache.
        """
        where = torch.tensor(order, device=fed.device).argsort()
        for store, filled in ((cache.keys, self.keys), (cache.values, self.values)):
            for index, rows in enumerate(filled):
                if rows is not None:
                    kept = rows[:, :, : self.length].index_select(0, where)
                    store[index] = kept if (old := store[index]) is None else kept.to(old.dtype)
        new = torch.arange(self.length - cache.length, device=fed.device)
        cache.commit(new < fed[:, None], cache.rope + fed)


def swap_rows(rows: Tensor, one: Sequence[int], other: Sequence[int]) -> None:
    """Exchange rows of a tensor in place."""
    here, there = (torch.tensor(index, device=rows.device) for index in ((*one, *other), (*other, *one)))
    rows[here] = rows[there]
