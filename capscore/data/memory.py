"""How much memory reading may hold: one budget, which every reader asks before it allocates."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from capscore.errors import DataError, short

VARIABLE = "CAPSCORE_MEMORY"
DEFAULT = 4 << 30
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Budget:
    """The bytes that reading holds, and may hold.

    Parameters
    ----------
    memory
        The limit: bytes, or text such as "8G" (K, M, G and T are powers of 1024). Without it the variable
        CAPSCORE_MEMORY, and without both 4 GiB.

    Raises
    ------
    DataError
        The limit is no such number.
    """

    def __init__(self, memory: int | str | None = None) -> None:
        self.limit = _bytes(memory if memory is not None else os.environ.get(VARIABLE) or DEFAULT)
        self.held = 0

    def check(self, count: int, what: object) -> None:
        """Raise DataError unless `what` may hold `count` bytes beside all that is held."""
        if self.held + count > self.limit:
            raise DataError(
                f"{what} needs {count:,} bytes of memory beside the {self.held:,} in use: the limit is "
                f"{self.limit:,}. If you trust the file, set {VARIABLE} to more, such as 8G, or pass memory="
            )

    def take(self, count: int, what: object) -> None:
        """Hold `count` bytes more, from now on. Raises DataError if they are too many."""
        self.check(count, what)
        self.held += count

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Give back, in the end, all that is taken inside. What remains of it is to be taken again."""
        before = self.held
        try:
            yield
        finally:
            self.held = before


def _bytes(memory: int | str) -> int:
    found = re.fullmatch(r"([0-9]{1,18}) ?([KMGT]?)(i?B)?", str(memory).strip(), re.IGNORECASE)
    count = int(found[1]) * UNITS[found[2].upper()] if found else 0
    if count < 1:
        raise DataError(f"a memory limit of {short(memory)}: give a number of bytes, or one such as 500M or 8G")
    return count
