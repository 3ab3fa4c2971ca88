"""Keyed randomness: every draw has a key, and nothing touches a global generator.

key = blake2b(repr((run seed, iteration, position, sample, purpose)), 8 bytes) as an integer, on a CPU generator; from
the second round on, the tuple ends with the round. So the same run on one rank or two, with another micro-batch, or
after a resume draws the same numbers (docs/math.md#seeds).
"""

from __future__ import annotations

import hashlib

import torch


def key(run_seed: int, iteration: int, position: int, sample: int, purpose: str, turn: int = 1) -> int:
    """Return the 64-bit seed of one draw, in round ``turn`` (the first has the key of a run without rounds)."""
    later = (int(turn),) if turn > 1 else ()
    text = repr((int(run_seed), int(iteration), int(position), int(sample), str(purpose), *later))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def generator(
    run_seed: int, iteration: int, position: int, sample: int, purpose: str, turn: int = 1
) -> torch.Generator:
    """Return a fresh CPU generator for one draw, seeded with :func:`key`."""
    return torch.Generator().manual_seed(key(run_seed, iteration, position, sample, purpose, turn))
