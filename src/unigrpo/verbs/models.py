"""The verbs about models as files: parity with the original's numbers, and a tiny BAGEL to try things with."""

from __future__ import annotations

from pathlib import Path

from unigrpo import cli, output
from unigrpo.models.bagel import parity
from unigrpo.models.bagel.tiny import full_autoencoder_bytes, make_tiny_bagel
from unigrpo.verbs.folders import must_be_new


def check_parity(folder: Path) -> int:
    """Print one line per group of reference numbers; 1 if any is out of tolerance."""
    checks = parity.run(folder)
    for check in checks:
        print(
            f"{'ok  ' if check.passed else 'FAIL'}  {check.group:52} largest error {check.error:9.2e}   "
            f"tolerance {check.tolerance:.0e}"
        )
    failed = [check.group for check in checks if not check.passed]
    rows = [{"group": c.group, "error": c.error, "tolerance": c.tolerance, "passed": c.passed} for c in checks]
    passed = len(checks) - len(failed)
    output.result(f"{passed} of {len(checks)} groups within tolerance", checks=rows, passed=passed, failed=failed)
    return 1 if failed else 0


def make_tiny(verb: cli.MakeTinyBagel) -> int:
    """Write a random BAGEL in the public layout, with prompts and demonstrations to try recipes on."""
    must_be_new(verb.folder)
    if verb.full_autoencoder:
        size = full_autoencoder_bytes()
        print(f"its autoencoder in the sizes of FLUX takes {size / 1e6:.0f} MB", flush=True)
    told = make_tiny_bagel(verb.folder, seed=verb.seed, full_autoencoder=verb.full_autoencoder)
    output.result(str(told), wrote=str(verb.folder))
    return 0
