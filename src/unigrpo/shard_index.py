"""The index of tensors that several ranks wrote, each its rows: what there is, and which files hold it.

``NAME.safetensors.shards.json`` stands where NAME.safetensors would; the files beside it, in ``shards/``, are those of
``torch.distributed.checkpoint`` (HuggingFaceStorageWriter). These alone do not say that one is missing, or is another
checkpoint's; the index does: it has every tensor's whole shape, and a hash of every file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from unigrpo.files import read_json_object, write_json_atomic

SUFFIX, FOLDER = ".shards.json", "shards"
STRIDE, SAMPLE = 2**20, 2**12
"""Of every ``STRIDE`` bytes of a file so many are hashed, and both ends: training moves all numbers, so that is enough
to know a file again, and 20 GB need not be read for it."""


@dataclass(frozen=True)
class ShardIndex:
    """Tensors in pieces: ``tensors`` maps a name to its dtype ("float32") and whole shape, ``files`` a file to its key.

    ``notes`` are the metadata that one file of all tensors would have.
    """

    path: Path
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    files: Mapping[str, str]
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.path.parent / FOLDER

    def write(self) -> None:
        """Write the index, whole or not at all."""
        tensors = {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in self.tensors.items()}
        write_json_atomic(self.path, {"files": self.files, "tensors": tensors, "notes": self.notes})

    @classmethod
    def read(cls, path: Path, advice: str = "copy the checkpoint again, or take the one before it") -> ShardIndex:
        """Read an index and look at its files; ValueError names one that is missing, cut short, or another's."""
        said = read_json_object(path, advice)
        try:
            tensors = {str(n): (str(s["dtype"]), tuple(map(int, s["shape"]))) for n, s in said["tensors"].items()}
            files = {str(name): str(key) for name, key in said["files"].items()}
            notes = {str(name): str(text) for name, text in said["notes"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is no index of shards ({error!r}): {advice}") from error
        index = cls(path, tensors, files, notes)
        for name, key in files.items():
            place = index.folder / name
            if Path(name).name != name or not place.is_file():
                raise ValueError(f"{path} names {name}, which is not in {index.folder}: {advice}")
            if key_of(place) != key:
                raise ValueError(f"{place} is not the file that was saved (cut short, or another's): {advice}")
        return index


def index_path(folder: Path, name: str) -> Path:
    """Where the index lies that stands for the file ``name`` of a folder."""
    return folder / f"{name}{SUFFIX}"


def key_of(path: Path) -> str:
    """A hash of a file's size and of bytes spread over it; OSError where it cannot be read."""
    facts = path.stat()
    return _key(str(path), facts.st_size, facts.st_mtime_ns, facts.st_ino)


@lru_cache(maxsize=4096)
def _key(path: str, size: int, changed: int, inode: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    step, count = (STRIDE, SAMPLE) if size > 4 * STRIDE else (SAMPLE, SAMPLE)
    with open(path, "rb") as file:
        for start in (*range(0, size, step), max(size - count, 0)):
            file.seek(start)
            digest.update(file.read(count))
    return digest.hexdigest()
