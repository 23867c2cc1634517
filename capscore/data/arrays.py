"""What the parts of a dataset are called where each is an array, and arrays in .npy files of their own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from capscore.data.dataset import Dataset
from capscore.data.labels import settled
from capscore.data.memory import Budget
from capscore.data.rows import HELD, Rows, Store
from capscore.data.split import Rule
from capscore.errors import DataError

LAYOUTS = (
    ("images", "labels"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
)
LAYOUT_TEXT = "; or ".join(map(", ".join, LAYOUTS))

Size = tuple[int, int, int]


def layout_of(names: Any) -> tuple[str, ...] | None:
    """Return the layout whose names are all there."""
    found = {*names}
    return next((keys for keys in LAYOUTS if found >= {*keys}), None)


def channels_last(shape: tuple[int, ...], size: Size | None) -> bool:
    """Whether images [N, …, …, …] have their channels last: as `size` has it, else where there are fewest."""
    _, first, middle, last = shape
    if size in ((first, middle, last), (last, first, middle)):
        return size != (first, middle, last)
    if first in (1, 3) or last in (1, 3):
        return first not in (1, 3)
    if min(first, last) >= middle or first == last:
        raise DataError(
            f"images have shape {shape}: store [N, C, H, W] or [N, H, W, C], with fewer channels than pixels"
        )
    return last < first


def read_npy_folder(folder: Path, size: Size | None, rule: Rule, memory: Budget) -> tuple[Dataset, Dataset]:
    """Read (train, test) from .npy files named as one of LAYOUTS. Large ones stay on disk, and are read in batches."""
    layout = layout_of(path.stem for path in folder.glob("*.npy"))
    if layout is None:
        raise DataError(f"{folder} has .npy files, but not those of a dataset: name them {LAYOUT_TEXT}")
    images = [_images(folder / f"{key}.npy", size, memory) for key in layout[::2]]
    labels = [_read(folder / f"{key}.npy", memory) for key in layout[1::2]]
    classes, labels, notes = settled(labels, None, memory)
    sets = [Dataset(x, y, classes, notes=notes) for x, y in zip(images, labels, strict=True)]
    if len(sets) == 2:
        return sets[0], sets[1]
    memory.take(images[0].nbytes, folder)  # the two parts are copies
    return rule(sets[0])


def _images(path: Path, size: Size | None, memory: Budget) -> NDArray[Any] | Rows:
    shape, fortran, dtype, offset = _header(path)
    if len(shape) == 3:
        shape = (shape[0], 1, *shape[1:])
    if len(shape) != 4:
        raise DataError(f"{path} has shape {shape}: store images as [N, H, W], [N, C, H, W] or [N, H, W, C]")
    last = channels_last(shape, size)
    if dtype == np.uint8 and not fortran and math.prod(shape) > HELD:
        _, first, middle, final = shape
        each = (final, first, middle) if last else (first, middle, final)
        return Rows(Store(open(path, "rb")), dtype, each, np.arange(shape[0]), offset, last)
    array = _read(path, memory).reshape(shape)
    array = array.astype(np.float32) if array.dtype.kind == "f" else array
    return np.ascontiguousarray(np.moveaxis(array, 3, 1) if last else array)


def _read(path: Path, memory: Budget) -> NDArray[Any]:
    shape, fortran, dtype, offset = _header(path)
    memory.take(2 * math.prod(shape) * dtype.itemsize, path)
    data = np.fromfile(path, dtype, math.prod(shape), offset=offset)
    return data.reshape(shape, order="F" if fortran else "C")


def _header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    try:
        with open(path, "rb") as file:
            first = npy.read_magic(file) == (1, 0)
            shape, fortran, dtype = (npy.read_array_header_1_0 if first else npy.read_array_header_2_0)(file)
            offset = file.tell()
        held = path.stat().st_size - offset
    except Exception as error:  # numpy's header parser raises nearly anything on a damaged file
        raise DataError(f"{path} cannot be read ({error!s:.200}): write it again with numpy.save") from error
    if dtype.kind not in "iufb" or 0 in shape or math.prod(shape) * dtype.itemsize != held:
        raise DataError(
            f"{path} declares {dtype} {shape!s:.80} but holds {held:,} bytes: store numbers with numpy.save"
        )
    return shape, fortran, dtype, offset
