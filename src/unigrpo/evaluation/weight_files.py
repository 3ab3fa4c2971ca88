"""Weights from files of the user's: read without running what they hold, and named by their sha256."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unigrpo.ranges import ConfigError, shown

SUFFIXES = (".safetensors", ".pth", ".pt")
FOLDER_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError)
"""What reading damaged or foreign files of weights raises."""


def first_line(error: Exception) -> str:
    """An error of a library, short enough for a sentence."""
    return shown((str(error).strip() or type(error).__name__).splitlines()[0])


@dataclass(frozen=True)
class State:
    """The tensors of a checkpoint, and the classes that mmdet notes beside them (None: it notes none)."""

    tensors: Mapping[str, Tensor]
    labels: Sequence[str] | None


def read_state(path: Path, where: str) -> State:
    """A safetensors file, or mmdet's checkpoint (``state_dict`` and ``meta``), read with ``weights_only``.

    fp16 and bf16 become float32. ConfigError where the file cannot be read so, or holds no tensors.
    """
    try:
        held = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except UNREADABLE as error:
        raise ConfigError(
            f"{where} cannot be read safely ({first_line(error)}): download it again, or save only its tensors as "
            "docs/geneval-detectors.md shows"
        ) from error
    meta = held.get("meta") if isinstance(held, dict) else None
    tensors = held.get("state_dict", held) if isinstance(held, dict) else held
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise ConfigError(f"{where} is no mapping of names to tensors: give a checkpoint of mmdet, or its state_dict")
    labels = meta.get("CLASSES") if isinstance(meta, dict) else None
    return State(
        {str(key): value.float() if value.is_floating_point() else value for key, value in tensors.items()},
        [str(label) for label in labels] if isinstance(labels, list | tuple) else None,
    )


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """ConfigError where a weight is NaN or infinite."""
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ConfigError(f"{where}: {key} holds NaN or infinity, so it is damaged: download it again")


def folder_files(folder: Path) -> list[Path]:
    """The files of weights of a folder of transformers' (safetensors first), sorted; none: an empty list."""
    for pattern in FOLDER_WEIGHTS:
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def digest(files: Sequence[Path]) -> str:
    """The sha256 of a file; of several, that of their names and sha256s."""
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    if len(found) == 1:
        return next(iter(found.values()))
    listed = "".join(f"{name} {value}\n" for name, value in sorted(found.items()))
    return hashlib.sha256(listed.encode()).hexdigest()
