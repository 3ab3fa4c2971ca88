"""The key/value cache: what B rows have read so far. Slots are shared by all rows; ``valid`` says whose are filled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from unigrpo.models.bagel.drawing import Path


class Cache:
    """Per layer keys and values [B, kv heads, slots, head dim], with valid [B, slots] and the next rope [B].

    Appending concatenates, so that gradients can flow; thinking and drawing, which have none, fill ``slots.Slots`` in
    place. Positions are carried by the keys (after rope), so slots need no order. ``paths``: by (rows, columns), what
    the steps of pictures that are drawn after these rows share, kept until something else is read.
    """

    def __init__(self, num_layers: int, valid: Tensor, rope: Tensor) -> None:
        self.keys: list[Tensor | None] = [None] * num_layers
        self.values: list[Tensor | None] = [None] * num_layers
        self.valid = valid
        self.rope = rope
        self.paths: dict[tuple[int, int], Path] = {}

    @classmethod
    def empty(cls, num_layers: int, batch: int, device: torch.device) -> Cache:
        """A cache of rows that have read nothing."""
        valid = torch.zeros((batch, 0), dtype=torch.bool, device=device)
        return cls(num_layers, valid, torch.zeros(batch, dtype=torch.int64, device=device))

    @property
    def length(self) -> int:
        """Filled slots (the padded ones included)."""
        return self.valid.shape[1]

    def layer(self, index: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of one layer over all filled slots; None when there are none."""
        keys, values = self.keys[index], self.values[index]
        if keys is None or values is None:
            return None
        return keys, values

    def append(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of one layer; return all of them, old and new. ``commit`` closes the step."""
        old_keys, old_values = self.keys[index], self.values[index]
        if old_keys is None or old_values is None:
            self.keys[index], self.values[index] = keys, values
            return keys, values
        keys, values = torch.cat([old_keys, keys], dim=2), torch.cat([old_values, values], dim=2)
        self.keys[index], self.values[index] = keys, values
        return keys, values

    def commit(self, valid: Tensor, rope: Tensor) -> None:
        """After all layers appended: which of the new slots [B, n] are filled, and the next rope position [B]."""
        self.valid = torch.cat([self.valid, valid], dim=1)
        self.rope = rope
        self.paths = {}

    def expand(self, repeats: int) -> Cache:
        """Repeat every row ``repeats`` times, copies adjacent (one prompt read once, a group of samples after it)."""
        new = Cache(len(self.keys), self.valid.repeat_interleave(repeats, 0), self.rope.repeat_interleave(repeats, 0))
        for index in range(len(self.keys)):
            if (layer := self.layer(index)) is not None:
                new.keys[index] = layer[0].repeat_interleave(repeats, 0)
                new.values[index] = layer[1].repeat_interleave(repeats, 0)
        return new

    def take(self, rows: Sequence[int]) -> Cache:
        """The given rows alone, in that order (the others have said all they had to say)."""
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.valid.device)
        new = Cache(len(self.keys), self.valid[index], self.rope[index])
        for layer in range(len(self.keys)):
            if (kept := self.layer(layer)) is not None:
                new.keys[layer], new.values[layer] = kept[0][index], kept[1][index]
        return new
