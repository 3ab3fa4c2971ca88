"""Reward models from folders or hub ids: found, read, frozen, and run a few pictures at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unigrpo.ranges import ConfigError, lacking, shown
from unigrpo.rewards.pixels import in_chunks

M = TypeVar("M", bound=nn.Module)


def needs(name: str, package: str, extra: str) -> None:
    """ConfigError where a package that a reward needs is not installed."""
    if find_spec(package) is None:
        raise lacking(f"reward {name!r}", package, extra)


def check_whole(name: str, key: str, value: Any, low: int = 1) -> int:
    """The argument of a reward if it is a whole number of at least ``low``; else ConfigError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"reward {name!r}: {key} = {shown(value)} must be a whole number, at least {low}")
    return value


def check_number(name: str, key: str, value: Any, low: float) -> float:
    """The argument of a reward if it is a number of at least ``low``; else ConfigError."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value < float("inf"):
        raise ConfigError(f"reward {name!r}: {key} = {shown(value)} must be a number, at least {low:g}")
    return float(value)


def frozen(module: M, device: torch.device) -> M:
    """The module on its device, in evaluation mode, none of its parameters trained."""
    return module.to(device).eval().requires_grad_(False)


@contextmanager
def reading(name: str, place: str) -> Iterator[None]:
    """What goes wrong while a model is read from a folder or the hub becomes a ConfigError that names it."""
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        if place.startswith(("./", "../", "~", "/")) and not Path(place).expanduser().exists():
            raise ConfigError(f"reward {name!r}: there is no folder {place}: correct the path") from error
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"reward {name!r}: the model {place} cannot be read ({shown(said)}): "
            "give a folder that transformers' save_pretrained wrote, or a hub id"
        ) from error


def find_file(name: str, key: str, place: str) -> Path:
    """A file by its path, or as HUB/ID:FILE, which is downloaded; ConfigError where there is none."""
    if (path := Path(place).expanduser()).is_file():
        return path
    hub, _, file = place.rpartition(":")
    if hub.count("/") != 1 or not file:
        raise ConfigError(f"reward {name!r}: {key} = {shown(place)} is no file, and no HUB/ID:FILE either: correct it")
    needs(name, "huggingface_hub", "clip")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub, file))
    except (OSError, ValueError) as error:  # every error of the hub's client is one of them
        said = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"reward {name!r}: {key} = {place} is no file here and cannot be downloaded ({shown(said)}): "
            "download it elsewhere and give its path"
        ) from error


def read_tensors(name: str, key: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch file (``weights_only``; a ``state_dict`` inside counts)."""
    try:
        held = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or a foreign file makes of them
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"reward {name!r}: {key} = {path} holds no tensors that can be read safely ({shown(said)}): "
            "give a safetensors file, or a torch file of plain tensors"
        ) from error
    held = held["state_dict"] if isinstance(held, dict) and isinstance(held.get("state_dict"), dict) else held
    if not isinstance(held, dict) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        raise ConfigError(f"reward {name!r}: {key} = {path} is no mapping of names to tensors: give a state dict")
    return held


def by_chunks(function: Callable[[Tensor, slice], Tensor], images: Tensor, batch: int) -> Tensor:
    """``function`` of ``batch`` pictures [b, ...] at a time, and of where they lie, so that the memory has a bound.

    With gradients only one chunk's activations are alive at a time: each is computed again on the way back.
    """
    chunks = in_chunks(len(images), batch)
    if not (torch.is_grad_enabled() and images.requires_grad):
        return torch.cat([function(images[chunk], chunk) for chunk in chunks])
    return torch.cat([_again(function, images[chunk], chunk) for chunk in chunks])


def _again(function: Callable[[Tensor, slice], Tensor], part: Tensor, chunk: slice) -> Tensor:
    answer = checkpoint(function, part, chunk, use_reentrant=False)
    assert isinstance(answer, Tensor)
    return answer
