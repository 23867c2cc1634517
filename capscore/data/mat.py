"""MATLAB files of version 5, as far as datasets need them: arrays of numbers, alone or as fields of a struct.

Not SciPy's reader: that ends some damaged files with a segmentation fault instead of an error.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from capscore.data.memory import Budget
from capscore.data.stream import opened, read_up_to
from capscore.errors import DataError

MATRIX, COMPRESSED = 14, 15  # kinds of elements that hold others
STRUCT, NUMBERS = 2, range(6, 16)  # classes of matrices
STORED = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}


def read_mat(path: Path, *names: str, memory: Budget | None = None) -> list[NDArray[Any]]:
    """Read the arrays of these names, a field of a struct being "struct.field", in the dtypes they are stored in.

    Memory grows with what the file really holds. Raises DataError if the file or an array is missing, if it is
    damaged, of another version or too large for the memory, or if the array is not of real numbers.
    """
    memory = memory or Budget()
    arrays: dict[str, NDArray[Any]] = {}
    with opened(path) as stream:
        try:
            header = read_up_to(stream, 128, memory, path)
            if header[124:] != b"\0\1IM":
                raise DataError(
                    f"{path} is no MATLAB file of version 5, little endian: it begins with {bytes(header[:20])!r}; "
                    "fetch it again, or save it with -v7"
                )
            while tag := read_up_to(stream, 8, memory, path):
                with memory.passing():
                    content = _variable(stream, memory, path, *struct.unpack("<II", tag))
                    found = _matrix(content, names)
                if found:  # which are views of all that the variable holds
                    memory.take(len(content), path)
                del content
                arrays |= found
        except DataError:
            raise
        except (ValueError, LookupError, StopIteration, struct.error, zlib.error) as error:
            raise DataError(f"{path} is damaged ({error!s:.200}): fetch the file again") from error
    if missing := [name for name in names if name not in arrays]:
        raise DataError(f"{path} has no array of numbers {' and no '.join(missing)}: fetch the file again")
    return [arrays[name] for name in names]


class _Inflated:
    """The unpacked bytes of the next `size` of a stream."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self.stream, self.left = stream, size
        self.zlib = zlib.decompressobj()

    def read(self, count: int) -> bytes:
        while not self.zlib.eof:
            packed = self.zlib.unconsumed_tail or self.stream.read(min(1 << 16, self.left))
            if not packed:
                break
            self.left -= 0 if self.zlib.unconsumed_tail else len(packed)
            if data := self.zlib.decompress(packed, count):
                return data
        return b""


def _variable(stream: IO[bytes], memory: Budget, path: Path, kind: int, size: int) -> memoryview:
    """Return the content of the matrix that an element is, unpacked."""
    if kind != COMPRESSED:
        return _content(stream, memory, path, kind, size)
    unpacking = _Inflated(stream, size)
    inner = cast(IO[bytes], unpacking)
    content = _content(inner, memory, path, *struct.unpack("<II", read_up_to(inner, 8, memory, path)))
    if inner.read(1) or not unpacking.zlib.eof or unpacking.left:  # then the stream is at the next element
        raise ValueError("a compressed element is longer or shorter than it says")
    return content


def _content(stream: IO[bytes], memory: Budget, path: Path, kind: int, size: int) -> memoryview:
    if kind != MATRIX:
        raise ValueError(f"an element of kind {kind} and {size:,} bytes, not a matrix")
    memory.check(size, f"{path}, where a variable declares {size:,} bytes,")
    content = read_up_to(stream, size, memory, path)
    if len(content) < size:
        raise ValueError(f"it ends {size - len(content):,} bytes too early")
    return memoryview(content)


def _elements(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Go through the elements of a matrix: their kinds and bytes."""
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from("<II", content, at)
        if kind >> 16:  # a small element: the size beside the kind, then four bytes
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            start, end = at + 8, at + 8 + -(-size // 8) * 8
        if start + size > min(end, len(content)):
            raise ValueError(f"an element claims {size:,} bytes where {len(content) - start:,} are left")
        yield kind, content[start : start + size]
        at = end


def _matrix(content: memoryview, names: tuple[str, ...], outer: str = "") -> dict[str, NDArray[Any]]:
    """Those of `names` that a matrix, or the field `outer` of one, holds."""
    parts = _elements(content)
    (_, flags), (_, dimensions), (_, letters) = next(parts), next(parts), next(parts)
    kind, is_complex = flags[0], flags[1] & 8
    name = outer or bytes(letters).decode("ascii")
    if kind == STRUCT and not outer:
        (_, width), (_, labels) = next(parts), next(parts)
        step = struct.unpack("<i", width)[0]
        found: dict[str, NDArray[Any]] = {}
        for start, (inner, value) in zip(range(0, len(labels), step), parts, strict=False):
            field = f"{name}.{bytes(labels[start : start + step]).split(bytes(1))[0].decode('ascii')}"
            if field in names and inner == MATRIX:
                found |= _matrix(value, names, field)
        return found
    if name not in names or kind not in NUMBERS or is_complex:
        return {}
    stored, data = next(parts)
    shape = np.frombuffer(dimensions, "<u4").tolist()  # unsigned: -1 would mean "whatever fits"
    return {name: np.frombuffer(data, STORED[stored]).reshape(shape, order="F")}


def whole_numbers(array: NDArray[Any], path: Path, name: str, count: int, least: int, most: int) -> NDArray[np.int64]:
    """Labels [count] from an array of MATLAB's, whose numbers may be floats and whose vectors are matrices."""
    numbers = array.ravel()
    if numbers.shape != (count,) or not count:
        raise DataError(f"{path}: {name} is {array.dtype} {array.shape} for {count:,} images: fetch the file again")
    wrong = numbers[~np.isin(numbers, np.arange(least, most + 1))]
    if len(wrong):
        raise DataError(f"{path}: {name} holds {wrong[0]}, not {least} to {most} alone: fetch the file again")
    return numbers.astype(np.int64)
