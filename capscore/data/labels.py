"""Labels as arrays have them: numbers, one-hot, or flags for several classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore.data.memory import Budget
from capscore.errors import DataError
from capscore.net import numbered

MAX_CLASSES = 1 << 16

Labels = list[NDArray[Any]]  # of every set: all int64 [N], or all bool [N, J]
Settled = tuple[tuple[str, ...], Labels, tuple[str, ...]]


def settled(arrays: list[NDArray[Any]], names: tuple[str, ...] | None, memory: Budget) -> Settled:
    """Return class names, labels as indices or flags of them, and notes on what was taken for what.

    Arrays are whole numbers [N] or [N, 1]; or [N, J] of 0 and 1: one-hot if every row of every array has a single 1,
    else flags of the classes that an image shows, several or none. A single column of flags is bool.
    """
    if all(array.ndim == 2 and (array.shape[1] > 1 or array.dtype == np.bool_) for array in arrays):
        return _of_rows(arrays, names, memory)
    for array in arrays:
        if array.dtype.kind not in "iu" or (array.ndim != 1 and array.shape[1:] != (1,)):
            raise DataError(
                f"labels are {array.dtype} {array.shape}: store integers [N], numbered from 0, or 0 and 1 [N, classes]"
            )
        memory.take(8 * array.size, "labels")
    return _of_numbers([array.ravel().astype(np.int64) for array in arrays], names, memory)


def check_count(classes: int) -> None:
    """Raise DataError if these are more classes than are possible."""
    if classes > MAX_CLASSES:
        raise DataError(f"{classes:,} classes: up to {MAX_CLASSES:,} are possible")


def _of_rows(arrays: list[NDArray[Any]], names: tuple[str, ...] | None, memory: Budget) -> Settled:
    count = arrays[0].shape[1]
    check_count(count)
    for array in arrays:
        if array.shape[1] != count or not np.isin(array, (0, 1)).all():
            raise DataError(f"labels are {array.dtype} {array.shape}: rows must be {count} numbers that are 0 or 1")
        memory.take(9 * array.size, "labels")
    if names is not None and len(names) != count:
        raise DataError(f"labels have {count} columns but there are {len(names)} class names: give one for each")
    called = names or numbered(count)
    flags = [array.astype(np.bool_) for array in arrays]
    if all((each.sum(1) == 1).all() for each in flags):
        note = f"the labels are one-hot: one of {count} classes an image"
        return called, [each.argmax(1).astype(np.int64) for each in flags], (note,)
    which = f"several of {count} classes, or none" if count > 1 else "the class or not"
    return called, flags, (f"the labels are flags: an image may show {which}",)


def _of_numbers(labels: list[NDArray[np.int64]], names: tuple[str, ...] | None, memory: Budget) -> Settled:
    """Return the class names, the labels as indices into them, and a note where they were not so already."""
    with memory.passing():
        memory.take(3 * sum(array.nbytes for array in labels), "the labels and what is made of them,")
        numbers = np.unique(np.concatenate([array.ravel() for array in labels]))
        count = len(numbers if names is None else names)
        check_count(count)
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
