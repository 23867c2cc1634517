"""Strided convolution by fewer multiplications: polyphase Cook–Toom (Winograd) transforms, forward and backward.

A convolution of stride s is the sum of s² convolutions of stride 1, one per phase of the kernel and the map. Each
computes a tile of m×m outputs as one product per transform point, and as all phases share their points, they are
summed before the transform back. The primary convolution of the paper (9×9, stride 2) then takes 3.7 times fewer
multiplications with 3×3 tiles and 7.3 times fewer with 6×6, and pays in accuracy: docs/performance.md.

Points are ∞ and the rationals of POINTS (Toom 1963, Cook 1966; Winograd 1980; the transform of a matrix is that of
its rows and columns: Lavin and Gray 2016). The transforms are matrices, made exactly and then rounded, so everything
here is matrix products and changes of layout: it runs on every backend and in the ONNX recorder.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from enum import Enum
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .buffers import Buffers, Fresh, block_bytes
from .prepared import prepared

Matrix = NDArray[np.float64]
# Finite points by their number: those of least error among ±{1, 2, 3, 4, 1/2, …, 4/3}, by exhaustion.
POINTS = {
    1: "0",
    2: "0 1",
    3: "0 1 -1",
    4: "0 1 -1 2",
    5: "0 1 -1 2 -2",
    6: "0 1 -1 1/2 -1/2 3",
    7: "0 1 -1 1/2 -1/2 2 -2",
    8: "0 1 -1 1/3 -1/3 3/2 -3/2 4",
    9: "0 1 -1 1/3 -1/3 3 -3 4/3 -4/3",
}
TILES = {"3x3": (3, 7), "6x6": (6, 10)}  # largest tile, and most points (∞ included): these decide the accuracy
CHANNELS = 96  # with fewer, the transforms cost what they save, or more
FEWEST = 8  # images: with fewer, reading the transformed kernels, 2.5 and 4.9 times larger, costs more
BLOCK_BYTES = 16 << 20  # of the transformed map at a time
# What lies in memory on the way. Backward takes slots of the forward pass whose content it is done with.
Slot = Enum(
    "Slot",
    "MAP MAP_Y MAP_X MAP_P KERNELS KERNELS_X KERNELS_Y KERNELS_P PRODUCTS TILES TILE OUTPUTS CROP_Y CROP_X "
    "DKERNEL DKERNELS PLANE",
)


@dataclass(frozen=True)
class Axis:
    """The transforms along one axis of the map, with tiles of m outputs.

    The matrices are made when they are wanted: PyTorch's compiler follows all Python up to a custom op, and is spared
    the fractions.
    """

    size: int
    k: int
    stride: int
    padding: int
    m: int
    outputs: int

    @property
    def data(self) -> Matrix:
        """Return the matrix of the map, [P, T, F, size]: P points, T tiles, F phases."""
        return _matrices(self)[0]

    @property
    def kernel(self) -> Matrix:
        """Return the matrix of the kernels, [P, F, k]."""
        return _matrices(self)[1]

    @property
    def inverse(self) -> Matrix:
        """Return the matrix from products to outputs, [m, P]."""
        return _matrices(self)[2]

    @property
    def crop(self) -> Matrix | None:
        """Return the matrix from tiles to the map, [outputs, T·m], if the last tile reaches beyond the outputs."""
        return _matrices(self)[3]


@dataclass(frozen=True, eq=False)
class Tiling:
    """How to transform a convolution: the tiles asked for, and the transforms of both axes if they save time."""

    name: str
    stride: int
    padding: int
    axes: tuple[Axis, Axis] | None

    def pays(self, images: int) -> bool:
        """Whether so many images are to be transformed."""
        return self.axes is not None and images >= FEWEST


def tiling(name: str, channels: int, height: int, width: int, kernel: int, stride: int, padding: int) -> Tiling:
    """Return the tiling called `name` of a convolution of maps [B, channels, height, width]."""
    y, x = (axis(size, kernel, stride, padding, *TILES[name]) for size in (height, width))
    return Tiling(name, stride, padding, (y, x) if y and x and channels >= CHANNELS else None)


def axis(size: int, kernel: int, stride: int, padding: int, largest: int, most: int) -> Axis | None:
    """Return the transforms of one axis with tiles of up to `largest` outputs and up to `most` points, if any fit."""
    taps = -(-kernel // stride)  # of the longest phase
    outputs = (size + 2 * padding - kernel) // stride + 1
    m = min(largest, most + 1 - taps, outputs)
    if m < 2:
        return None
    tiles = -(-outputs // m)
    m = -(-outputs // tiles)  # as even as can be
    return Axis(size, kernel, stride, padding, m, outputs)


@cache
def _matrices(axis: Axis) -> tuple[Matrix, Matrix, Matrix, Matrix | None]:
    size, kernel, stride, padding, m, outputs = astuple(axis)
    taps, tiles = -(-kernel // stride), -(-outputs // m)
    points = [Fraction(p) for p in POINTS[m + taps - 2].split()]
    n = len(points) + 1
    phases = min(stride, kernel)
    data, weight = np.zeros((n, tiles, phases, size)), np.zeros((n, phases, kernel))
    for phase in range(phases):
        at = range(phase, kernel, stride)  # its taps
        kept = len(points) - (taps - len(at))  # a phase with a tap less does without the last finite point
        g, b = _toom_cook(points[:kept], len(at), m)
        rows = [*range(kept), n - 1]
        for row, coefficients in zip(rows, g, strict=True):
            weight[row, phase, at] = coefficients
        for tile in range(tiles):
            first = tile * m * stride + phase - padding
            for row, coefficients in zip(rows, b, strict=True):
                for i, value in enumerate(coefficients):
                    if 0 <= (place := first + i * stride) < size:  # zeros lie around the map
                        data[row, tile, phase, place] = value
    norm = np.abs(data).sum(-1).max(1)  # [P, F]
    scale = 2.0 ** np.rint(np.log2(np.where(norm > 0, norm, 1)))  # rows of about one size round least
    data, weight = data / scale[:, None, :, None], weight * scale[:, :, None]
    inverse = np.array([[float(p) ** i for p in points] + [float(i == m - 1)] for i in range(m)])
    crop = None if tiles * m == outputs else np.eye(tiles * m)[:outputs]
    return data, weight, inverse, crop


def _toom_cook(points: list[Fraction], taps: int, m: int) -> tuple[list[list[float]], list[list[float]]]:
    """Return the matrices for the kernel [P, taps] and for the data [P, P], ∞ last."""
    kernel, data = [], []
    for p in points:
        others = [q for q in points if q != p]
        scale = Fraction(1)
        for q in others:
            scale *= p - q
        kernel.append([float(p**i / scale) for i in range(taps)])
        data.append([*_roots(others), 0.0])
    kernel.append([float(i == taps - 1) for i in range(taps)])
    data.append(_roots(points))
    return kernel, data


def _roots(roots: list[Fraction]) -> list[float]:
    """Return the coefficients of Π (x - root), lowest first."""
    product = [Fraction(1)]
    for root in roots:
        product = [a - root * b for a, b in zip([Fraction(0), *product], [*product, Fraction(0)], strict=True)]
    return [float(c) for c in product]


class Transform:
    """A convolution of maps [B, C, H, W] by kernels [O, C, k, k], transformed along both axes.

    The kernels become [P, O, F·C] (P points, F phases of both axes), the map [P, B·T, F·C] (T tiles), and the layer
    one matrix product per point. All is done a few rows of points at a time, so that what lies in between stays in
    the cache; all rows at once where arrays are the values of a graph.
    """

    def __init__(self, ops: Any, tiling: Tiling, channels: tuple[int, ...], like: Any = None) -> None:
        assert tiling.axes is not None  # the caller asks first
        self.ops, (self.o, self.c), self.like = ops, channels[:2], like
        self.y, self.x = y, x = tiling.axes
        self.buffers: Any = Buffers(ops) if hasattr(ops, "empty") else Fresh(ops)
        (self.ny, self.ty, self.fy, self.height), (self.nx, self.tx, self.fx, self.width) = y.data.shape, x.data.shape
        (self.my, _), (self.mx, _), self.k = y.inverse.shape, x.inverse.shape, y.kernel.shape[-1]

    def kernels_x(self, w: Any) -> Any:
        """Return the kernels at the horizontal points, [k, Px·Fx·O·C]."""
        k = self.k
        w = self.buffers.transpose(Slot.KERNELS, w, (2, 3, 0, 1))
        w = self._times(Slot.KERNELS_X, self.x.kernel.reshape(-1, k), self.ops.reshape(w, (k, k, self.o * self.c)))
        return self.ops.reshape(w, (k, -1))

    def kernels(self, w: Any, rows: slice) -> Any:
        """Return those of `kernels_x` at some rows of vertical points too, [P, O, F·C]."""
        p = len(range(self.ny)[rows])
        w = self._times(Slot.KERNELS_Y, self.y.kernel[rows].reshape(-1, self.k), w)
        w = self.ops.reshape(w, (p, self.fy, self.nx, self.fx, self.o, self.c))
        w = self.buffers.transpose(Slot.KERNELS_P, w, (0, 2, 4, 1, 3, 5))
        return self.ops.reshape(w, (p * self.nx, self.o, self.fy * self.fx * self.c))

    def map_y(self, x: Any) -> Any:
        """Return the map, as [H, B, W, C], at the vertical points, [Py·Ty·Fy, B·W·C]."""
        return self._times(Slot.MAP_Y, self.y.data.reshape(-1, self.height), self.ops.reshape(x, (self.height, -1)))

    def map_x(self, x: Any, p: int) -> Any:
        """Return p rows of points of `map_y` at the horizontal points too, [p·Px, B·T, F·C]."""
        x = self._times(Slot.MAP_X, self.x.data.reshape(-1, self.width), self.ops.reshape(x, (-1, self.width, self.c)))
        x = self.ops.reshape(x, (p, self.ty, self.fy, -1, self.nx, self.tx, self.fx, self.c))
        x = self.buffers.transpose(Slot.MAP_P, x, (0, 4, 3, 1, 5, 2, 6, 7))  # [p, Px, B, Ty, Tx, Fy, Fx, C]
        return self.ops.reshape(x, (p * self.nx, -1, self.fy * self.fx * self.c))

    def inverse(self, rows: slice) -> Matrix:
        """Return the matrix [my·mx, P] from the products at some rows of points to the outputs of a tile."""
        m: Matrix = np.einsum("ip,jq->ijpq", self.y.inverse[:, rows], self.x.inverse)
        return m.reshape(self.my * self.mx, -1)

    def outputs(self, y: Any) -> Any:
        """Return tiles [my·mx, B·T·O] as the map [B, H', W', O]."""
        ops, height, width = self.ops, self.ty * self.my, self.tx * self.mx
        y = ops.reshape(y, (self.my, self.mx, -1, self.ty, self.tx, self.o))
        y = ops.reshape(self.buffers.transpose(Slot.OUTPUTS, y, (2, 3, 0, 4, 1, 5)), (-1, height, width, self.o))
        if self.y.crop is not None:
            y = self._times(Slot.CROP_Y, self.y.crop, ops.reshape(y, (-1, height, width * self.o)))
        if self.x.crop is not None:
            y = self._times(Slot.CROP_X, self.x.crop, ops.reshape(y, (-1, width, self.o)))
        return ops.reshape(y, (-1, self.y.outputs, self.x.outputs, self.o))

    def _times(self, slot: Slot, m: Matrix, x: Any) -> Any:
        return self.buffers.matmul(slot, self.ops.asarray(m, self.like), x)


class WritableTransform(Transform):
    """The transform of arrays in memory, with its gradients, a few rows of points at a time."""

    def blocks(self, batch: int) -> list[slice]:
        """Cut the rows of points so that the map at those of one slice takes about BLOCK_BYTES."""
        each = self.nx * batch * self.ty * self.tx * self.fy * self.fx * self.c * self.like.itemsize
        step = max(1, block_bytes(self.like, BLOCK_BYTES) // max(1, each))
        return [slice(i, min(i + step, self.ny)) for i in range(0, self.ny, step)]

    def all_kernels(self, weight: Any, made: Any = None) -> Any:
        """Return the kernels at all points, [Py·Px, O, F·C], written into `made` if given."""
        half = self.kernels_x(weight)
        if made is None:
            made = self.ops.empty((self.ny * self.nx, self.o, self.fy * self.fx * self.c), weight)
        for i in range(self.ny):
            made[i * self.nx : (i + 1) * self.nx] = self.kernels(half, slice(i, i + 1))
        return made

    def forward(self, x: Any, kernels: Any) -> Any:
        """Return the map [B, H', W', O] of x [B, C, H, W] and all kernels [Py·Px, O, F·C]."""
        ops, y = self.ops, None
        planes = self.map_y(self.buffers.transpose(Slot.MAP, x, (2, 0, 3, 1)))
        for rows in self.blocks(x.shape[0]):
            p = rows.stop - rows.start
            v = self.map_x(planes[self._lines(rows)], p)
            w = ops.transpose(kernels[self._points(rows)], (0, 2, 1))
            m = ops.reshape(self.buffers.matmul(Slot.PRODUCTS, v, w), (p * self.nx, -1))  # [P, B·T·O]
            part = self._times(Slot.TILES if y is None else Slot.TILE, self.inverse(rows), m)
            if y is None:
                y = part
            else:
                y += part
        return self.outputs(y)

    def backward(self, g: Any, x: Any, kernels: Any) -> tuple[Any, Any]:
        """Return the gradients of x [B, C, H, W] and weights [O, C, k, k] from that of the map, [B, H', W', O]."""
        ops, buffers = self.ops, self.buffers
        g = self._outputs_back(g)
        planes = self.map_y(self.buffers.transpose(Slot.MAP, x, (2, 0, 3, 1)))
        o, c = self.o, self.c
        dkernels = buffers.take(Slot.DKERNELS, (self.ny, self.fy, self.nx, self.fx, o, c), kernels)
        for rows in self.blocks(x.shape[0]):
            p = rows.stop - rows.start
            v = self.map_x(planes[self._lines(rows)], p)
            m = ops.reshape(self._times(Slot.PRODUCTS, self.inverse(rows).T, g), (p * self.nx, -1, o))
            dk = buffers.matmul(Slot.DKERNEL, ops.transpose(m, (0, 2, 1)), v)  # [P, O, F·C]
            dk = ops.reshape(dk, (p, self.nx, o, self.fy, self.fx, c))
            dkernels[rows] = ops.transpose(dk, (0, 3, 1, 4, 2, 5))
            dv = buffers.matmul(Slot.MAP_P, m, kernels[self._points(rows)])
            dv = ops.reshape(dv, (p, self.nx, -1, self.ty, self.tx, self.fy, self.fx, c))
            dv = buffers.transpose(Slot.MAP_X, dv, (0, 3, 5, 2, 1, 4, 6, 7))  # [p, Ty, Fy, B, Px, Tx, Fx, C]
            dv = ops.reshape(dv, (-1, self.nx * self.tx * self.fx, c))
            dv = self._times(Slot.PLANE, self.x.data.reshape(-1, self.width).T, dv)
            planes[self._lines(rows)] = ops.reshape(dv, (p * self.ty * self.fy, -1))
        dx = ops.matmul(ops.asarray(self.y.data.reshape(-1, self.height).T, x), planes)
        dx = ops.transpose(ops.reshape(dx, (self.height, -1, self.width, c)), (1, 3, 0, 2))
        half = self._times(
            Slot.KERNELS_X, self.y.kernel.reshape(-1, self.k).T, ops.reshape(dkernels, (self.ny * self.fy, -1))
        )
        half = ops.reshape(half, (self.k, self.nx * self.fx, o * c))
        half = self._times(Slot.KERNELS, self.x.kernel.reshape(-1, self.k).T, half)
        dw = ops.empty((o, c, self.k, self.k), x)  # of its own: what lies in buffers is not returned
        dw[...] = ops.transpose(ops.reshape(half, (self.k, self.k, o, c)), (2, 3, 0, 1))
        return dx, dw

    def _outputs_back(self, g: Any) -> Any:
        ops, width = self.ops, self.tx * self.mx
        if self.x.crop is not None:
            g = self._times(Slot.CROP_X, self.x.crop.T, ops.reshape(g, (-1, self.x.outputs, self.o)))
        if self.y.crop is not None:
            g = self._times(Slot.CROP_Y, self.y.crop.T, ops.reshape(g, (-1, self.y.outputs, width * self.o)))
        g = ops.reshape(g, (-1, self.ty, self.my, self.tx, self.mx, self.o))
        return ops.reshape(self.buffers.transpose(Slot.OUTPUTS, g, (2, 4, 0, 1, 3, 5)), (self.my * self.mx, -1))

    def _points(self, rows: slice) -> slice:
        return slice(rows.start * self.nx, rows.stop * self.nx)

    def _lines(self, rows: slice) -> slice:
        return slice(rows.start * self.ty * self.fy, rows.stop * self.ty * self.fy)


def convolve(ops: Any, x: Any, weight: Any, bias: Any, tiling: Tiling) -> Any:
    """Correlate x [B, C, H, W] with weight [O, C, k, k], plus bias [O]: a map [B, O, H', W'], channels last in memory.

    The transformed weights are kept until the weights change.
    """
    t = WritableTransform(ops, tiling, tuple(weight.shape), x)
    y = t.forward(x, _kernels(t, weight, tiling))
    y = y * 1.0 if bias is None else y + bias  # `forward` gives a buffer, which the next one writes into
    return ops.transpose(y, (0, 3, 1, 2))


def gradients(ops: Any, g: Any, x: Any, weight: Any, tiling: Tiling) -> tuple[Any, Any]:
    """Return the gradients of x and weight from that of the map, g [B, O, H', W']."""
    t = WritableTransform(ops, tiling, tuple(weight.shape), x)
    return t.backward(ops.transpose(g, (0, 2, 3, 1)), x, _kernels(t, weight, tiling))


def _kernels(t: WritableTransform, weight: Any, tiling: Tiling) -> Any:
    return prepared(f"kernels {tiling.axes}", weight, lambda made: t.all_kernels(weight, made))
