"""Freed memory is used again by the next tensor, where glibc can be told so, and a person's own settings win."""

import os
import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from unigrpo import heap
kept = heap.keep_freed_memory() if sys.argv[1] == "keep" else None
def work():
    parts = [torch.ones(2**21) for _ in range(12)]  # 8 MiB each
work()
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 12 * 2**23 // 4096


def counted(how, **settings):
    """What ``keep_freed_memory`` said, and the pages that had to be fetched again."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", COUNT, how]
    kept, faults = subprocess.run(
        command, env={**plain, **settings}, check=True, capture_output=True, text=True
    ).stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_pages_are_fetched_once():
    assert counted("keep")[0] == "True" and counted("keep")[1] < PAGES / 4
    assert counted("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
