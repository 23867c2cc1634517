"""The ops on the GPU through CuPy.

NumPy's functions, given CuPy's arrays, run CuPy's kernels (NumPy's `__array_ufunc__` and `__array_function__`
protocols), so the ops are those of `backends/numpy.py`; what enters and leaves the GPU is here.
"""

from __future__ import annotations

import sys
from typing import Any

from numpy.typing import NDArray

from capscore import model
from capscore.backends.numpy import (
    argmax_one_hot,
    conv2d,
    exp,
    matmul,
    norm,
    relu,
    reshape,
    sigmoid,
    softmax,
    sqrt,
    sum,
    transpose,
)
from capscore.errors import BackendError
from capscore.ops import to_host

try:
    import cupy
except ModuleNotFoundError as error:
    raise BackendError("the cupy backend needs CuPy and an NVIDIA GPU: pip install 'capscore[cupy]'") from error

__all__ = [
    "CapsNet", "Learner", "argmax_one_hot", "asarray", "conv2d", "exp", "load", "matmul", "norm", "relu",
    "reshape", "sigmoid", "softmax", "sqrt", "sum", "to_numpy", "transpose",
]  # fmt: skip

Array = Any  # cupy.ndarray; CuPy comes without types


def asarray(x: Any, like: Array | None = None) -> Array:
    """Return `x`, an array of any backend, as a CuPy array; a torch tensor on the GPU is shared, not copied."""
    if not hasattr(x, "__cuda_array_interface__"):
        x = to_host(x)
    elif hasattr(x, "detach"):
        x = x.detach()
    return cupy.asarray(x, dtype=None if like is None else like.dtype)


def to_numpy(x: Array) -> NDArray[Any]:
    """Return `x` as a NumPy array in host memory."""
    return cupy.asnumpy(x)  # type: ignore[no-any-return]


class CapsNet(model.CapsNet[Array]):
    """A capsule network on CuPy; see `capscore.model.CapsNet`."""

    ops = sys.modules[__name__]


class Learner(model.Learner[Array]):
    """Trains a network on CuPy; see `capscore.model.Learner`."""


load = CapsNet.load
