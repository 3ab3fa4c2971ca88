"""Where tensors of the CPU come from: memory that was freed is kept for the next tensor of that size."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""What glibc's mallopt calls them."""
KEPT, LARGEST = 512 * 2**20, 32 * 2**20
"""Bytes: freed memory that is kept at most at the end of the heap, and the largest block that is taken from it."""


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep freed memory (at most ``KEPT``) for the whole process; False where there is nothing to set.

    By default blocks of some MB go back to the system when a tensor is freed, and every page of the next tensor is
    fetched and zeroed again: a fifth of the time of small models. Settings of one's own win (``MALLOC_...`` and
    ``GLIBC_TUNABLES`` in the environment).
    """
    own = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if own or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_THRESHOLD, LARGEST)) and bool(mallopt(TRIM_THRESHOLD, KEPT))
