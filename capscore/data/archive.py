"""NumPy archives, .npz files, read as the untrusted input they are."""

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from capscore.data.arrays import LAYOUT_TEXT, channels_last, layout_of
from capscore.data.dataset import Dataset
from capscore.data.labels import check_count, settled
from capscore.data.memory import Budget
from capscore.data.split import Rule
from capscore.data.stream import CHUNK, read_up_to
from capscore.errors import DataError

OBJECT = 100  # bytes of a string of Python beside its characters
MAX_HEADER = 10_000  # bytes of a member that may be its header, enough for any array of numbers or strings


def read_npz(path: Path, size: tuple[int, int, int] | None, rule: Rule, memory: Budget) -> tuple[Dataset, Dataset]:
    """Read (train, test) from an archive whose arrays are named as one of LAYOUTS.

    Images are uint8 or floats in [0, 1], of shape [N, H, W], [N, C, H, W] or [N, H, W, C]. Four dimensions are
    channels-last if they fit `size` (C, H, W) only so, or if the last one looks like channels: 1, 3, or the smallest.
    Labels are as `capscore.data.labels.settled` takes them: [N], [N, 1], one-hot [N, J], or flags [N, J] where images
    show several classes. `classes` are the class names, of label 0 first, or of label 1 where labels go from 1 to their
    number; without it the numbers that occur are the names. A single set is split by `rule`. Memory grows with
    what the file really holds, never with what its headers claim.
    """
    try:
        with File(path) as file, zipfile.ZipFile(file) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            layout = layout_of(members)
            if layout is None:
                raise DataError(f"has the arrays {[*members][:8]}: name them {LAYOUT_TEXT}")
            names = members.get("classes")
            memory.check(sum(members[key].file_size for key in layout), "which declares as much, the archive")
            images = [_images(archive, members[key], size, memory) for key in layout[::2]]
            labels = [read_array(archive, members[key], memory) for key in layout[1::2]]
            called = None if names is None else _names(archive, names, memory)
            classes, labels, notes = settled(labels, called, memory)
    except DataError:
        raise
    except Exception as error:  # zipfile and numpy's header parser raise nearly anything on a damaged file
        raise DataError(f"cannot be read ({error!s:.200}): write it again with numpy.savez") from error
    sets = [Dataset(x, y, classes, notes=notes) for x, y in zip(images, labels, strict=True)]
    if len(sets) == 2:
        return sets[0], sets[1]
    memory.take(images[0].nbytes + labels[0].nbytes, "the archive, of which the two parts are copies,")
    return rule(sets[0])


class File(io.FileIO):
    """A file of which no more than a piece is read at once: zipfile would read a directory of any size at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes, DataError for more than a piece."""
        data = super().read(size if size is not None and 0 <= size <= CHUNK else CHUNK + 1) or b""
        if len(data) > CHUNK:
            raise DataError(f"has a directory of more than {CHUNK:,} bytes: write it again with numpy.savez")
        return data


def read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, memory: Budget) -> NDArray[Any]:
    """Read the array of numbers or strings that a member is. Raises DataError, ValueError or an error of zipfile."""
    name = member.filename
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # zipfile unpacks the others without a bound on memory, and numpy writes only these two.
        raise DataError(f"{name} has zip method {member.compress_type}: write it with numpy.savez_compressed")
    with archive.open(member) as stream:
        head = io.BytesIO(stream.read(MAX_HEADER))
        first = npy.read_magic(head) == (1, 0)
        shape, fortran, dtype = (npy.read_array_header_1_0 if first else npy.read_array_header_2_0)(head)
        if dtype.kind not in "iufbU" or dtype.itemsize == 0:
            raise DataError(f"{name} holds {dtype!s:.80}: store numbers, or strings for the class names")
        held = member.file_size - head.tell()
        if 0 in shape or math.prod(shape) * dtype.itemsize != held:
            raise DataError(f"{name} declares {dtype} {shape!s:.80} but holds {held:,} bytes: write it again")
        stream.seek(0)
        data = read_up_to(stream, member.file_size, memory, name)
    return np.frombuffer(data, dtype, offset=head.tell()).reshape(shape, order="F" if fortran else "C")


def _images(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: tuple[int, int, int] | None, memory: Budget
) -> NDArray[Any]:
    with memory.passing():
        array = _channels_first(read_array(archive, member, memory), size)
        if array.dtype.kind == "f" and array.dtype != np.float32:
            memory.take(4 * array.size, member.filename)
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows float32 fails the range check
                array = array.astype(np.float32, order="C")
        elif not array.flags.c_contiguous:
            memory.take(array.nbytes, member.filename)
            array = np.ascontiguousarray(array)
    memory.take(array.nbytes, member.filename)
    return array


def _channels_first(array: NDArray[Any], size: tuple[int, int, int] | None) -> NDArray[Any]:
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4:
        array = np.moveaxis(array, 3, 1) if channels_last(array.shape, size) else array
    return array


def _names(archive: zipfile.ZipFile, member: zipfile.ZipInfo, memory: Budget) -> tuple[str, ...]:
    names = read_array(archive, member, memory)
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(f"classes are {names.dtype} {names.shape}: store strings, one for each class")
    check_count(len(names))
    memory.take(names.nbytes + OBJECT * len(names), member.filename)
    letters = np.ascontiguousarray(names).view(np.dtype(np.uint32).newbyteorder(names.dtype.byteorder))
    if np.any((letters > 0x10FFFF) | (letters >> 11 == 0xD800 >> 11)):  # no Unicode at all, or half a pair of UTF-16
        raise DataError("classes hold characters that are not Unicode: store the names again")
    return tuple(names.tolist())
