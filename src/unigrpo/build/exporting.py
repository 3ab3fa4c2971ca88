"""A trained model, or its adapter, written as others load it, and how far the written one is from the trained one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from unigrpo.build import bases
from unigrpo.build.models import DTYPES, policy, stored, with_adapter
from unigrpo.files import write_json_atomic, write_text_atomic
from unigrpo.models.bagel_files.checkpoint import save_policy
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.bagel_files.probe import probe, round_weights
from unigrpo.models.bagel_files.public import save_public
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Model
from unigrpo.training.adapter_files import BASE, CONFIG, WEIGHTS, Base, read_config

README = "README.md"
SAME = "Every weight is the trained one, bit for bit."
Dtype = Literal["source", "float32", "bfloat16"]


@dataclass(frozen=True)
class Written:
    """What was put into a folder: one line for the terminal, and what the card says of its precision."""

    line: str
    precision: str
    readme: str  # of the model that it came from


def write_whole(name: str, source: Path, draft: Path, dtype_name: Dtype) -> Written:
    """Write the model ``name``, whose folder is ``source``, in a precision, and measure what merging and rounding
    changed; its adapter is merged."""
    kept = stored(source)
    model = Model(name, dtype="float32" if dtype_name == "float32" else kept.dtype, device="cpu")
    if bases.is_adapter(source):
        loaded, adapter = with_adapter(model, source, trained=kept.trained)
    else:
        loaded, adapter = policy(model, trained=kept.trained), None
    if not isinstance(loaded, Bagel):
        raise ConfigError(f"{name} is a model of your own: its checkpoints are what its family saves; copy one of them")
    trained = probe(loaded)
    if adapter is not None:
        adapter.merge()
    dtype = None if dtype_name == "source" else DTYPES[dtype_name]
    _write(loaded, draft, dtype)
    origin = loaded.origin
    wanted = {} if origin is None else dict(origin.dtypes)
    rounded = round_weights(loaded.model, lambda name: dtype or wanted.get(name, torch.float32))
    precision = SAME
    if rounded or adapter is not None:
        logits, velocity = trained.distance(probe(loaded))
        precision = _said(logits, velocity, dtype_name, adapter=adapter is not None)
    precision += _held(source)
    layout = "unigrpo's own layout" if origin is None else "the public layout"
    readme = b"" if origin is None else origin.companions.get(README, b"")
    return Written(f" in {layout}", precision, readme.decode("utf-8", errors="replace"))


def _write(policy: Bagel, draft: Path, dtype: torch.dtype | None) -> None:
    if policy.origin is None:
        save_policy(policy, draft, dtype=dtype)
    else:
        save_public(policy, draft, dtype="source" if dtype is None else dtype)


def _said(logits: float, velocity: float, dtype: str, *, adapter: bool) -> str:
    """A sentence on how far the written model is from the trained one."""
    what = "the merged model is from the adapted one" if adapter else "the written model is from the trained one"
    kept = "the precision of its source" if dtype == "source" else dtype
    more = "" if max(logits, velocity) < 1e-5 else " Less than that: `unigrpo export --dtype float32`, or `--adapter`."
    if dtype == "float32":
        more = ""
    return (
        f"In {kept}, {what} by {logits:.2g} in the logits and {velocity:.2g} in a velocity (relative L2 in one small "
        f"fp32 forward): rounding of the weights.{more}"
    )


def _held(source: Path) -> str:
    """A sentence on an adapter that was trained on a base in 4 bits; "" for any other model."""
    note = Base.read(source) if bases.is_adapter(source) else None
    if note is None or note.quantize is None:
        return ""
    return (
        f" The adapter was trained on its base in 4 bits ({note.quantize}), and belongs here to the base as it is in "
        "its files, which says almost the same (docs/quantize.md)."
    )


def write_adapter(name: str, source: Path, draft: Path, renamed: Callable[[str], str], readme: str) -> Written:
    """peft's two files and the note on the base, whose name is ``renamed``: it should be no path of this machine."""
    if not bases.is_adapter(source):
        raise ConfigError(f"{name} has no adapter ({source} has no {CONFIG}): export it without --adapter")
    config = read_config(source)
    if (base := config.get("base_model_name_or_path")) is not None:
        base = renamed(base)
    text = json.dumps({**config, "base_model_name_or_path": base}, indent=2, sort_keys=True)
    write_text_atomic(draft / CONFIG, text)
    shutil.copyfile(source / WEIGHTS, draft / WEIGHTS)
    if (source / BASE).is_file():
        note = bases.note_of(source)
        write_json_atomic(draft / BASE, {key: value for key, value in note.items() if key != "place"})
    return Written(
        " (the adapter; peft.PeftModel.from_pretrained reads it)",
        f"The adapter's matrices are fp32, as they were trained.{_held(source)}",
        readme,
    )
