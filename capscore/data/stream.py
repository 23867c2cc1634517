"""Bytes from files of strangers: unpacked on the way, and held only as they arrive."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from capscore.data.memory import Budget
from capscore.errors import DataError

CHUNK = 1 << 20  # bytes read at once


@contextmanager
def opened(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacking it if it is gzipped. Whatever is wrong with it ends in DataError."""
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield cast(IO[bytes], gzip.GzipFile(fileobj=file)) if zipped else file
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch the file again") from error


def read_up_to(stream: IO[bytes], count: int, memory: Budget, what: object) -> bytearray:
    """Read up to `count` bytes, taken from the budget as they arrive, so that a lying header costs no memory."""
    data = bytearray()
    while len(data) < count and (chunk := stream.read(min(CHUNK, count - len(data)))):
        memory.take(len(chunk), what)
        data += chunk
    return data
