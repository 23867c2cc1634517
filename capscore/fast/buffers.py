"""Arrays that are used again. A fresh large array costs page faults, which can take longer than the arithmetic in it.

What is computed here belongs to the caller only until the same name is asked for again: it is for what a function
needs on the way, never for what it returns. Each thread has its own. On a GPU, whose libraries keep freed memory
themselves, every array is fresh.
"""

from __future__ import annotations

import math
import threading
from typing import Any, Generic

import numpy as np

from capscore.ops import A, Writable

ON_A_GPU = 64  # times larger than on a CPU, where they are to stay in the cache, are blocks that are to fill a GPU

_kept = threading.local()


def block_bytes(x: Any, on_a_cpu: int) -> int:
    """Return how many bytes to make at a time where x lies, given how many on a CPU."""
    return on_a_cpu if str(x.device) == "cpu" else on_a_cpu * ON_A_GPU


class Buffers(Generic[A]):
    """The products, entry-by-entry products and rearrangements of a backend, into arrays that are kept by name."""

    def __init__(self, ops: Writable[A]) -> None:
        self.ops = ops

    def take(self, name: str, shape: tuple[int, ...], like: A) -> A:
        """Return an array of any content."""
        x: Any = like
        if str(x.device) != "cpu":
            return self.ops.empty(shape, like)
        kept, size, key = _kept.__dict__, math.prod(shape), f"{name} {x.dtype}"
        if key not in kept or not isinstance(like, type(kept[key])) or kept[key].shape[0] < size:
            kept[key] = None  # what was too small is let go first
            kept[key] = self.ops.empty((size,), like)
        return self.ops.reshape(kept[key][:size], shape)

    def matmul(self, name: str, a: Any, b: Any) -> A:
        """Return the matrix product over the last two axes, the leading axes broadcast."""
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        return self.ops.matmul(a, b, self.take(name, (*lead, a.shape[-2], b.shape[-1]), b))

    def multiply(self, name: str, a: Any, b: Any) -> A:
        """Return a · b, entry by entry, broadcast."""
        return self.ops.multiply(a, b, self.take(name, np.broadcast_shapes(a.shape, b.shape), b))

    def transpose(self, name: str, x: A, axes: tuple[int, ...]) -> A:
        """Return `x` with its axes in the given order, contiguous: a view if it is so already."""
        y: Any = self.ops.transpose(x, axes)
        if self.ops.contiguous(y):
            return y  # type: ignore[no-any-return]
        out: Any = self.take(name, tuple(y.shape), x)
        out[...] = y
        return out  # type: ignore[no-any-return]


class Fresh(Generic[A]):
    """The same over ops whose results cannot be written into, such as those of a graph: every result is its own."""

    def __init__(self, ops: Any) -> None:
        self.ops = ops

    def matmul(self, name: str, a: A, b: A) -> A:
        """Return the matrix product."""
        return self.ops.matmul(a, b)  # type: ignore[no-any-return]

    def transpose(self, name: str, x: A, axes: tuple[int, ...]) -> A:
        """Return `x` with its axes in the given order."""
        return self.ops.transpose(x, axes)  # type: ignore[no-any-return]
