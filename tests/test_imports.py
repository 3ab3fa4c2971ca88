"""The command line answers at once: what it imports first does not import torch (who imports whom: `make check`)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["unigrpo", "unigrpo.options", "unigrpo.cli", "unigrpo.ranges", "unigrpo.files", "unigrpo.loading"]
)
def test_no_torch_at_import(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} does not exist")
    program = f"import sys, {module}; print(*sorted({{'torch', 'numpy', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
