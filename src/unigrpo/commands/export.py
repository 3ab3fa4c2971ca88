"""The verb ``export``: a trained model, or its adapter, as others load it, with a card that says what it is."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from unigrpo import build, options, output
from unigrpo.build import bases
from unigrpo.commands.exporting import cards, hub
from unigrpo.files import write_json_atomic, write_text_atomic
from unigrpo.models.bagel.policy import Bagel
from unigrpo.models.bagel_files.checkpoint import save_policy
from unigrpo.models.bagel_files.probe import probe, round_weights
from unigrpo.models.bagel_files.public import save_public
from unigrpo.models.bagel_files.whole_folders import whole_folder
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Model
from unigrpo.runs.folders import must_be_new
from unigrpo.training.adapter_files import BASE, CONFIG, WEIGHTS, read_config

README = "README.md"
SAME = "Every weight is the trained one, bit for bit."


@dataclass(frozen=True)
class Written:
    """What was put into a folder: one line for the terminal, and what the card says of its precision."""

    line: str
    precision: str
    readme: str  # of the model that it came from


def run(verb: options.Export) -> int:
    """Write a trained model (its adapter merged) as others load it, or its adapter alone as peft loads it."""
    must_be_new(verb.out)
    _check(verb)
    client = None if verb.push_to_hub is None else hub.ready(verb.push_to_hub, public=verb.public)
    source = build.model_folder(verb.model)
    with whole_folder(verb.out) as draft:
        written = _adapter(verb, source, draft) if verb.adapter else _whole(verb, source, draft)
        name = verb.push_to_hub or verb.out.resolve().name
        card = cards.card(source, name, adapter=verb.adapter, precision=written.precision, readme=written.readme)
        if card is not None:
            write_text_atomic(draft / README, card.markdown())
    size = sum(file.stat().st_size for file in verb.out.rglob("*") if file.is_file())
    told = f"wrote {verb.out}{written.line}, {size / 1e6:,.1f} MB\n  {written.precision}"
    output.result(told, wrote=str(verb.out), bytes=size, precision=written.precision)
    if client is not None and verb.push_to_hub is not None:
        pushed = hub.push(client, verb.out, verb.push_to_hub, public=verb.public)
        output.result(pushed, pushed=verb.push_to_hub)
    return 0


def _check(verb: options.Export) -> None:
    """ConfigError for options that mean nothing together."""
    if verb.adapter and verb.dtype != "source":
        raise ConfigError(f"--dtype {verb.dtype} --adapter: an adapter is kept as it was trained; leave one out")
    if verb.public and verb.push_to_hub is None:
        raise ConfigError("--public says who sees a repository on the hub: add --push-to-hub, or leave it out")


def _whole(verb: options.Export, source: Path, draft: Path) -> Written:
    """Merge, write in the precision that was asked for, and measure what merging and rounding changed."""
    kept = build.stored(source)
    model = Model(verb.model, dtype="float32" if verb.dtype == "float32" else kept.dtype, device="cpu")
    if bases.is_adapter(source):
        policy, adapter = build.with_adapter(model, source, trained=kept.trained)
        adapted = probe(policy)
        adapter.merge()
    else:
        policy = build.policy(model, trained=kept.trained)
        adapted = probe(policy)
    dtype = None if verb.dtype == "source" else build.DTYPES[verb.dtype]
    _write(policy, draft, dtype)
    origin = policy.origin
    wanted = {} if origin is None else dict(origin.dtypes)
    rounded = round_weights(policy.model, lambda name: dtype or wanted.get(name, torch.float32))
    precision = SAME
    if rounded or bases.is_adapter(source):
        logits, velocity = adapted.distance(probe(policy))
        precision = _said(logits, velocity, verb.dtype, adapter=bases.is_adapter(source))
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


def _adapter(verb: options.Export, source: Path, draft: Path) -> Written:
    """peft's two files and the note on the base, with a name for the base that is no path of this machine."""
    if not bases.is_adapter(source):
        raise ConfigError(f"{verb.model} has no adapter ({source} has no {CONFIG}): export it without --adapter")
    named = read_config(source).get("base_model_name_or_path")
    portable = None if named is None else cards.portable(named)
    write_text_atomic(draft / CONFIG, _text({**read_config(source), "base_model_name_or_path": portable}))
    shutil.copyfile(source / WEIGHTS, draft / WEIGHTS)
    if (source / BASE).is_file():
        note = bases.note_of(source)
        write_json_atomic(draft / BASE, {key: value for key, value in note.items() if key != "place"})
    return Written(
        " (the adapter; peft.PeftModel.from_pretrained reads it)",
        "The adapter's matrices are fp32, as they were trained.",
        cards.readme_of_base(source),
    )


def _text(values: dict[str, object]) -> str:
    return json.dumps(values, indent=2, sort_keys=True)
