"""Several processes of one job (torchrun): no verb can use them yet, and none may do the same work twice."""

from __future__ import annotations

import os

from unigrpo.ranges import ConfigError


def refuse_ranks() -> None:
    """ConfigError under torchrun with more than one process: each would be a whole copy of the command."""
    size = os.environ.get("WORLD_SIZE", "1")
    if "RANK" in os.environ and size.strip().isdigit() and int(size) > 1:
        raise ConfigError(
            f"WORLD_SIZE is {size} (torchrun): this version works in one process, and {size} copies would do the same "
            "work; start it without torchrun (or unset RANK and WORLD_SIZE), or with --nproc-per-node 1"
        )
