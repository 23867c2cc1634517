"""Windows of a grid of capsules: where the inputs of a convolutional capsule layer lie, and who else sees them."""

from __future__ import annotations

import math
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capscore.ops import A, Index, Ops


class Sizes(NamedTuple):
    """Sizes of a grid and of the windows that are cut out of it."""

    types: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


class Windows:
    """The windows of a grid, at P positions.

    Each sees N = kernel height · kernel width · types capsules, in that order. Arrays hold the windows of all images
    one after another: [B·P, N, …].
    """

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        (t, h, w, kernel, stride, padding) = sizes
        self.height, self.width = (
            (n + 2 * p - k) // s + 1 for n, k, s, p in zip((h, w), kernel, stride, padding, strict=True)
        )
        self.positions, self.places, self.n_in = self.height * self.width, h * w, kernel[0] * kernel[1] * t

        def line(count: int, size: int, k: int, s: int, p: int) -> NDArray[Any]:
            at = np.arange(count)[:, None] * s + np.arange(k) - p  # [positions, kernel]
            return np.where((at >= 0) & (at < size), at, -1)

        y = line(self.height, h, kernel[0], stride[0], padding[0])[:, None, :, None]
        x = line(self.width, w, kernel[1], stride[1], padding[1])[None, :, None, :]
        place = np.where((y < 0) | (x < 0), -1, y * w + x).reshape(self.positions, -1, 1)  # [P, K, 1]
        self.place = Index(np.broadcast_to(place, (*place.shape[:2], t)))  # [P, K, T]: where each lies on the map
        self.capsule = Index(np.where(place < 0, -1, np.arange(t) * h * w + place))  # and which of the grid's it is
        self._of_place = Index(place)  # [P, K]

    def cut(self, ops: Ops[A], x: A, dim: int | None = None) -> A:
        """Return [B·P, N, dim] of capsules [B, types · places, dim], or without `dim` [B·P, N] of activations."""
        shape = (-1, self.n_in) if dim is None else (-1, self.n_in, dim)
        return ops.reshape(ops.take(x, self.capsule, 1), shape)

    @cached_property
    def _seen(self) -> tuple[Index, NDArray[Any]]:
        """Return by which of the P · K each place is seen, and [1, 1, places, most, 1]: 0, or -1e30 where by none."""
        index, most = self._of_place.back(self.places)
        return index, np.where(index.positions < 0, -1e30, 0.0).reshape(1, 1, self.places, most, 1)

    def softmax(self, ops: Ops[A], logits: A, n_out: int, floor: float = 0.0) -> A:
        """Return the softmax of logits [J, B·P, N] over the J types of all windows that see a capsule.

        See `Votes.over_parents`.
        """
        (index, absent), t = self._seen, self.sizes.types
        x = ops.reshape(logits, (n_out, -1, self.positions * self.n_in // t, t))  # [J, B, P·K, T]
        x = ops.reshape(ops.take(x, index, 2), (n_out, -1, self.places, absent.shape[3], t))
        if absent.any():
            x = x + ops.asarray(absent, logits)
        # Not e^(x - log Σ e^x): what a logarithm as large as the logits is rounded by would be a factor.
        largest, total = exponentials(ops, x, (0, 3), floor)  # [1, B, places, 1, T]

        def to_inputs(y: A) -> Any:
            y = ops.transpose(ops.reshape(y, (-1, self.places, t)), (0, 2, 1))
            return ops.reshape(self.cut(ops, ops.reshape(y, (-1, t * self.places))), (1, -1, self.positions, self.n_in))

        x = ops.reshape(logits, (n_out, -1, self.positions, self.n_in)) - to_inputs(largest)
        shared, there = to_inputs(total), self.capsule.there
        if there is not None:  # padding is coupled to nothing, and whatever its logits are, no exponential overflows
            absent = (~there).reshape(1, 1, self.positions, self.n_in)
            x = x + ops.asarray(absent * -1e30, logits)
            shared = shared + ops.asarray(absent * 1.0, logits)
        return ops.reshape(ops.exp(x) / shared, (n_out, -1, self.n_in))

    def divide(self, ops: Ops[A], x: A) -> A:
        """Return x [1, B·P, N] divided by how many windows see each input, 0 for padding."""
        seen = np.bincount(self.place.positions + 1, minlength=self.places + 1) // self.sizes.types
        share = 1 / np.maximum(seen, 1)
        share[0] = 0.0  # padding has no part
        by_window = ops.reshape(x, (1, -1, self.positions, self.n_in))
        of_each = share[self.place.positions + 1].reshape(1, 1, self.positions, self.n_in)
        return ops.reshape(by_window * ops.asarray(of_each, x), (1, -1, self.n_in))


@cache
def windows(sizes: Sizes) -> Windows:
    """Return the windows of these sizes, which are worked out once."""
    return Windows(sizes)


def exponentials(ops: Ops[A], x: A, axes: tuple[int, ...], floor: float = 0.0) -> tuple[A, A]:
    """Return m and max(Σ e^x, floor) / e^m over `axes`, with kept dimensions: e^(x - m) does not overflow."""
    largest = x
    for axis in axes:
        largest = ops.max(largest, axis, keepdims=True)
    if not floor:
        return largest, ops.sum(ops.exp(x - largest), axes, keepdims=True)
    largest = ops.relu(largest - math.log(floor)) + math.log(floor)
    least = ops.exp(largest * -1.0 + math.log(floor))
    return largest, ops.relu(ops.sum(ops.exp(x - largest), axes, keepdims=True) - least) + least
