"""Convolution as patches times weights, with its gradients, over NumPy arrays.

NumPy's functions run on CuPy arrays too, through NumPy's dispatch protocols; that is why new arrays are made
`like` the ones at hand. Maps keep channels last in memory, as views [B, C, H, W]: a patch is then copied in
runs of C numbers, and a convolution finds the map of the one before it as it wants it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fast.buffers import block_bytes

Array = NDArray[Any]
Pair = tuple[int, int]  # of height and width
BLOCK_BYTES = 16 << 20  # of patches written out at a time: all patches of a batch would be gigabytes


def product(a: Array, b: Array, out: Array | None = None) -> Array:
    """Return the matrix product over the last two axes, written into `out` if given.

    OpenBLAS reads beyond the edges of small matrices and raises the flag for an invalid number over what it finds
    there; NumPy would warn of it, now and then, for perfectly finite ones.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        y: Array = np.matmul(a, b, out=out)
    return y


def convolve(
    x: Array, weight: Array, bias: Array | None, stride: Pair, padding: Pair, groups: int = 1, w: Array | None = None
) -> Array:
    """Correlate x [B, C, H, W] with weight [O, C/groups, kh, kw], plus bias [O]: a map [B, O, H', W'].

    `w` is `matrix(weight)` [kh·kw·C, O], if it is there already.
    """
    if groups > 1:
        y = _grouped(x, weight, stride, padding, groups)
    else:
        w = matrix(weight) if w is None else w
        windows = _windows(x, weight.shape[2:], stride, padding)
        y = np.empty_like(x, shape=(*windows.shape[:3], w.shape[1]), order="C")
        for block, patches in _patches(windows):
            product(patches, w, y[block].reshape(-1, w.shape[1]))
    if bias is not None:
        y += bias
    return y.transpose(0, 3, 1, 2)


def _grouped(x: Array, weight: Array, stride: Pair, padding: Pair, groups: int) -> Array:
    """Return the map [B, H', W', O] of a convolution in groups; depthwise ones take no detour over patches."""
    o, _, *kernel = weight.shape
    if _depthwise(weight, groups):
        windows = _windows(x, kernel, stride, padding)
        y = np.zeros_like(x, shape=(*windows.shape[:3], o), order="C")
        for i, j in np.ndindex(*kernel):
            y += windows[:, :, :, i, j] * weight[:, 0, i, j]
        return y
    parts = [convolve(x[:, i], weight[j], None, stride, padding) for i, j in _parts(weight, groups)]
    return np.concatenate(parts, axis=1).transpose(0, 2, 3, 1).copy()


def _depthwise(weight: Array, groups: int) -> bool:
    return groups > 1 and weight.shape[:2] == (groups, 1)


def _parts(weight: Array, groups: int) -> Iterator[tuple[slice, slice]]:
    """Yield the inputs and the outputs of every group."""
    o, c = weight.shape[0] // groups, weight.shape[1]
    for group in range(groups):
        yield slice(group * c, (group + 1) * c), slice(group * o, (group + 1) * o)


def weight_gradient(g: Array, x: Array, weight: Array, stride: Pair, padding: Pair, groups: int = 1) -> Array:
    """Return the gradient of weight [O, C/groups, kh, kw] from that of the map, g [B, O, H', W']."""
    if _depthwise(weight, groups):
        return _depthwise_weight(g, x, weight, stride, padding)
    if groups > 1:
        parts = _parts(weight, groups)
        return np.concatenate([weight_gradient(g[:, j], x[:, i], weight[j], stride, padding) for i, j in parts])
    o, c, kh, kw = weight.shape
    windows = _windows(x, (kh, kw), stride, padding)
    g = g.transpose(0, 2, 3, 1)
    dw = np.zeros_like(weight, shape=(kh, kw * c, o), order="C")
    for i in range(kh):  # of the kernel's rows: what blocks add to stays in the cache
        for block, patches in _patches(windows[:, :, :, i]):
            dw[i] += product(patches.T, g[block].reshape(-1, o))
    return dw.reshape(kh, kw, c, o).transpose(3, 2, 0, 1)


def input_gradient(g: Array, x: Array, weight: Array, stride: Pair, padding: Pair, groups: int = 1) -> Array:
    """Return the gradient of x [B, C, H, W] from that of the map, g [B, O, H', W']."""
    if _depthwise(weight, groups):
        return _depthwise_input(g, x, weight, stride, padding)
    if groups > 1:
        parts = _parts(weight, groups)
        return np.concatenate([input_gradient(g[:, j], x[:, i], weight[j], stride, padding) for i, j in parts], axis=1)
    o, c, kh, kw = weight.shape
    w_back = matrix(weight).T  # [O, kh·kw·C]
    g = g.transpose(0, 2, 3, 1)
    _, rows, columns, _ = g.shape
    dx, crop = _framed(x, padding)
    for block in _blocks(g, rows * columns * kh * kw * c):
        patches = product(g[block].reshape(-1, o), w_back).reshape(-1, rows, columns, kh, kw, c)
        for i, j in np.ndindex(kh, kw):
            dx[block][:, *_seen(i, j, stride, g)] += patches[:, :, :, i, j]
    return _cut(dx, crop)


def _depthwise_input(g: Array, x: Array, weight: Array, stride: Pair, padding: Pair) -> Array:
    dx, crop = _framed(x, padding)
    g = g.transpose(0, 2, 3, 1)
    for i, j in np.ndindex(*weight.shape[2:]):
        dx[:, *_seen(i, j, stride, g)] += g * weight[:, 0, i, j]
    return _cut(dx, crop)


def _depthwise_weight(g: Array, x: Array, weight: Array, stride: Pair, padding: Pair) -> Array:
    windows = _windows(x, weight.shape[2:], stride, padding)
    g = g.transpose(0, 2, 3, 1)
    dw = np.zeros_like(weight)
    for i, j in np.ndindex(*weight.shape[2:]):
        dw[:, 0, i, j] = (windows[:, :, :, i, j] * g).sum(axis=(0, 1, 2))
    return dw


def max_pool(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """Return the largest number of every window of x [B, C, H, W]."""
    y: Array = _windows(x, kernel, stride, padding, -np.inf).max(axis=(3, 4)).transpose(0, 3, 1, 2)
    return y


def max_pool_gradient(g: Array, x: Array, y: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """Return the gradient of x from that of its pooled map y: to the first largest of every window."""
    windows = _windows(x, kernel, stride, padding, -np.inf)
    g, y = g.transpose(0, 2, 3, 1), y.transpose(0, 2, 3, 1)
    dx, crop = _framed(x, padding)
    free = np.ones_like(y, dtype=bool)
    for i, j in np.ndindex(*kernel):
        chosen = (windows[:, :, :, i, j] == y) & free
        free &= ~chosen
        dx[:, *_seen(i, j, stride, g)] += g * chosen
    return _cut(dx, crop)


def matrix(weight: Array) -> Array:
    """Return weight [O, C, kh, kw] as [kh·kw·C, O], to be multiplied by patches."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _framed(x: Array, padding: Pair) -> tuple[Array, Any]:
    """Return zeros of the size of x [B, C, H, W] with its frame, channels last, and where the map lies in them."""
    b, c, h, w = x.shape
    top, left = padding
    zeros: Array = np.zeros_like(x, shape=(b, h + 2 * top, w + 2 * left, c), order="C")
    return zeros, (slice(None), slice(top, top + h), slice(left, left + w))


def _cut(framed: Array, crop: Any) -> Array:
    """Return a map [B, C, H, W] without its frame."""
    x: Array = framed[crop].transpose(0, 3, 1, 2)
    return x


def _seen(i: int, j: int, stride: Pair, g: Array) -> tuple[slice, slice]:
    """Return where the entry (i, j) of the kernel meets a framed map, for all positions of g [B, H', W', O]."""
    (down, right), (_, rows, columns, _) = stride, g.shape
    return slice(i, i + down * rows, down), slice(j, j + right * columns, right)


def _windows(x: Array, kernel: Sequence[int], stride: Pair, padding: Pair, around: float = 0.0) -> Array:
    """Return the patches of x [B, C, H, W] that a convolution sees: a view [B, H', W', kh, kw, C]."""
    if any(padding):
        x = np.pad(x, ((0, 0), (0, 0), *((n, n) for n in padding)), constant_values=around)
    x = x.transpose(0, 2, 3, 1).astype(x.dtype, order="C", copy=False)
    b, height, width, c = x.shape
    image, row, column, channel = x.strides
    (kh, kw), (down, right) = kernel, stride
    rows, columns = (height - kh) // down + 1, (width - kw) // right + 1
    library: Any = sys.modules[type(x).__module__]  # NumPy does not dispatch this, and CuPy has it in the same place
    windows: Array = library.lib.stride_tricks.as_strided(
        x, (b, rows, columns, kh, kw, c), (image, row * down, column * right, row, column, channel)
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
