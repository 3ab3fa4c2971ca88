"""Work that is done by one process: what torchrun starts more than once is refused."""

from __future__ import annotations

import os

from unigrpo.ranges import ConfigError


def refuse_ranks(what: str) -> None:
    """ConfigError under torchrun with more than one process: each would be a whole copy of ``what``."""
    size = os.environ.get("WORLD_SIZE", "1").strip()
    if "RANK" in os.environ and size.isdigit() and int(size) > 1:
        raise ConfigError(
            f"WORLD_SIZE is {size} (torchrun): {what} works in one process, and {size} copies would do the same work; "
            "start it without torchrun (or unset RANK and WORLD_SIZE); only unigrpo train shares its work"
        )
