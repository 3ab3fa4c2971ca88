"""The verbs about models as files: parity with the original's numbers, export, and a tiny BAGEL to try things with."""

from __future__ import annotations

import shutil
from pathlib import Path

from unigrpo import cli, config, resolve
from unigrpo.config import ConfigError
from unigrpo.models.bagel import parity
from unigrpo.models.bagel.checkpoint import save_policy
from unigrpo.models.bagel.public import save_public
from unigrpo.models.bagel.tiny import make_tiny_bagel
from unigrpo.training.lora import CONFIG as ADAPTER
from unigrpo.training.lora import WEIGHTS
from unigrpo.verbs.folders import must_be_new, usable


def check_parity(folder: Path) -> int:
    """Print one line per group of reference numbers; 1 if any is out of tolerance."""
    checks = parity.run(folder)
    for check in checks:
        print(
            f"{'ok  ' if check.passed else 'FAIL'}  {check.group:52} largest error {check.error:9.2e}   "
            f"tolerance {check.tolerance:.0e}"
        )
    failed = [check.group for check in checks if not check.passed]
    print(f"{len(checks) - len(failed)} of {len(checks)} groups within tolerance")
    return 1 if failed else 0


def export(verb: cli.Export) -> int:
    """Write a trained model (its adapter merged) as others load it, or its adapter alone as peft loads it."""
    must_be_new(verb.out)
    source = resolve.model_folder(verb.model)
    if verb.adapter:
        if not (source / ADAPTER).is_file():
            raise ConfigError(f"{verb.model} has no adapter ({source} has no {ADAPTER}): export it without --adapter")
        usable(verb.out)
        for name in (ADAPTER, WEIGHTS):
            shutil.copyfile(source / name, verb.out / name)
        print(f"wrote the adapter to {verb.out}: peft.PeftModel.from_pretrained reads it")
        return 0
    model = config.Model(verb.model, dtype=resolve.export_dtype(source), device="cpu")
    merged = resolve.policy(model, merge=True)  # adapters are added in fp32, and the sum is rounded once
    usable(verb.out)
    if merged.origin is None:
        save_policy(merged, verb.out)
    else:
        save_public(merged, verb.out)
    size = sum(file.stat().st_size for file in verb.out.rglob("*") if file.is_file())
    layout = "unigrpo's own layout" if merged.origin is None else "the public layout"
    print(f"wrote {verb.out} in {layout}, {size / 1e6:,.1f} MB")
    return 0


def make_tiny(verb: cli.MakeTinyBagel) -> int:
    """Write a random BAGEL of a few MB in the public layout, with prompts and demonstrations to try recipes on."""
    must_be_new(verb.folder)
    print(make_tiny_bagel(verb.folder, seed=verb.seed))
    return 0
