"""An evaluation on several ranks (torchrun): they draw into one folder, and the first of them examines it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from unigrpo.ranges import ConfigError

LONGEST = timedelta(days=7)
"""How long ranks wait for each other; torchrun ends them all where one has died."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that examines, and tells."""
        return self.rank == 0

    def together(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """The ranks of this job, each with an accelerator of its own if there are any; one where there is no torchrun."""
    size, rank = (os.environ.get(name, "").strip() for name in ("WORLD_SIZE", "RANK"))
    if not size.isdigit() or not rank.isdigit() or int(size) < 2:
        yield Ranks()
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        dist.init_process_group("gloo", timeout=LONGEST)
    except ValueError as error:
        raise ConfigError(
            f"WORLD_SIZE is {size}, but the ranks do not find each other ({error}): use torchrun"
        ) from None
    try:
        yield Ranks(int(rank), int(size))
    finally:
        dist.destroy_process_group()
