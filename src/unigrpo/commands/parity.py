"""The verb ``parity``: this BAGEL against reference numbers of the original code."""

from __future__ import annotations

from unigrpo import options, output
from unigrpo.tools.parity import parity


def run(verb: options.Parity) -> int:
    """Print one line per group of reference numbers; 1 if any is out of tolerance."""
    checks = parity.run(verb.folder)
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
