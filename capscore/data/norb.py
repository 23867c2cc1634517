"""smallNORB: stereo photographs of toys, in the binary matrix format of its authors.

A file is a magic number, the number of dimensions, their sizes (at least three are written, whatever the
number) and the entries, all little endian.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from capscore.data.dataset import Dataset
from capscore.data.memory import Budget
from capscore.data.progress import track
from capscore.data.stream import opened, read_up_to
from capscore.errors import DataError

MAGIC: dict[int, np.dtype[Any]] = {0x1E3D4C55: np.dtype("u1"), 0x1E3D4C54: np.dtype("<i4")}
PARTS = ("5x46789x9x18x6x2x96x96-training", "5x01235x9x18x6x2x96x96-testing")
PAIR = (2, 96, 96)
BLOCK = 128  # pairs that are read at once


def read_norb(folder: Path, classes: tuple[str, ...], memory: Budget) -> tuple[Dataset, Dataset]:
    """Read (train, test) from the four files smallnorb-…-{dat,cat}.mat[.gz] in `folder`.

    Images are uint8 [N, 2, 48, 48], both eyes as channels: the means of 2×2 of the 96×96 pixels, as the paper
    halves them. Raises DataError if a file is missing or damaged.
    """
    train, test = (_read_part(folder, part, classes, memory) for part in PARTS)
    return train, test


def read_matrix(path: str | Path, memory: Budget | None = None) -> NDArray[np.uint8] | NDArray[np.int32]:
    """Read a matrix of bytes or of 32-bit integers, gzipped or not, of the 1 to 8 dimensions it declares."""
    memory = memory or Budget()
    with _matrix(path, memory) as (stream, dtype, shape):
        array: NDArray[np.uint8] | NDArray[np.int32] = _entries(stream, path, dtype, shape, memory)
        _ended(stream, path)
        return array


@contextmanager
def _matrix(path: str | Path, memory: Budget) -> Iterator[tuple[IO[bytes], np.dtype[Any], tuple[int, ...]]]:
    """Open a matrix behind its header: its stream, dtype and shape."""
    with opened(path) as stream:
        head = np.frombuffer(read_up_to(stream, 8, memory, path).ljust(8, b"\0"), "<u4").tolist()
        if head[0] not in MAGIC:
            raise DataError(
                f"{path} begins with 0x{head[0]:08X}: a matrix of bytes begins with 0x1E3D4C55, one of integers "
                "with 0x1E3D4C54; fetch the file again"
            )
        if not 1 <= head[1] <= 8:
            raise DataError(f"{path} declares {head[1]:,} dimensions: there must be 1 to 8, fetch the file again")
        written = 4 * max(3, head[1])
        sizes = read_up_to(stream, written, memory, path)
        if len(sizes) < written:
            raise DataError(f"{path} ends within its header: fetch the file again")
        shape = tuple(np.frombuffer(sizes, "<i4").tolist()[: head[1]])
        dtype = MAGIC[head[0]]
        if min(shape) < 1:
            raise DataError(f"{path} declares {shape}: every size must be at least 1, fetch the file again")
        yield stream, dtype, shape


def _entries(
    stream: IO[bytes], path: str | Path, dtype: np.dtype[Any], shape: tuple[int, ...], memory: Budget
) -> NDArray[Any]:
    size = math.prod(shape) * dtype.itemsize
    memory.check(size, f"{path}, which declares {shape},")
    data = read_up_to(stream, size, memory, path)
    if len(data) < size:
        raise DataError(f"{path} ends {size - len(data):,} bytes too early: fetch the file again")
    return np.frombuffer(data, dtype).reshape(shape)


def _ended(stream: IO[bytes], path: str | Path) -> None:
    if stream.read(1):
        raise DataError(f"{path} holds more than it declares: fetch the file again")


def _read_part(folder: Path, part: str, classes: tuple[str, ...], memory: Budget) -> Dataset:
    pictures, categories = _find(folder, f"{part}-dat"), _find(folder, f"{part}-cat")
    images, labels = _halved(pictures, memory), read_matrix(categories, memory)
    if labels.shape != images.shape[:1] or labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"{categories} holds {labels.dtype} {labels.shape} from {labels.min()} to {labels.max()}: {len(images):,} "
            f"pairs need as many categories from 0 to {len(classes) - 1}, fetch the file again"
        )
    memory.take(8 * len(labels), categories)
    return Dataset(images, labels.astype(np.int64), classes)


def _find(folder: Path, part: str) -> Path:
    name = f"smallnorb-{part}.mat"
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
    if path is None:
        raise DataError(
            f"{folder} has no {name} or {name}.gz: put the files there, or leave out --data-dir and "
            "CAPSCORE_DATA to download them"
        )
    return path


def _halved(path: Path, memory: Budget) -> NDArray[np.uint8]:
    with _matrix(path, memory) as (stream, dtype, shape):
        if dtype != np.uint8 or shape[1:] != PAIR:
            raise DataError(f"{path} holds {dtype} {shape}: the pictures are bytes of [N, 2, 96, 96], fetch it again")
        halved = bytearray()
        for start in track(range(0, shape[0], BLOCK), path.name):
            with memory.passing():
                block = _entries(stream, path, dtype, (min(BLOCK, shape[0] - start), *PAIR), memory)
                memory.take(2 * block.nbytes, path)
                sums = block.reshape(-1, 2, 48, 2, 48, 2).sum(axis=(3, 5), dtype=np.uint16)
                halved += ((sums + 2) // 4).astype(np.uint8).tobytes()
            memory.take(block.nbytes // 4, path)
        _ended(stream, path)
    return np.frombuffer(halved, np.uint8).reshape(-1, 2, 48, 48)
