"""The ops in plain NumPy: the reference, written to be read.

NumPy's functions run on CuPy arrays too, through NumPy's own dispatch protocols, and `backends/cupy.py` takes
them from here; that is why the arrays made below are made `like` the ones at hand.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore import im2col, model
from capscore.backends._numpy_threads import threads_for
from capscore.fast import cook_toom
from capscore.fast.prepared import prepared
from capscore.fast.streaming import RULES, Streaming
from capscore.ops import Axes, Index, to_host

Array = NDArray[Any]


def asarray(x: Any, like: Array | None = None) -> Array:
    """Return `x`, an array of any backend, as a NumPy array."""
    return np.asarray(to_host(x), dtype=None if like is None else like.dtype)


def to_numpy(x: Array) -> Array:
    """Return `x`."""
    return x


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    """Return the same elements in row-major order under another shape."""
    return x.reshape(shape)


def transpose(x: Array, axes: tuple[int, ...]) -> Array:
    """Return a view with the axes in the given order."""
    return x.transpose(axes)


def take(x: Array, index: Index, axis: int) -> Array:
    """Return what lies at the positions of `index` along `axis`; zeros at -1."""
    y = np.take(x, np.asarray(index.positions, like=x), axis)
    if index.there is not None:
        y[(slice(None),) * axis + (np.asarray(~index.there, like=x),)] = 0
    return y


def concat(xs: Sequence[Array], axis: int) -> Array:
    """Return the arrays one after another along `axis`."""
    y: Array = np.concatenate(xs, axis)
    return y


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """Return the matrix product over the last two axes, the leading axes broadcast."""
    return im2col.product(a, b, out)


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """Return an array of any content, with the dtype of `like`."""
    return np.empty_like(like, shape=shape, order="C")


def multiply(a: Array, b: Array, out: Array) -> Array:
    """Write a · b, entry by entry, into `out` and return it."""
    return np.multiply(a, b, out=out)


def contiguous(x: Array) -> bool:
    """Whether the elements lie in memory in row-major order."""
    return x.flags.c_contiguous


def sum(x: Array, axis: Axes, keepdims: bool = False) -> Array:
    """Return the sum over `axis`."""
    y: Array = np.sum(x, axis=axis, keepdims=keepdims)
    return y


def norm(x: Array, axis: int, keepdims: bool = False) -> Array:
    """Return the Euclidean norm over `axis`, the largest entry divided out so that no square overflows."""
    largest = np.abs(x).max(axis=axis, keepdims=True)
    scale: Array = np.where(largest == 0, 1.0, largest).astype(x.dtype)
    n: Array = np.sqrt(np.sum((x / scale) ** 2, axis=axis, keepdims=True)) * scale
    return n if keepdims else n.squeeze(axis)


def max(x: Array, axis: int, keepdims: bool = False) -> Array:
    """Return the largest over `axis`."""
    y: Array = x.max(axis=axis, keepdims=keepdims)
    return y


def sqrt(x: Array) -> Array:
    """Return the square root of every element."""
    return np.sqrt(x)


def exp(x: Array) -> Array:
    """Return e to the power of every element."""
    return np.exp(x)


def log(x: Array) -> Array:
    """Return the natural logarithm of every element."""
    return np.log(x)


def relu(x: Array) -> Array:
    """Return max(x, 0) of every element."""
    return np.maximum(x, 0)


def sigmoid(x: Array, small: bool = False) -> Array:
    """Return 1 / (1 + e^-x) of every element; `small` ones keep their digits, which tanh, a faster way, loses."""
    if not small:
        return np.tanh(x * 0.5) * 0.5 + 0.5
    e = np.exp(-np.abs(x))
    y: Array = np.where(x >= 0, 1, e) / (e + 1)
    return y


def softmax(x: Array, axis: int, leaky: bool = False) -> Array:
    """Return the softmax over `axis`, with an extra zero logit in the sum when `leaky`."""
    largest = x.max(axis=axis, keepdims=True)
    if leaky:
        largest = np.maximum(largest, 0)
    e = np.exp(x - largest)
    total = e.sum(axis=axis, keepdims=True)
    y: Array = e / (total + np.exp(-largest) if leaky else total)
    return y


def argmax_one_hot(x: Array) -> Array:
    """Return 1 at the first largest entry of the last axis and 0 elsewhere."""
    largest = x.argmax(axis=-1)[..., None]
    y: Array = (largest == np.arange(x.shape[-1], like=x)).astype(x.dtype)
    return y


def conv2d(
    x: Array, weight: Array, bias: Array | None, stride: tuple[int, int], padding: tuple[int, int], groups: int = 1
) -> Array:
    """Correlate x [B, C, H, W] with weight [O, C/groups, kh, kw], plus bias [O]: patches times weights."""
    w = prepared("patches", weight, lambda _: im2col.matrix(weight)) if groups == 1 else None
    return im2col.convolve(x, weight, bias, stride, padding, groups, w)


def fast_conv2d(x: Array, weight: Array, bias: Array | None, tiling: cook_toom.Tiling) -> Array:
    """Do the convolution of a tiling by its transforms where these pay, else by patches."""
    return convolve(sys.modules[__name__], x, weight, bias, tiling)


def convolve(ops: Any, x: Array, weight: Array, bias: Array | None, tiling: cook_toom.Tiling) -> Array:
    """Do `fast_conv2d` on a backend of NumPy's functions."""
    if tiling.pays(len(x)):
        return cook_toom.convolve(ops, x, weight, bias, tiling)  # type: ignore[no-any-return]
    return conv2d(x, weight, bias, (tiling.stride,) * 2, (tiling.padding,) * 2)


def max_pool(x: Array, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Array:
    """Return the largest number of every window of x [B, C, H, W]."""
    return im2col.max_pool(x, kernel, stride, padding)


FUSED: Mapping[type, Any] = dict.fromkeys(RULES, Streaming(sys.modules[__name__]))


class CapsNet(model.CapsNet[Array]):
    """A capsule network on NumPy; see `capscore.model.CapsNet`."""

    ops = sys.modules[__name__]

    def forward(self, images: Any, couplings: bool = False) -> model.Output[Array]:
        """Run the network; a small one with one thread of BLAS. See `capscore.model.CapsNet`."""
        with threads_for(self.spec):
            return super().forward(images, couplings)

    __call__ = forward


class Learner(model.Learner[Array]):
    """Trains a network on NumPy; see `capscore.model.Learner`."""

    @property
    def workers(self) -> dict[str, int]:
        """The threads of NumPy's matrix products."""
        from threadpoolctl import threadpool_info

        with threads_for(self.net.spec):
            pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        return {"threads": sorted(pools)[-1]} if pools else {}

    def step(
        self, images: Any, targets: NDArray[Any], rate: float, parts: Sequence[tuple[Any, Any]] = ()
    ) -> tuple[Array, Array]:
        """Learn from one batch; a small network with one thread of BLAS. See `capscore.model.Learner`."""
        with threads_for(self.net.spec):
            return super().step(images, targets, rate, parts)


load = CapsNet.load
