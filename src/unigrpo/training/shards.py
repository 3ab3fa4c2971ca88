"""Checkpoints that all ranks write, each its rows of every tensor, by torch.distributed.checkpoint as safetensors.

Nothing is pickled and nothing gathered. What lies there is read back by any number of ranks, or by one process, each
tensor into a place that is there already: whole, or shared out in another way. Source: docs/ranks.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from unigrpo.shard_index import FOLDER, ShardIndex, index_path, key_of
from unigrpo.training import messages
from unigrpo.training.checkpoint import STATE_TENSORS, load, prefixed, sync
from unigrpo.training.parallel import OtherRank, World, lost, shared_out


def copy_of(tensor: Tensor) -> Tensor:
    """A copy in the CPU's memory of what this rank holds; a tensor that is shared out stays one."""
    if not shared_out(tensor):
        return tensor.detach().to("cpu", copy=True)
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    # one for each tensor: tied weights would share the copy's memory as well, which safetensors refuses
    stager = DefaultStager(StagingOptions(False, False, False, False))
    copied: Any = stager.stage({"": tensor.detach()})
    stager.close()
    return copied[""]


def kind_of(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    """Dtype and whole shape, as an index says them."""
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


class SharedFiles:
    """Writes tensors together with the other ranks, in a thread beside training: it has a process group of its own."""

    def __init__(self, world: World, timeout_s: float) -> None:
        self.world = world
        self.group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def write(
        self, folder: Path, sets: Mapping[str, Mapping[str, Tensor]], notes: Mapping[str, Mapping[str, str]]
    ) -> None:
        """Write sets of tensors, each in the place of one file of ``folder``; rank 0 writes their indexes.

        All ranks enter together. OSError where this rank cannot write, OtherRank where another one cannot.
        """
        numbers = {name: number for number, tensors in enumerate(sets.values(), 1) for name in tensors}
        self._save(folder / FOLDER, {n: t for tensors in sets.values() for n, t in tensors.items()}, numbers)
        own = sorted((folder / FOLDER).glob(f"shard-{self.world.rank + 1:05d}-*"))
        failed, keys = None, {}
        try:
            for path in own:
                sync(path)
            keys = {path.name: key_of(path) for path in own}
        except OSError as error:
            failed = error
        said = self.agree(failed, keys)
        if self.world.first:
            for number, (name, tensors) in enumerate(sets.items(), 1):
                files = {n: k for keys in said for n, k in keys.items() if f"-model-{number:05d}-of-" in n}
                kinds = {n: kind_of(tensor) for n, tensor in tensors.items()}
                ShardIndex(index_path(folder, name), kinds, files, notes.get(name, {})).write()

    def _save(self, folder: Path, tensors: dict[str, Tensor], numbers: dict[str, int]) -> None:
        if not tensors:
            return
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=numbers, save_distributed=True)
        try:
            save(tensors, storage_writer=writer, process_group=self.group)
        except CheckpointException as error:  # which is no Exception
            raise _cause(error, self.world.rank) from error

    def agree(self, failed: Exception | None, said: Any = None) -> list[Any]:
        """What every rank says, where none has failed; else this rank's own error, or OtherRank."""
        try:
            answers = messages.gather((failed is None, said), self.world.size, self.group)
        except RuntimeError as error:
            raise failed or lost(error) from error
        if failed is not None:
            raise failed
        if not all(well for well, _ in answers):
            raise OtherRank("another rank could not write its part of the checkpoint")
        return [said for _, said in answers]


def _cause(error: Any, rank: int) -> Exception:
    """What a CheckpointException was raised for, on this rank or on another one."""
    own = error.failures.get(rank)
    if own is None:
        return OtherRank("another rank could not write its part of the checkpoint")
    return own[0] if isinstance(own[0], Exception) else RuntimeError(str(own[0]))


def fill(index: ShardIndex, places: Mapping[str, Tensor]) -> None:
    """Read tensors of an index into their places, of which each rank fills what it holds; nobody waits for anybody.

    ValueError names what is not in the index, or there with another dtype or shape; nothing is read then.
    """
    for name, place in places.items():
        if (found := index.tensors.get(name)) != kind_of(place):
            kept = "nothing" if found is None else f"{found[0]}, shape {found[1]}"
            raise ValueError(f"{index.path} has {kept} for {name}, not {place.dtype}, shape {tuple(place.shape)}")
    if not places:
        return
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load as load_into

    reader = HuggingFaceStorageReader(str(index.folder))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            load_into({n: place.detach() for n, place in places.items()}, storage_reader=reader, no_dist=True)
        except CheckpointException as error:
            raise ValueError(f"{index.folder} cannot be read: {_cause(error, 0)}") from error


def read_whole(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint's training state, whole, and with "model/" before their names those of its model.

    To look at, or to compare; a model that one rank wrote is not among them.
    """
    state = load(folder)
    found = dict(state.tensors)
    for place, index in state.shards.items():
        made = {n: torch.empty(shape, dtype=getattr(torch, kind)) for n, (kind, shape) in index.tensors.items()}
        fill(index, made)
        found |= made if place == STATE_TENSORS else prefixed("model", made)
    return found
