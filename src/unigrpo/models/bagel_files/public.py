"""The public BAGEL folder, in and out: what the original's inference opens, and the same folder again after training.

In: ``llm_config.json``, ``vit_config.json``, ``config.json`` (optional), the tokenizer's files, ``ema.safetensors`` and
``ae.safetensors`` (docs/bagel-architecture.md#tensors). Out: the same names, shapes and dtypes, and every other file
byte for byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unigrpo.files import parse_json_object, replacing
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files.flux import FluxAutoencoder, FluxConfig, Memory
from unigrpo.models.bagel_files.loaded import FromFiles, Loaded
from unigrpo.models.bagel_files.origin import Origin
from unigrpo.models.bagel_files.public_config import LANGUAGE, read_public_config
from unigrpo.models.bagel_files.sound import require_sound
from unigrpo.models.bagel_files.tensor_files import WEIGHTS, TensorFiles, load_into, write_stream
from unigrpo.models.bagel_files.tokenizer import Tokenizer
from unigrpo.ranges import lacking

AUTOENCODER = "ae.safetensors"
HUB_ID = r"[\w.-]+/[\w.-]+"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
SMALL_FILES = ("*.json", "*.txt", "*.md", "*.jinja", "LICENSE*", "NOTICE*", ".gitattributes", AUTOENCODER)


def is_public(folder: Path) -> bool:
    """Whether a folder is meant to be in the public layout (it may still lack files)."""
    return any((folder / name).is_file() for name in (LANGUAGE, WEIGHTS[0], f"{WEIGHTS[0]}.index.json"))


def nothing_trained(name: str) -> bool:
    """The ``trained`` of a model that is only run."""
    return False


def load_public(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    trained: Callable[[str], bool] = nothing_trained,
    image_size: tuple[int, int] | None = None,
    autoencoder_memory: Memory = "whole",
) -> Loaded:
    """Read a public folder; memory beyond the model is one tensor.

    Weights whose name is ``trained`` are kept in fp32, all others in ``compute_dtype``, which is also what forwards run
    in; the autoencoder is fp32 and frozen. ValueError, in one sentence, names the file and what is wrong with it.
    """
    if not (folder / AUTOENCODER).is_file():
        raise ValueError(f"{folder} is not a public BAGEL folder: it has no {AUTOENCODER}")
    files, stored = TensorFiles.open(folder), TensorFiles.of(folder / AUTOENCODER)
    sizes = FluxConfig.infer(stored.shapes, str(stored.path))
    tokenizer = Tokenizer.from_folder(folder)
    config, origin = read_public_config(folder, files.shapes, tokenizer, sizes), Origin.of(folder, files, stored)
    with torch.device("meta"):
        model, autoencoder = BagelModel(config), FluxAutoencoder(sizes, autoencoder_memory)
    load_into(model, files, device=device, dtype_of=lambda name: torch.float32 if trained(name) else compute_dtype)
    coder = {name: stored.read(name) for name in stored.names}
    require_sound(coder, str(stored.path))
    autoencoder.load_original({name: value.to(device, torch.float32) for name, value in coder.items()})
    return Loaded(
        model,
        tokenizer,
        autoencoder.requires_grad_(False).eval(),
        image_size=image_size,
        compute_dtype=compute_dtype,
        origin=origin,
    )


def save_public(
    policy: FromFiles,
    folder: Path,
    *,
    dtype: Literal["source", "held"] | torch.dtype = "source",
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the folder that the model came from again, with the weights that it has now.

    ``dtype``: "source" keeps every tensor as the source did (rounding what was trained in more); "held" as it is in
    memory, so that training resumes bit for bit, and notes in the file what the source had, for a later "source"; a
    dtype keeps all weights (the autoencoder's are as in the source) so, and says it in llm_config.json.
    ``state``: these weights instead of those of now; without any, no file of weights is written.
    Each file is written whole or not at all, the weights last. Nothing is needed of the source folder, which must not
    be the one written to. ValueError says why a model cannot be written so.
    """
    origin, autoencoder = policy.origin, policy.autoencoder
    if origin is None or not isinstance(autoencoder, FluxAutoencoder):
        raise ValueError(
            "this model did not come from a public BAGEL folder, so there is no such folder to write again"
        )
    if folder.resolve() == origin.folder.resolve():
        raise ValueError(f"{folder} is the folder that the model came from: write it to another one")
    state = policy.model.state_dict() if state is None else state
    if odd := sorted(set(state or policy.model.state_dict()) ^ set(origin.dtypes)):
        raise ValueError(
            f"the model has other tensors than the folder it came from ({', '.join(odd[:3])}): "
            "merge or remove the adapter before it is written as a whole model"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in origin.companions.items():
        with replacing(folder / name) as file:
            file.write(_saying(content, dtype) if name == LANGUAGE and isinstance(dtype, torch.dtype) else content)
    write_stream(folder / AUTOENCODER, autoencoder.original_tensors(), dtype_of=origin.autoencoder_dtypes.__getitem__)
    if not state:
        return
    if isinstance(dtype, torch.dtype):
        write_stream(folder / origin.weights, state, dtype_of=lambda name: dtype, metadata=origin.metadata)
    elif dtype == "held":
        write_stream(folder / origin.weights, state, metadata=origin.note())
    else:
        write_stream(folder / origin.weights, state, dtype_of=origin.dtypes.__getitem__, metadata=origin.metadata)


def _saying(content: bytes, dtype: torch.dtype) -> bytes:
    """A config in which the precision of the weights, where it is said, is this one."""
    said = parse_json_object(content, LANGUAGE)
    named = str(dtype).removeprefix("torch.")
    changed = {key: named if key in ("torch_dtype", "dtype") else value for key, value in said.items()}
    return (json.dumps(changed, indent=2) + "\n").encode()


def fetch(name: str) -> Path:
    """The folder that a name means: itself, or a hub id ``owner/name``, of which the needed files are downloaded.

    ValueError, in one sentence, says why it is neither.
    """
    if (folder := Path(name)).is_dir():
        return folder
    if not re.fullmatch(HUB_ID, name):
        raise ValueError(f"there is no folder {name}, and it is not a hub id (owner/name) either")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise lacking(
            f"there is no folder {name}, and to download it as a hub id", "huggingface_hub", "bagel"
        ) from error
    try:
        wanted = [*SMALL_FILES, "ema*.safetensors", ADAPTER_FILES[1]]
        found = Path(snapshot_download(name, allow_patterns=wanted))
        if not any(found.glob("ema*.safetensors")) and not (found / ADAPTER_FILES[1]).is_file():
            found = Path(snapshot_download(name, allow_patterns=[*SMALL_FILES, "model*.safetensors"]))
    except Exception as error:  # the hub's client has its own kinds of faults, over those of its network library
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"there is no folder {name}, and the hub said: {why[0]}") from error
    return found


def cached(name: str) -> Path | None:
    """The folder of a hub id that was downloaded before; None where it was not (nothing is downloaded now)."""
    try:
        from huggingface_hub import snapshot_download

        found = Path(snapshot_download(name, local_files_only=True))
    except (ImportError, OSError, ValueError):
        return None
    return found if any(found.glob("*.safetensors")) else None
