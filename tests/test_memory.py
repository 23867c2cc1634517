"""Memory that a process keeps for its next step: see `capscore.memory`."""

from __future__ import annotations

import sys

import pytest
from test_waiting import python

CODE = """
import resource, numpy as np
from contextlib import nullcontext
from capscore.memory import kept

def pages(context):
    with context:
        for count in (2, 10):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(count):
                np.ones((40, 2**20), np.uint8) + np.ones((40, 2**20), np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(pages(nullcontext()), pages(kept()), pages(nullcontext()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_pages_are_kept_within_and_given_back_after() -> None:
    """Ten sums of arrays of 40 MiB touch 300,000 pages of 4 KiB that the kernel gives anew, and none of those kept."""
    before, within, after = (int(x) for x in python(CODE)[0].split())
    assert before > 1000  # of 2 MiB, where the kernel takes large ones
    assert within < before / 50
    assert after > before / 2


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_an_allocator_that_is_set_is_respected() -> None:
    before, within, _ = (int(x) for x in python(CODE, MALLOC_MMAP_THRESHOLD_=str(2**20))[0].split())
    assert within > before / 2
