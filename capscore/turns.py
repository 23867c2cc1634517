"""Reading and changing a network's parameters in turns: whoever reads sees one whole set of them.

And `alone`, for numbers of the whole process.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Turns:
    """Many threads may read at once; one that changes waits for them, and those that come later wait for it.

    A thread may read while it reads already, and may change what it reads itself.
    """

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._readers: Counter[int] = Counter()  # by thread, how often it reads at this moment
        self._waiting = 0  # threads that want to change

    def __reduce__(self) -> Any:
        """Return how to make one for a copy of a network: nobody reads that yet."""
        return Turns, ()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let nothing change meanwhile."""
        me = threading.get_ident()
        with self._turn:
            self._turn.wait_for(lambda: me in self._readers or not self._waiting)
            self._readers[me] += 1
        try:
            yield
        finally:
            with self._turn:
                self._readers[me] -= 1
                if not self._readers[me]:
                    del self._readers[me]
                    self._turn.notify_all()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Let nobody else read meanwhile."""
        me = threading.get_ident()
        with self._turn:  # held throughout: nobody begins to read
            self._waiting += 1
            try:
                self._turn.wait_for(lambda: not self._readers.keys() - {me})
                yield
            finally:
                self._waiting -= 1
                self._turn.notify_all()


@contextmanager
def alone(lock: threading.Lock) -> Iterator[bool]:
    """Hold `lock` if nobody does, without waiting, and tell whether it is held here.

    For a number of the process: the context that holds its lock sets it and puts it back, those inside it or beside it
    leave it alone.
    """
    ours = lock.acquire(blocking=False)
    try:
        yield ours
    finally:
        if ours:
            lock.release()
