"""NumPy archives, .npz files, read as the untrusted input they are."""

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from capscore.data.classes import numbered
from capscore.data.dataset import Dataset
from capscore.data.memory import Budget
from capscore.data.split import Rule
from capscore.data.stream import CHUNK, read_up_to
from capscore.errors import DataError

MAX_CLASSES = 1 << 16
OBJECT = 100  # bytes of a string of Python beside its characters
MAX_HEADER = 10_000  # bytes of a member that may be its header, enough for any array of numbers or strings

LAYOUTS = (
    ("images", "labels"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
)
LAYOUT_TEXT = "; or ".join(map(", ".join, LAYOUTS))


def read_npz(path: Path, size: tuple[int, int, int] | None, rule: Rule, memory: Budget) -> tuple[Dataset, Dataset]:
    """Read (train, test) from an archive whose arrays are named as one of LAYOUTS.

    Images are uint8 or floats in [0, 1], of shape [N, H, W], [N, C, H, W] or [N, H, W, C] with C 1 or 3. Four
    dimensions are channels-last if they fit `size` (C, H, W) only so, or if only the last one is 1 or 3.
    Labels are integers [N]. `classes` are the class names, of label 0 first, or of label 1 where labels go from 1 to
    their number; without it the numbers that occur are the names. A single set is split by `rule`. Memory grows with
    what the file really holds, never with what its headers claim.
    """
    try:
        with File(path) as file, zipfile.ZipFile(file) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            layout = next((keys for keys in LAYOUTS if members.keys() >= {*keys}), None)
            if layout is None:
                raise DataError(f"has the arrays {[*members][:8]}: name them {LAYOUT_TEXT}")
            names = members.get("classes")
            memory.check(sum(members[key].file_size for key in layout), "which declares as much, the archive")
            images = [_images(archive, members[key], size, memory) for key in layout[::2]]
            labels = [_labels(archive, members[key], memory) for key in layout[1::2]]
            called = None if names is None else _names(archive, names, memory)
            classes, labels, notes = _named(labels, called, memory)
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
        if dtype.kind not in "iufU" or dtype.itemsize == 0:
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
        _, first, middle, last = array.shape
        if size in ((first, middle, last), (last, first, middle)):
            channels_last = size != (first, middle, last)
        elif first in (1, 3) or last in (1, 3):
            channels_last = first not in (1, 3)
        else:
            raise DataError(f"images have shape {array.shape}: store [N, C, H, W] or [N, H, W, C], C 1 or 3")
        array = np.moveaxis(array, 3, 1) if channels_last else array
    return array


def _labels(archive: zipfile.ZipFile, member: zipfile.ZipInfo, memory: Budget) -> NDArray[np.int64]:
    with memory.passing():
        array = read_array(archive, member, memory)
        if array.dtype.kind not in "iu":
            raise DataError(f"labels are {array.dtype}: store integers, numbered from 0")
        memory.take(8 * array.size, member.filename)
        labels = array.astype(np.int64)
    memory.take(labels.nbytes, member.filename)
    return labels


def _named(
    labels: list[NDArray[np.int64]], names: tuple[str, ...] | None, memory: Budget
) -> tuple[tuple[str, ...], list[NDArray[np.int64]], tuple[str, ...]]:
    """Return the class names, the labels as indices into them, and a note where they were not so already."""
    with memory.passing():
        memory.take(3 * sum(array.nbytes for array in labels), "the labels and what is made of them,")
        numbers = np.unique(np.concatenate([array.ravel() for array in labels]))
        count = len(numbers if names is None else names)
        _check_count(count)
        if names is not None:
            if (numbers[0], numbers[-1]) != (1, count):
                return names, labels, ()
            note = f"the labels go from 1 to {count}: 1 is taken for {names[0]}, the first of the class names"
            return names, [array - 1 for array in labels], (note,)
        called = tuple(map(str, numbers.tolist()))
        if called == numbered(count) or numbers[0] < 0:
            return numbered(count), labels, ()
        note = f"labels are {numbers[0]} to {numbers[-1]}: the {count} numbers that occur are the names of the classes"
        return called, [np.searchsorted(numbers, array) for array in labels], (note,)


def _names(archive: zipfile.ZipFile, member: zipfile.ZipInfo, memory: Budget) -> tuple[str, ...]:
    names = read_array(archive, member, memory)
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(f"classes are {names.dtype} {names.shape}: store strings, one for each class")
    _check_count(len(names))
    memory.take(names.nbytes + OBJECT * len(names), member.filename)
    letters = np.ascontiguousarray(names).view(np.dtype(np.uint32).newbyteorder(names.dtype.byteorder))
    if np.any((letters > 0x10FFFF) | (letters >> 11 == 0xD800 >> 11)):  # no Unicode at all, or half a pair of UTF-16
        raise DataError("classes hold characters that are not Unicode: store the names again")
    return tuple(names.tolist())


def _check_count(classes: int) -> None:
    if classes > MAX_CLASSES:
        raise DataError(f"{classes:,} classes: up to {MAX_CLASSES:,} are possible")
