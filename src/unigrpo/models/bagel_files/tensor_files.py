"""Safetensors files, one tensor at a time: neither loading nor writing 29 GB makes a second copy of the model.

A model is one file, or several with ``NAME.safetensors.index.json`` that says which holds what, or what ranks wrote
together, each its rows of every tensor (``NAME.safetensors.shards.json``, :mod:`unigrpo.shard_index`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unigrpo.files import replacing
from unigrpo.models.bagel_files.sound import Sound, require_floating
from unigrpo.models.bagel_files.tensor_headers import CODE_OF, CODES, Shape, Stored, read_header, read_index
from unigrpo.models.bagel_files.tensor_pieces import together
from unigrpo.shard_index import ShardIndex, index_path

WEIGHTS = ("ema.safetensors", "model.safetensors")
_RANK = {dtype: rank for rank, dtype in enumerate(CODES.values())}
PYTORCH = {"format": "pt"}
PIECE = 2**16  # bytes


@dataclass(frozen=True)
class TensorFiles:
    """The tensors of a model as its files name them; ``path`` is what messages name (the file or the index).

    ``pieces``: of a tensor that lies in several files, its parts in the order of its bytes.
    """

    path: Path
    entries: Mapping[str, Stored]
    metadata: Mapping[str, str]
    pieces: Mapping[str, Sequence[Stored]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, names: Sequence[str] = WEIGHTS) -> TensorFiles:
        """Read the headers of the first of ``names`` that is in the folder, as one file, with an index or in pieces.

        ValueError, in one sentence, if there is none, or if a file is damaged or absent.
        """
        for name in names:
            if (folder / name).is_file():
                return cls.of(folder / name)
            if (index := folder / f"{name}.index.json").is_file():
                return cls._sharded(index)
            if (spread := index_path(folder, name)).is_file():
                return cls._spread(spread)
        wanted = " or ".join(f"{name} (or {name}.index.json)" for name in names)
        raise ValueError(f"{folder} has no weights: it needs {wanted}")

    @classmethod
    def of(cls, path: Path) -> TensorFiles:
        """Read the header of one file."""
        entries, metadata = read_header(path)
        return cls(path, entries, metadata)

    @classmethod
    def _sharded(cls, index: Path) -> TensorFiles:
        placed = read_index(index)
        entries: dict[str, Stored] = {}
        for shard in sorted(set(placed.values())):
            if not (index.parent / shard).is_file():
                raise ValueError(f"{index} names {shard}, which is not in the folder: copy or download it too")
            held, _ = read_header(index.parent / shard)
            listed = {name for name, place in placed.items() if place == shard}
            if wrong := sorted(listed ^ set(held)):
                more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
                raise ValueError(f"{index} and {shard} do not agree on the tensors in it: {', '.join(wrong[:5])}{more}")
            entries |= held
        return cls(index, entries, PYTORCH)

    @classmethod
    def _spread(cls, path: Path) -> TensorFiles:
        index = ShardIndex.read(path)
        entries, pieces = together(index)
        return cls(path, entries, index.notes or PYTORCH, pieces)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every tensor."""
        return {name: stored.shape for name, stored in self.entries.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Dtype of every tensor."""
        return {name: stored.dtype for name, stored in self.entries.items()}

    @property
    def names(self) -> list[str]:
        """All names, in the order in which they lie on the disk."""
        return sorted(self.entries, key=lambda name: (self.entries[name].path, self.entries[name].start, name))

    def key(self) -> str:
        """A hash of names, dtypes, shapes and numbers: of each tensor at most ``3 * PIECE`` bytes, spread over it.

        Training moves every tensor almost everywhere, so that is enough to tell two models of one shape apart, and
        29 GB need not be read for it. Which files hold the tensors does not matter.
        """
        digest = hashlib.sha256()
        for name, stored in sorted(self.entries.items()):
            digest.update(f"{name} {CODE_OF[stored.dtype]} {list(stored.shape)}\n".encode())
            last = max(stored.num_bytes - PIECE, 0)
            for start in sorted({0, last // 2, last}):
                digest.update(self._bytes(name, start, min(PIECE, stored.num_bytes)).numpy().data)
        return digest.hexdigest()

    def read(self, name: str) -> Tensor:
        """Read one tensor into new memory on the CPU (no mapping of the file stays behind)."""
        stored = self.entries[name]
        raw = self._bytes(name, 0, stored.num_bytes)
        return raw.view(stored.dtype).reshape(stored.shape)

    def _bytes(self, name: str, start: int, count: int) -> Tensor:
        """So many of a tensor's bytes, from one of them on, wherever they lie."""
        raw = torch.empty(count, dtype=torch.uint8)
        view, first = raw.numpy().data, 0
        for piece in self.pieces.get(name, (self.entries[name],)):
            low, high = max(start, first), min(start + count, first + piece.num_bytes)
            if low < high:
                _read_into(view[low - start : high - start], piece.path, piece.start + low - first)
            first += piece.num_bytes
        return raw


def _read_into(view: memoryview, path: Path, start: int) -> None:
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while view:
            count = file.readinto(view)
            if not count:
                raise ValueError(f"{path} became shorter while it was read: copy or download it again")
            view = view[count:]


# Into a module


def require_fit(given: Mapping[str, Shape], wanted: Mapping[str, Shape], source: str) -> None:
    """ValueError naming what ``given`` lacks, has too much, or has in another shape than ``wanted`` (first five)."""
    problems = [f"missing {name}" for name in sorted(set(wanted) - set(given))]
    problems += [f"unexpected {name}" for name in sorted(set(given) - set(wanted))]
    problems += [
        f"{name} has shape {tuple(given[name])}, the config asks for {tuple(shape)}"
        for name, shape in sorted(wanted.items())
        if name in given and tuple(given[name]) != tuple(shape)
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise ValueError(f"{source} does not fit the model: {'; '.join(problems[:5])}{more}")


def load_into(
    module: nn.Module,
    files: TensorFiles,
    *,
    device: torch.device | str,
    dtype_of: Callable[[str], torch.dtype],
    ignore: Sequence[str] = (),
) -> None:
    """Give a module (built on the meta device) its tensors, each moved to its device and dtype when its turn comes.

    Memory beyond the module itself: one source tensor. ``requires_grad`` stays as the module has it; names that begin
    with one of ``ignore`` are left out. ValueError names what does not fit the module (nothing is loaded then), and
    weights that are not finite.
    """
    sound = Sound(str(files.path))
    for name in _fitting(module, files, ignore):
        owner, _, leaf = name.rpartition(".")
        holder = module.get_submodule(owner)
        value = files.read(name)
        sound.look(name, value, dtype_of(name))
        value = value.to(device=device, dtype=dtype_of(name))
        if leaf in holder._parameters:
            value = nn.Parameter(value, requires_grad=holder.get_parameter(leaf).requires_grad)
        setattr(holder, leaf, value)
    sound.finish()


@torch.no_grad()
def copy_into(module: nn.Module, files: TensorFiles, *, ignore: Sequence[str] = ()) -> None:
    """Copy the files' numbers into the tensors that a module has, so that an optimizer goes on with the same ones."""
    state, sound = module.state_dict(), Sound(str(files.path))
    for name in _fitting(module, files, ignore):
        value = files.read(name)
        sound.look(name, value, state[name].dtype)
        state[name].copy_(value)
        del value  # before the next one is read
    sound.finish()


def _fitting(module: nn.Module, files: TensorFiles, ignore: Sequence[str]) -> list[str]:
    given = {name: shape for name, shape in files.shapes.items() if not name.startswith(tuple(ignore))}
    require_fit(given, {name: tuple(value.shape) for name, value in module.state_dict().items()}, str(files.path))
    require_floating({name: files.dtypes[name] for name in given}, str(files.path))
    return [name for name in files.names if name in given]


# Out


def write_stream(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    dtype_of: Callable[[str], torch.dtype] | None = None,
    metadata: Mapping[str, str] = PYTORCH,
) -> None:
    """Write a safetensors file, each tensor converted (by ``dtype_of``; None: as it is) when its turn comes.

    The bytes are those of ``safetensors.torch.save``: sorted by dtype, then name. Other libraries want the ``metadata``
    to say format "pt". ValueError for a dtype that this reader does not have.
    """
    dtypes = {name: tensor.dtype if dtype_of is None else dtype_of(name) for name, tensor in tensors.items()}
    if odd := sorted(name for name, dtype in dtypes.items() if dtype not in CODE_OF):
        raise ValueError(f"{path} cannot keep {odd[0]} as {dtypes[odd[0]]}: convert it to one of {', '.join(CODES)}")
    order = sorted(tensors, key=lambda name: (_RANK[dtypes[name]], name.encode("utf-8")))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * dtypes[name].itemsize
        shape = list(tensors[name].shape)
        header[name] = {"dtype": CODE_OF[dtypes[name]], "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    with replacing(path) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            file.write(_bytes_of(tensors[name], dtypes[name]))


def _bytes_of(tensor: Tensor, dtype: torch.dtype) -> memoryview:
    value = tensor.detach().to(dtype).cpu().contiguous()
    return value.reshape(-1).view(torch.uint8).numpy().data
