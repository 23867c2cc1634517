"""Images in a file on disk, read as they are asked for: more of them than memory holds."""

from __future__ import annotations

import math
import tempfile
import threading
import weakref
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from capscore.errors import DataError

HELD = 512 << 20  # bytes of images that are held in memory; more are read from disk, batch by batch
BLOCK = 1 << 20  # bytes written at once


class Store:
    """An open file that sets of images read from; it is closed with the last of them."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.lock = file, threading.Lock()
        self.raw: Any = getattr(file, "raw", file)  # a buffer would be filled anew for every image
        weakref.finalize(self, file.close)

    def read(self, offset: int, into: NDArray[Any]) -> None:
        """Fill an array with the bytes from an offset on."""
        with self.lock:
            self.raw.seek(offset)
            count = self.raw.readinto(into.data.cast("B"))
        if count != into.nbytes:
            raise DataError("the images on disk end too early: the file was changed while it was read")


class Rows:
    """Images [N, C, H, W] in a file: indexing reads those that are asked for, as a new array.

    Nothing is kept in memory: the system's cache of files has what was read before, as far as memory is free. Parts
    of a set (`part`) share the file.

    Parameters
    ----------
    store : the file that holds the images one after the other
    dtype : of the numbers
    shape : [C, H, W] of an image, as it is read
    index : [N], which of the file's images these are
    offset : bytes before the first image
    last : whether the file has the channels last, [H, W, C]
    """

    ndim = 4

    def __init__(
        self,
        store: Store,
        dtype: Any,
        shape: tuple[int, int, int],
        index: NDArray[np.int64],
        offset: int = 0,
        last: bool = False,
    ) -> None:
        self.store, self.dtype, self.index, self.offset, self.last = store, np.dtype(dtype), index, offset, last
        self.shape = (len(index), *shape)
        self.stored = (shape[1], shape[2], shape[0]) if last else shape
        self.each = math.prod(shape) * self.dtype.itemsize

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.index)

    @property
    def nbytes(self) -> int:
        """Bytes that are held in memory: the index."""
        return self.index.nbytes

    def part(self, chosen: NDArray[Any]) -> Rows:
        """Return some of the images, by their positions or a mask [N], without reading them."""
        return Rows(self.store, self.dtype, self.shape[1:], self.index[chosen], self.offset, self.last)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read one image [C, H, W], or those of a slice or of positions: [B, C, H, W]."""
        at = np.asarray(self.index[index])
        read = self._read(at.reshape(-1))
        return read if at.ndim else read[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Go through the images."""
        return (self[i] for i in range(len(self)))

    def _read(self, at: NDArray[np.int64]) -> NDArray[Any]:
        found = np.empty((len(at), *self.stored), self.dtype)
        for i, row in enumerate(at.tolist()):
            self.store.read(self.offset + row * self.each, found[i])
        images: NDArray[Any] = np.moveaxis(found, 3, 1) if self.last else found
        return images


class Writer:
    """Takes images one after the other, and keeps them in memory or, if they are many, in a file without a name."""

    def __init__(self, count: int, shape: tuple[int, int, int]) -> None:
        self.count, self.shape, self.done = count, shape, 0
        size = count * math.prod(shape)
        self.array = np.empty((count, *shape), np.uint8) if size <= HELD else None
        try:
            self.store = None if self.array is not None else Store(tempfile.TemporaryFile(buffering=BLOCK))  # noqa: SIM115
        except OSError as error:
            raise DataError(f"{count:,} images need a file on disk: {error}") from error

    @property
    def nbytes(self) -> int:
        """Bytes that are held in memory."""
        return 8 * self.count if self.array is None else self.array.nbytes

    def add(self, image: NDArray[np.uint8]) -> None:
        """Take the next image [C, H, W]."""
        if self.array is not None:
            self.array[self.done] = image
        else:
            assert self.store is not None
            try:
                self.store.file.write(np.ascontiguousarray(image).data)
            except OSError as error:
                raise DataError(
                    f"{self.count:,} images take {self.count * image.nbytes:,} bytes in {tempfile.gettempdir()}: "
                    f"{error}; set TMPDIR to a folder with more room"
                ) from error
        self.done += 1

    def images(self) -> NDArray[np.uint8] | Rows:
        """Return all of them."""
        if self.array is not None:
            return self.array
        assert self.store is not None
        self.store.file.flush()
        return Rows(self.store, np.uint8, self.shape, np.arange(self.count))


def part(images: NDArray[Any] | Rows, chosen: NDArray[Any]) -> NDArray[Any] | Rows:
    """Return some images by their positions or a mask [N]."""
    return images.part(chosen) if isinstance(images, Rows) else images[chosen]
