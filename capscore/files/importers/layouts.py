"""Where others keep what in an array, and how it comes to where capscore keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from capscore.values import Pair

Array = NDArray[Any]


def first(rows: Array, count: int) -> Array:
    """Sort axis 0 by its last part: of rows in the order (y, x, type), with so many types, make (type, y, x).

    So the capsules of channels-last code come into capscore's order, and channels-last pixels, too.
    """
    return rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def hwio(kernel: Array) -> Array:
    """Turn a kernel [kh, kw, in, out] of TensorFlow into [out, in, kh, kw]."""
    return kernel.transpose(3, 2, 0, 1)


def window(sides: Sequence[int]) -> Pair:
    """Return a kernel's (height, width), one number if they are equal."""
    height, width = sides
    return height if height == width else (height, width)
