"""Convolution as patches times weights, with its gradients, over NumPy arrays.

NumPy's functions run on CuPy arrays too, through NumPy's dispatch protocols; that is why new arrays are made
`like` the ones at hand. Maps keep channels last in memory, as views [B, C, H, W]: a patch is then copied in
runs of C numbers, and a convolution finds the map of the one before it as it wants it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .buffers import block_bytes

Array = NDArray[Any]
BLOCK_BYTES = 16 << 20  # of patches written out at a time: all patches of a batch would be gigabytes


def product(a: Array, b: Array, out: Array | None = None) -> Array:
    """Return the matrix product over the last two axes, written into `out` if given.

    OpenBLAS reads beyond the edges of small matrices and raises the flag for an invalid number over what it finds
    there; NumPy would warn of it, now and then, for perfectly finite ones.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        y: Array = np.matmul(a, b, out=out)
    return y


def convolve(x: Array, weight: Array, bias: Array, stride: int, padding: int, w: Array | None = None) -> Array:
    """Correlate x [B, C, H, W] with weight [O, C, k, k], plus bias [O]: a map [B, O, H', W'].

    `w` is `matrix(weight)` [k·k·C, O], if it is there already.
    """
    w = matrix(weight) if w is None else w
    windows = _windows(x, weight.shape[-1], stride, padding)
    y = np.empty_like(x, shape=(*windows.shape[:3], w.shape[1]), order="C")
    for block, patches in _patches(windows):
        product(patches, w, y[block].reshape(-1, w.shape[1]))
    y += bias
    return y.transpose(0, 3, 1, 2)


def weight_gradient(g: Array, x: Array, weight: Array, stride: int, padding: int) -> Array:
    """Return the gradient of weight [O, C, k, k] from that of the map, g [B, O, H', W']."""
    o, c, k, _ = weight.shape
    windows = _windows(x, k, stride, padding)
    g = g.transpose(0, 2, 3, 1)
    dw = np.zeros_like(weight, shape=(k, k * c, o), order="C")
    for i in range(k):  # of the kernel's rows: what blocks add to stays in the cache
        for block, patches in _patches(windows[:, :, :, i]):
            dw[i] += product(patches.T, g[block].reshape(-1, o))
    return dw.reshape(k, k, c, o).transpose(3, 2, 0, 1)


def input_gradient(g: Array, x: Array, weight: Array, stride: int, padding: int) -> Array:
    """Return the gradient of x [B, C, H, W] from that of the map, g [B, O, H', W']."""
    b, c, h, w = x.shape
    o, _, k, _ = weight.shape
    w_back = matrix(weight).T  # [O, k·k·C]
    _, _, rows, columns = g.shape
    g = g.transpose(0, 2, 3, 1)
    dx = np.zeros_like(x, shape=(b, h + 2 * padding, w + 2 * padding, c), order="C")
    for block in _blocks(g, rows * columns * k * k * c):
        patches = product(g[block].reshape(-1, o), w_back).reshape(-1, rows, columns, k, k, c)
        for i in range(k):
            for j in range(k):
                seen = slice(i, i + stride * rows, stride), slice(j, j + stride * columns, stride)
                dx[block][:, *seen] += patches[:, :, :, i, j]
    return dx[:, padding : padding + h, padding : padding + w].transpose(0, 3, 1, 2)


def matrix(weight: Array) -> Array:
    """Return weight [O, C, k, k] as [k·k·C, O], to be multiplied by patches."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _windows(x: Array, kernel: int, stride: int, padding: int) -> Array:
    """Return the patches of x [B, C, H, W] that a convolution sees: a view [B, H', W', k, k, C]."""
    if padding:
        x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    x = x.transpose(0, 2, 3, 1).astype(x.dtype, order="C", copy=False)
    b, height, width, c = x.shape
    image, row, column, channel = x.strides
    rows, columns = ((size - kernel) // stride + 1 for size in (height, width))
    library: Any = sys.modules[type(x).__module__]  # NumPy does not dispatch this, and CuPy has it in the same place
    windows: Array = library.lib.stride_tricks.as_strided(
        x, (b, rows, columns, kernel, kernel, c), (image, row * stride, column * stride, row, column, channel)
    )
    return windows


def _patches(windows: Array) -> Iterator[tuple[slice, Array]]:
    """Yield the patches [b·H'·W', k·k·C] of a block of images after another, each valid until the next."""
    size = math.prod(windows.shape[3:])
    held: Array | None = None  # written again and again: a fresh array would cost its pages anew
    for block in _blocks(windows, math.prod(windows.shape[1:])):
        part = windows[block]
        if held is None:
            held = np.empty_like(windows, shape=part.shape, order="C")
        patches = held[: len(part)]
        patches[...] = part
        yield block, patches.reshape(-1, size)


def _blocks(x: Array, each: int) -> Iterator[slice]:
    """Cut the batch x so that the patches of one slice, so many numbers of each image, take about BLOCK_BYTES."""
    step = max(1, block_bytes(x, BLOCK_BYTES) // max(1, each * x.itemsize))
    for start in range(0, len(x), step):
        yield slice(start, start + step)
