"""What works in one process: verbs that several ranks would only do several times."""

from __future__ import annotations

import os

from unigrpo.output import launched
from unigrpo.ranges import ConfigError


def refuse_ranks(what: str) -> None:
    """ConfigError under torchrun with more than one process: each would be a whole copy of ``what``."""
    if launched():
        size = os.environ["WORLD_SIZE"]
        raise ConfigError(
            f"WORLD_SIZE is {size} (torchrun): {what} works in one process, and {size} copies would do the same work; "
            "start it without torchrun (or unset RANK and WORLD_SIZE); unigrpo train and eval share their work"
        )
