"""The ops on the GPU through CuPy.

NumPy's functions, given CuPy's arrays, run CuPy's kernels (NumPy's `__array_ufunc__` and `__array_function__`
protocols), so the ops are those of `backends/numpy.py`; what enters and leaves the GPU is here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from capscore import model
from capscore.backends.numpy import (
    argmax_one_hot,
    concat,
    contiguous,
    conv2d,
    convolve,
    empty,
    exp,
    log,
    matmul,
    max,
    max_pool,
    multiply,
    norm,
    relu,
    reshape,
    sigmoid,
    softmax,
    sqrt,
    sum,
    take,
    transpose,
)
from capscore.data import Samples, resident
from capscore.data.device import Device, floored
from capscore.errors import BackendError
from capscore.fast import cook_toom
from capscore.fast.streaming import RULES, Streaming
from capscore.ops import check_plain, to_host
from capscore.routing import DynamicRouting

try:
    import cupy
except ModuleNotFoundError as error:
    raise BackendError("the cupy backend needs CuPy and an NVIDIA GPU: pip install 'capscore[cupy]'") from error

from capscore.backends import _cupy_kernels

__all__ = [
    "FUSED", "CapsNet", "Learner", "argmax_one_hot", "asarray", "concat", "contiguous", "conv2d", "empty", "exp",
    "fast_conv2d", "load", "log", "matmul", "max", "max_pool", "multiply", "norm", "relu", "reshape", "sigmoid",
    "softmax", "sqrt", "sum", "take", "to_numpy", "transpose",
]  # fmt: skip

Array = Any  # cupy.ndarray; CuPy comes without types


def asarray(x: Any, like: Array | None = None) -> Array:
    """Return `x`, an array of any backend, as a CuPy array; a torch tensor on the GPU is shared, not copied."""
    if hasattr(x, "detach"):  # torch, whose tensors with gradients do not say where they lie
        check_plain(x)
        x = x.detach()
    if getattr(x, "is_cuda", False):  # torch's: by DLPack, CuPy's stream waits for what torch's has still to compute
        x = cupy.from_dlpack(x)
    elif not hasattr(x, "__cuda_array_interface__"):
        x = to_host(x)
    return cupy.asarray(x, dtype=None if like is None else like.dtype)


def to_numpy(x: Array) -> NDArray[Any]:
    """Return `x` as a NumPy array in host memory."""
    return cupy.asnumpy(x)  # type: ignore[no-any-return]


def fast_conv2d(x: Array, weight: Array, bias: Array | None, tiling: cook_toom.Tiling) -> Array:
    """Do the convolution of a tiling by its transforms where these pay, else by patches."""
    return convolve(sys.modules[__name__], x, weight, bias, tiling)


class Kernels(Streaming):
    """Dynamic routing by the kernels of `kernels.cu`, and where these do not cover the sizes as on any backend.

    `FUSED[DynamicRouting].precision` is "float32"; "tf32" and "bf16" let tensor cores multiply the votes of float32
    arrays, from factors rounded so.
    """

    precision = "float32"

    def __call__(self, routing: Any, u: Array, weight: Array, bias: Array | None, *own: Array) -> Array:
        """Return v [B, J, D]."""
        if not _cupy_kernels.supports(u, weight):
            return super().__call__(routing, u, weight, bias)
        return _cupy_kernels.forward(u, weight, bias, routing.iterations, routing.leaky, self.precision)[0]

    def forward(
        self, routing: Any, u: Array, weight: Array, bias: Array | None, *own: Array, learning: bool = True
    ) -> tuple[Array, Any]:
        """Return v [B, J, D] and what `backward` needs of it."""
        if not _cupy_kernels.supports(u, weight):
            return super().forward(routing, u, weight, bias, learning=learning)
        return _cupy_kernels.forward(u, weight, bias, routing.iterations, routing.leaky, self.precision)

    def backward(
        self, routing: Any, g: Array, kept: Any, u: Array, weight: Array, bias: Array | None, *own: Array
    ) -> tuple[Array, ...]:
        """Return the gradients of u, weight and bias from that of v, [B, J, D]."""
        if not _cupy_kernels.supports(u, weight):
            return super().backward(routing, g, kept, u, weight, bias)
        return _cupy_kernels.backward(g, kept, u, weight, bias, routing.iterations, routing.leaky, self.precision)


_ops = sys.modules[__name__]
FUSED: Mapping[type, Any] = dict.fromkeys(RULES, Streaming(_ops)) | {DynamicRouting: Kernels(_ops)}


class CapsNet(model.CapsNet[Array]):
    """A capsule network on CuPy; see `capscore.model.CapsNet`."""

    ops = sys.modules[__name__]


class Learner(model.Learner[Array]):
    """Trains a network on CuPy; see `capscore.model.Learner`."""

    def to_device(self, data: Samples, margin: int) -> Samples:
        """Return images to learn from, with `margin` around them, on the GPU."""
        like = next(iter(self.net.params.values()))
        return resident(data, margin, images_on(like))


def images_on(like: Array) -> Device:
    """Return the place of images that lie beside `like`."""
    return Device(lambda shape: empty(shape, like), cupy.asarray, floored)


load = CapsNet.load
