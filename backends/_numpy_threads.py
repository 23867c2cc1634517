"""How many threads NumPy's matrix products have: one in small networks.

BLAS's threads wait for each other at the end of every product, and yield the processor as they do. Where products are
small a second thread gains little on a quiet machine and loses most of the time on a busy one: docs/performance.md.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from capscore.net import CapsNetSpec
from capscore.turns import alone

SMALL = 10_000_000  # multiply-adds for an image
CHOSEN = any(name.endswith("_NUM_THREADS") for name in os.environ)  # as OPENBLAS_NUM_THREADS, read when NumPy is loaded
LOCK = threading.Lock()  # of the thread that has set the number


def threads_for(spec: CapsNetSpec) -> AbstractContextManager[None]:
    """Return a context in which BLAS has one thread if the network is small and nobody has chosen a number."""
    return nullcontext() if CHOSEN or spec.multiply_adds > SMALL else _one_thread()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let BLAS have one thread. The number is the process's."""
    with alone(LOCK) as ours, _blas().limit(limits=1) if ours else nullcontext():
        yield


@functools.cache
def _blas() -> Any:
    """Return what sets the threads of the BLAS that NumPy has loaded, and of no other kind of library."""
    from threadpoolctl import ThreadpoolController  # which sets a variable of the environment when it is imported

    return ThreadpoolController().select(user_api="blas")
