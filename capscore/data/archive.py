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
from capscore.data.split import Rule
from capscore.data.stream import read_up_to
from capscore.errors import DataError

MAX_BYTES = 4 << 30
MAX_CLASSES = 1 << 16
MAX_HEADER = 10_000  # bytes of a member that may be its header, enough for any array of numbers or strings

LAYOUTS = (
    ("images", "labels"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
)
LAYOUT_TEXT = "; or ".join(map(", ".join, LAYOUTS))


def read_npz(path: Path, size: tuple[int, int, int] | None, rule: Rule) -> tuple[Dataset, Dataset]:
    """Read (train, test) from an archive whose arrays are named as one of LAYOUTS.

    Images are uint8 or floats in [0, 1], of shape [N, H, W], [N, C, H, W] or [N, H, W, C] with C 1 or 3. Four
    dimensions are channels-last if they fit `size` (C, H, W) only so, or if only the last one is 1 or 3.
    Labels are integers [N]. `classes` are the class names, of label 0 first, or of label 1 where labels go from 1 to
    their number; without it the numbers that occur are the names. A single set is split by `rule`. Memory grows with
    what the file really holds, never with what its headers claim.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            layout = next((keys for keys in LAYOUTS if members.keys() >= {*keys}), None)
            if layout is None:
                raise DataError(f"has the arrays {[*members][:8]}: name them {LAYOUT_TEXT}")
            keys = [*layout, "classes"] if "classes" in members else [*layout]
            total = sum(members[key].file_size for key in keys)
            if total > MAX_BYTES:
                raise DataError(f"declares {total:,} bytes: up to {MAX_BYTES:,} can be read, split the file")
            arrays = {key: _read_array(archive, members[key]) for key in keys}
    except DataError:
        raise
    except Exception as error:  # zipfile and numpy's header parser raise nearly anything on a damaged file
        raise DataError(f"cannot be read ({error!s:.200}): write it again with numpy.savez") from error
    labels = [_labels(arrays[key]) for key in layout[1::2]]
    classes, labels, notes = _classes(arrays.get("classes"), labels)
    pairs = zip(layout[::2], labels, strict=True)
    sets = [Dataset(_images(arrays[key], size), y, classes, notes=notes) for key, y in pairs]
    return rule(sets[0]) if len(sets) == 1 else (sets[0], sets[1])


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    name = member.filename
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # zipfile unpacks the others without a bound on memory, and numpy writes only these two.
        raise DataError(f"{name} has zip method {member.compress_type}: write it with numpy.savez_compressed")
    with archive.open(member) as stream:
        head = io.BytesIO(read_up_to(stream, MAX_HEADER))
        first = npy.read_magic(head) == (1, 0)
        shape, fortran, dtype = (npy.read_array_header_1_0 if first else npy.read_array_header_2_0)(head)
        if dtype.kind not in "iufU" or dtype.itemsize == 0:
            raise DataError(f"{name} holds {dtype!s:.80}: store numbers, or strings for the class names")
        held = member.file_size - head.tell()
        if 0 in shape or math.prod(shape) * dtype.itemsize != held:
            raise DataError(f"{name} declares {dtype} {shape!s:.80} but holds {held:,} bytes: write it again")
        stream.seek(0)
        data = read_up_to(stream, member.file_size)
    return np.frombuffer(data, dtype, offset=head.tell()).reshape(shape, order="F" if fortran else "C")


def _images(array: NDArray[Any], size: tuple[int, int, int] | None) -> NDArray[Any]:
    if array.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows float32 fails the range check
            array = array.astype(np.float32, copy=False)
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
    return np.ascontiguousarray(array)


def _labels(array: NDArray[Any]) -> NDArray[np.int64]:
    if array.dtype.kind not in "iu":
        raise DataError(f"labels are {array.dtype}: store integers, numbered from 0")
    return array.astype(np.int64)


def _classes(
    names: NDArray[Any] | None, labels: list[NDArray[np.int64]]
) -> tuple[tuple[str, ...], list[NDArray[np.int64]], tuple[str, ...]]:
    """Return the class names, the labels as indices into them, and a note where they were not so already."""
    if names is not None and (names.dtype.kind != "U" or names.ndim != 1):
        raise DataError(f"classes are {names.dtype} {names.shape}: store strings, one for each class")
    numbers = np.unique(np.concatenate([array.ravel() for array in labels]))
    count = len(numbers if names is None else names)
    if count > MAX_CLASSES:
        raise DataError(f"{count:,} classes: up to {MAX_CLASSES:,} are possible")
    if names is not None:
        called = tuple(map(str, names.tolist()))
        if (numbers[0], numbers[-1]) != (1, count):
            return called, labels, ()
        note = f"the labels go from 1 to {count}: 1 is taken for {called[0]}, the first of the class names"
        return called, [array - 1 for array in labels], (note,)
    called = tuple(map(str, numbers.tolist()))
    if called == numbered(count) or numbers[0] < 0:
        return numbered(count), labels, ()
    note = f"the labels are {numbers[0]} to {numbers[-1]}: the {count} numbers that occur are the names of the classes"
    return called, [np.searchsorted(numbers, array) for array in labels], (note,)
