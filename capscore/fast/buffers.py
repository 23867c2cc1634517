"""Arrays that are used again. A fresh large array costs page faults, which can take longer than the arithmetic in it.

An algorithm lists its slots in an enumeration: no two algorithms share one, and one that is not listed is an error.
What lies in a slot belongs to the caller only until the slot is asked for again: it is for what a function needs on the
way, never for what it returns. Each thread has its own. On a GPU, whose libraries keep freed memory themselves, every
array is fresh.
"""

from __future__ import annotations

import math
import threading
from enum import Enum
from typing import Any, Generic

import numpy as np

from capscore.ops import A, Writable

ON_A_GPU = 64  # times larger than on a CPU, where they are to stay in the cache, are blocks that are to fill a GPU

Slot = Enum | tuple[Enum, int]  # of several arrays alike, with the number of each

_kept = threading.local()


def block_bytes(x: Any, on_a_cpu: int) -> int:
    """Return how many bytes to make at a time where x lies, given how many on a CPU."""
    return on_a_cpu if str(x.device) == "cpu" else on_a_cpu * ON_A_GPU


class Buffers(Generic[A]):
    """The products, entry-by-entry products and rearrangements of a backend, into arrays that are kept in slots."""

    def __init__(self, ops: Writable[A]) -> None:
        self.ops = ops

    def take(self, slot: Slot, shape: tuple[int, ...], like: A) -> A:
        """Return an array of any content."""
        x: Any = like
        if str(x.device) != "cpu":
            return self.ops.empty(shape, like)
        kept: dict[Any, Any] = _kept.__dict__
        size, key = math.prod(shape), (slot, x.dtype)
        if key not in kept or not isinstance(like, type(kept[key])) or kept[key].shape[0] < size:
            kept[key] = None  # what was too small is let go first
            kept[key] = self.ops.empty((size,), like)
        return self.ops.reshape(kept[key][:size], shape)

    def matmul(self, slot: Slot, a: Any, b: Any) -> A:
        """Return the matrix product over the last two axes, the leading axes broadcast."""
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        return self.ops.matmul(a, b, self.take(slot, (*lead, a.shape[-2], b.shape[-1]), b))

    def multiply(self, slot: Slot, a: Any, b: Any) -> A:
        """Return a · b, entry by entry, broadcast."""
        return self.ops.multiply(a, b, self.take(slot, np.broadcast_shapes(a.shape, b.shape), b))

    def transpose(self, slot: Slot, x: A, axes: tuple[int, ...]) -> A:
        """Return `x` with its axes in the given order, contiguous: a view if it is so already."""
        y: Any = self.ops.transpose(x, axes)
        if self.ops.contiguous(y):
            return y  # type: ignore[no-any-return]
        out: Any = self.take(slot, tuple(y.shape), x)
        out[...] = y
        return out  # type: ignore[no-any-return]


class Fresh(Generic[A]):
    """The same over ops whose results cannot be written into, such as those of a graph: every result is its own."""

    def __init__(self, ops: Any) -> None:
        self.ops = ops

    def matmul(self, slot: Slot, a: A, b: A) -> A:
        """Return the matrix product."""
        return self.ops.matmul(a, b)  # type: ignore[no-any-return]

    def transpose(self, slot: Slot, x: A, axes: tuple[int, ...]) -> A:
        """Return `x` with its axes in the given order."""
        return self.ops.transpose(x, axes)  # type: ignore[no-any-return]
