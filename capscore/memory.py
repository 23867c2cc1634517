"""Memory that a process keeps for its next step.

glibc gives large blocks back to the kernel when they are freed, and the kernel hands every page out again empty. A step
that allocates the same tensors as the one before pays for that with up to two fifths of its time: docs/performance.md.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .turns import alone

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3): free bytes at the heap's end, and a block, that are given back
USUAL = {TRIM_THRESHOLD: 2**26, MMAP_THRESHOLD: 2**25}  # what glibc arrives at by itself, as large blocks are freed
KEPT = {TRIM_THRESHOLD: 2**31 - 1, MMAP_THRESHOLD: 2**30}
CHOSEN = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
LOCK = threading.Lock()  # of the context that has set the numbers


@contextmanager
def kept() -> Iterator[None]:
    """Let the process keep what is freed in this context, for what is allocated next in it.

    It costs no memory at the peak. With another C library than glibc, or where the environment sets glibc's allocator
    (MALLOC_…, GLIBC_TUNABLES), nothing changes. The numbers are the process's.
    """
    with alone(LOCK) as ours:
        try:
            if ours:
                _set(KEPT)
            yield
        finally:
            if ours:
                _set(USUAL)


def _set(numbers: Mapping[int, int]) -> None:
    for which, value in numbers.items():
        _mallopt()(which, value)


@functools.cache
def _mallopt() -> Any:
    """Return glibc's function, and one that does nothing where there is none or the environment has set its numbers."""
    found = ctypes.CDLL(None) if sys.platform == "linux" and not CHOSEN else None
    return getattr(found, "mallopt", lambda which, value: None)
