"""Safetensors files, one tensor at a time: neither loading nor writing 29 GB makes a second copy of the model.

The format is the library's: 8 bytes that give the length of a JSON header (names, dtypes, shapes, places), the header,
and the numbers. A model is one file, or several with ``NAME.safetensors.index.json`` that says which holds what.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
WEIGHTS = ("ema.safetensors", "model.safetensors")
# In the order in which the library puts tensors into a file: what needs the widest alignment first.
CODES: dict[str, torch.dtype] = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODE_OF = {dtype: code for code, dtype in CODES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(CODES.values())}
PYTORCH = {"format": "pt"}
_LONGEST_HEADER = 100_000_000  # the library's own limit


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its file, its first byte there, and what its bytes mean."""

    path: Path
    start: int
    dtype: torch.dtype
    shape: Shape

    @property
    def num_bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorFiles:
    """The tensors of a model as its files name them; ``path`` is what messages name (the file or the index)."""

    path: Path
    entries: Mapping[str, Stored]
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path, names: Sequence[str] = WEIGHTS) -> TensorFiles:
        """Read the headers of the first of ``names`` that is in the folder, as one file or with an index.

        ValueError, in one sentence, if there is none, or if a file is damaged or absent.
        """
        for name in names:
            if (folder / name).is_file():
                return cls.of(folder / name)
            if (index := folder / f"{name}.index.json").is_file():
                return cls._sharded(index)
        wanted = " or ".join(f"{name} (or {name}.index.json)" for name in names)
        raise ValueError(f"{folder} has no weights: it needs {wanted}")

    @classmethod
    def of(cls, path: Path) -> TensorFiles:
        """Read the header of one file."""
        entries, metadata = _read_header(path)
        return cls(path, entries, metadata)

    @classmethod
    def _sharded(cls, index: Path) -> TensorFiles:
        placed = _read_index(index)
        entries: dict[str, Stored] = {}
        for shard in sorted(set(placed.values())):
            if not (index.parent / shard).is_file():
                raise ValueError(f"{index} names {shard}, which is not in the folder: copy or download it too")
            held, _ = _read_header(index.parent / shard)
            listed = {name for name, place in placed.items() if place == shard}
            if wrong := sorted(listed ^ set(held)):
                more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
                raise ValueError(f"{index} and {shard} do not agree on the tensors in it: {', '.join(wrong[:5])}{more}")
            entries |= held
        return cls(index, entries, PYTORCH)

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

    def read(self, name: str) -> Tensor:
        """Read one tensor into new memory on the CPU (no mapping of the file stays behind)."""
        stored = self.entries[name]
        raw = torch.empty(stored.num_bytes, dtype=torch.uint8)
        view = raw.numpy().data
        with stored.path.open("rb", buffering=0) as file:
            file.seek(stored.start)
            while view:
                count = file.readinto(view)
                if not count:
                    raise ValueError(f"{stored.path} became shorter while it was read: copy or download it again")
                view = view[count:]
        return raw.view(stored.dtype).reshape(stored.shape)


def _unreadable(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} is not a readable safetensors file: {why}; copy or download it again")


def _read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    try:
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        sound = all(isinstance(shard, str) and Path(shard).name == shard for shard in placed.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of weights (an object with a weight_map): {error!r}") from error
    if not sound or not placed:
        raise ValueError(f"{index} is damaged: its weight_map should give every tensor a file of the same folder")
    return placed


def _read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Tensors and metadata of one file; every byte must belong to a tensor, as the format demands."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise _unreadable(path, "it has no header, or is cut short in it")
            header = json.loads(file.read(length).decode("utf-8"))
            metadata = header.pop("__metadata__", {})
            placed = sorted((_place(path, 8 + length, name, facts) for name, facts in header.items()), key=_order)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError) as error:
        raise _unreadable(path, error) from error
    end = 8 + length
    for name, stored in placed:
        if stored.start != end:
            raise _unreadable(path, f"{name} does not begin where the tensor before it ends")
        end += stored.num_bytes
    if end != size:
        why = f"it has {size} bytes, and its header asks for {end}"
        raise _unreadable(path, f"it is cut short: {why}" if size < end else why)
    return dict(placed), metadata


def _order(item: tuple[str, Stored]) -> tuple[int, int]:
    return item[1].start, item[1].num_bytes


def _place(path: Path, base: int, name: str, facts: Any) -> tuple[str, Stored]:
    try:
        code, shape, (start, end) = facts["dtype"], tuple(int(size) for size in facts["shape"]), facts["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, f"its entry for {name} is damaged ({error!r})") from error
    if code not in CODES:
        raise ValueError(f"{path} keeps {name} as {code}, which is not supported: convert it to {', '.join(CODES)}")
    stored = Stored(path, base + start, CODES[code], shape)
    if min(shape, default=0) < 0 or end - start != stored.num_bytes:
        raise _unreadable(path, f"{name} has shape {shape} of {code}, but {end - start} bytes")
    return name, stored


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
    with one of ``ignore`` are left out. ValueError names what does not fit the module; nothing is loaded then.
    """
    for name in _fitting(module, files, ignore):
        owner, _, leaf = name.rpartition(".")
        holder = module.get_submodule(owner)
        value = files.read(name).to(device=device, dtype=dtype_of(name))
        if leaf in holder._parameters:
            value = nn.Parameter(value, requires_grad=holder.get_parameter(leaf).requires_grad)
        setattr(holder, leaf, value)


@torch.no_grad()
def copy_into(module: nn.Module, files: TensorFiles, *, ignore: Sequence[str] = ()) -> None:
    """Copy the files' numbers into the tensors that a module has, so that an optimizer goes on with the same ones."""
    state = module.state_dict()
    for name in _fitting(module, files, ignore):
        state[name].copy_(files.read(name))


def _fitting(module: nn.Module, files: TensorFiles, ignore: Sequence[str]) -> list[str]:
    given = {name: shape for name, shape in files.shapes.items() if not name.startswith(tuple(ignore))}
    require_fit(given, {name: tuple(value.shape) for name, value in module.state_dict().items()}, str(files.path))
    return [name for name in files.names if name in given]


# Out


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file whole or not at all: under a temporary name beside it, flushed to the disk, then renamed."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


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
