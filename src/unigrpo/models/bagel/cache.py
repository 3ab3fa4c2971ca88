"""The key/value cache: what B rows have read so far. Slots are shared by all rows; ``valid`` says whose are filled."""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Per layer keys and values [B, kv heads, slots, head dim], with valid [B, slots] and the next rope [B].

    Appending under autograd concatenates; without gradients it writes in place into reserved room, so that decoding
    does not copy the cache for every token. Positions are carried by the keys (after rope), so slots need no order.
    """

    def __init__(self, num_layers: int, valid: Tensor, rope: Tensor) -> None:
        self.keys: list[Tensor | None] = [None] * num_layers
        self.values: list[Tensor | None] = [None] * num_layers
        self.valid = valid
        self.rope = rope
        self._room = 0

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
        return keys[:, :, : self.length], values[:, :, : self.length]

    def reserve(self, slots: int) -> None:
        """Make room for ``slots`` more, to be filled in place (without gradients)."""
        self._room = self.length + slots
        for store in (self.keys, self.values):
            for index, tensor in enumerate(store):
                if tensor is not None:
                    shape = (*tensor.shape[:2], self._room, tensor.shape[3])
                    grown = tensor.new_empty(shape)
                    grown[:, :, : self.length] = tensor[:, :, : self.length]
                    store[index] = grown

    def append(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of one layer; return all of them, old and new. ``commit`` closes the step."""
        old_keys, old_values, end = self.keys[index], self.values[index], self.length + keys.shape[2]
        if old_keys is None or old_values is None:
            self.keys[index], self.values[index] = keys, values
            return keys, values
        if end <= min(self._room, old_keys.shape[2]) and not torch.is_grad_enabled():
            old_keys[:, :, self.length : end] = keys
            old_values[:, :, self.length : end] = values
            return old_keys[:, :, :end], old_values[:, :, :end]
        keys = torch.cat([old_keys[:, :, : self.length], keys], dim=2)
        values = torch.cat([old_values[:, :, : self.length], values], dim=2)
        self.keys[index], self.values[index] = keys, values
        return keys, values

    def commit(self, valid: Tensor, rope: Tensor) -> None:
        """After all layers appended: which of the new slots [B, n] are filled, and the next rope position [B]."""
        self.valid = torch.cat([self.valid, valid], dim=1)
        self.rope = rope

    def expand(self, repeats: int) -> Cache:
        """Repeat every row ``repeats`` times, copies adjacent (one prompt read once, a group of samples after it)."""
        new = Cache(len(self.keys), self.valid.repeat_interleave(repeats, 0), self.rope.repeat_interleave(repeats, 0))
        for index in range(len(self.keys)):
            if (layer := self.layer(index)) is not None:
                new.keys[index] = layer[0].repeat_interleave(repeats, 0)
                new.values[index] = layer[1].repeat_interleave(repeats, 0)
        return new
