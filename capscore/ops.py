"""The whole contract between the core and a backend: arrays that do arithmetic, and the functions of `Ops`.

A backend is a module of these functions; the module itself satisfies `Ops` structurally. NumPy, CuPy, PyTorch and
JAX supply them over their arrays, `capscore.grad` over arrays that remember how they were made, and
`capscore.export.onnx` over the values of a graph that it writes down.

Whatever is written over the ops keeps four rules, so that it runs on all of them: the batch size is never
read, nothing is written in place, nothing branches on data, and Python scalars stand to the right of an
operator. Their dtype is the array's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import ShapeError, short


class Array(Protocol):
    """What the core asks of an array: broadcasting arithmetic with arrays of its kind and Python scalars."""

    def __add__(self, other: Any, /) -> Self: ...  # noqa: D105
    def __sub__(self, other: Any, /) -> Self: ...  # noqa: D105
    def __mul__(self, other: Any, /) -> Self: ...  # noqa: D105
    def __truediv__(self, other: Any, /) -> Self: ...  # noqa: D105


A = TypeVar("A", bound=Array)
Axes = int | tuple[int, ...]
OVERSHOOT = 1 / 8  # how far beyond [0, 1] images go without a word


class Index:
    """Positions along an axis that are known in advance; at -1 there is a zero."""

    def __init__(self, positions: Any) -> None:
        self.positions: NDArray[np.int64] = np.asarray(positions, np.int64).reshape(-1)

    @cached_property
    def there(self) -> NDArray[np.bool_] | None:
        """Where the positions are not -1; None if all are."""
        there = self.positions >= 0
        return None if there.all() else there

    def back(self, size: int) -> tuple[Index, int]:
        """Return where each of `size` positions was taken to, so many places for each, and how many those are."""
        if size not in self._back:
            counts = np.bincount(self.positions[self.positions >= 0], minlength=size)
            most = int(counts.max(initial=1))
            order = np.argsort(self.positions, kind="stable")[-counts.sum() or len(self.positions) :]
            rank = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            found = np.full((size, most), -1)
            found[np.repeat(np.arange(size), counts), rank] = order[: counts.sum()]
            self._back[size] = Index(found), most
        return self._back[size]

    @cached_property
    def _back(self) -> dict[int, tuple[Index, int]]:
        return {}


class Fused(Protocol):
    """A routing as one function of u [B, N, K], weight [N, J, D, K], bias [J, D] and its own, with its gradient.

    It computes what the routing does over `LinearVotes`, faster or in less memory. `own` is what the routing learns, in
    the order of its `params`. `forward` and `backward` are what the tape asks for: a backend with an engine of its own
    does without.
    """

    def __call__(self, routing: Any, u: Any, weight: Any, bias: Any | None, *own: Any) -> Any | None:
        """Return v [B, J, D], or None where the routing itself must run, as when PyTorch writes it down."""

    def forward(self, routing: Any, u: Any, weight: Any, bias: Any | None, *own: Any) -> tuple[Any, Any]:
        """Return v, and what `backward` needs of the way to it."""

    def backward(
        self, routing: Any, g: Any, kept: Any, u: Any, weight: Any, bias: Any | None, *own: Any
    ) -> tuple[Any, ...]:
        """Return the gradients of u, weight, bias and each of `own` from that of v."""


class Ops(Protocol[A]):
    """The functions a backend supplies. Shapes may hold one -1, which stands for the batch."""

    @property
    def FUSED(self) -> Mapping[type, Any]:
        """Routing class → its `Fused` form on this backend, where there is one."""

    def asarray(self, x: Any, like: A | None = None) -> A:
        """Return `x`, an array of any backend, as this backend's; dtype and device follow `like` if given."""

    def to_numpy(self, x: A) -> NDArray[Any]:
        """Return `x` as a NumPy array in host memory."""

    def reshape(self, x: A, shape: tuple[int, ...]) -> A:
        """Return the same elements in row-major order under another shape."""

    def transpose(self, x: A, axes: tuple[int, ...]) -> A:
        """Return `x` with its axes in the given order."""

    def take(self, x: A, index: Index, axis: int) -> A:
        """Return what lies at the positions of `index` along `axis`, counted from the first; the batch never moves."""

    def concat(self, xs: Sequence[A], axis: int) -> A:
        """Return the arrays one after another along `axis`."""

    def matmul(self, a: A, b: A) -> A:
        """Return the matrix product over the last two axes, the leading axes broadcast."""

    def conv2d(
        self, x: A, weight: A, bias: A | None, stride: tuple[int, int], padding: tuple[int, int], groups: int = 1
    ) -> A:
        """Correlate x [B, C, H, W] with weight [O, C/groups, kh, kw] and add bias [O]; zeros around the map.

        Each of the `groups` of O/groups outputs sees its C/groups inputs alone.
        """

    def max_pool(self, x: A, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> A:
        """Return the largest number of every window of x [B, C, H, W]; its gradient goes to the first of them."""

    def sum(self, x: A, axis: Axes, keepdims: bool = False) -> A:
        """Return the sum over `axis`."""

    def norm(self, x: A, axis: int, keepdims: bool = False) -> A:
        """Return the Euclidean norm over `axis`: no overflow or underflow on the way, gradient 0 at zero."""

    def max(self, x: A, axis: int, keepdims: bool = False) -> A:
        """Return the largest over `axis`; equal ones share the gradient."""

    def sqrt(self, x: A) -> A:
        """Return the square root of every element."""

    def exp(self, x: A) -> A:
        """Return e to the power of every element."""

    def log(self, x: A) -> A:
        """Return the natural logarithm of every element."""

    def relu(self, x: A) -> A:
        """Return max(x, 0) of every element; NaN stays NaN."""

    def sigmoid(self, x: A, small: bool = False) -> A:
        """Return 1 / (1 + e^-x) of every element, without overflow.

        With `small`, values near 0 keep their digits: routings divide by sums of activations.
        """

    def softmax(self, x: A, axis: int, leaky: bool = False) -> A:
        """Return e^x / Σ e^x over `axis`; a leaky one has an extra zero logit in the sum and drops its share."""

    def argmax_one_hot(self, x: A) -> A:
        """Return, over the last axis, 1 at the first largest entry and 0 elsewhere."""


class Writable(Ops[A], Protocol[A]):
    """The ops of a backend whose arrays lie in memory: they can be sliced, written, and used again for a result."""

    def empty(self, shape: tuple[int, ...], like: A) -> A:
        """Return an array of any content, with the dtype and device of `like`."""

    def matmul(self, a: A, b: A, out: A | None = None) -> A:
        """Return the matrix product, written into `out` if given."""

    def multiply(self, a: A, b: A, out: A) -> A:
        """Write a · b, entry by entry, into `out` and return it."""

    def contiguous(self, x: A) -> bool:
        """Whether the elements lie in memory in row-major order."""


def scope(ops: Ops[A], name: str) -> AbstractContextManager[Any]:
    """Name what is computed inside, for backends that keep names (the ONNX recorder does; others ignore it)."""
    named = getattr(ops, "scope", None)
    return nullcontext() if named is None else named(name)


def is_float(x: Any) -> bool:
    """Whether any library's array is of floats."""
    return "float" in getattr(x.dtype, "name", str(x.dtype))  # NumPy's ">f4" is named float32


def array(x: Any) -> Any:
    """Return any library's array as it is, anything else as NumPy's; ShapeError if it does not hold numbers."""
    check_plain(x)
    return x if all(hasattr(x, name) for name in ("dtype", "shape", "__getitem__")) else to_host(x)


def check_plain(x: Any) -> None:
    """Raise ShapeError for a tensor that does not hold all its numbers one by one, and say how to get one that does."""
    kinds = {
        "nested": (getattr(x, "is_nested", False), "torch.nested.to_padded_tensor makes it one array"),
        "sparse": (str(getattr(x, "layout", "torch.strided")) != "torch.strided", ".to_dense() makes it one"),
        "quantised": (getattr(x, "is_quantized", False), ".dequantize() makes it one"),
        "meta": (getattr(x, "is_meta", False), "it has a shape but no numbers: make it on a device"),
    }
    for kind, (found, cure) in kinds.items():
        if found:
            raise ShapeError(f"wanted an array of numbers, not a {kind} tensor; {cure}")


def check_range(images: Any, name: str = "images", precision: str = "fp32") -> None:
    """Warn of floats that are clearly not in [0, 1]; for fp16 and int8, which hold no others, raise ShapeError.

    Of arrays that are not NumPy's nothing is said: they may lie on a GPU.
    """
    if (found := out_of_range(images, name)) is None:
        return
    problem, cure = found
    if precision != "fp32":
        raise ShapeError(f"{problem}; {precision} takes 0 to 1 alone: {cure}")
    warnings.warn(f"{problem}; wanted 0 to 1, or the answers are of no worth: {cure}", RuntimeWarning, stacklevel=2)


def out_of_range(images: Any, name: str = "images") -> tuple[str, str] | None:
    """Return what is wrong with floats that are clearly not in [0, 1], and the cure; None if nothing is.

    NumPy arrays are looked at, NaN in them aside. An eighth on either side is left to noise and overshooting filters.
    """
    if not isinstance(images, np.ndarray) or images.dtype.kind != "f" or not images.size:
        return None
    low, high = np.fmin.reduce(images, None), np.fmax.reduce(images, None)
    if not (low < -OVERSHOOT or high > 1 + OVERSHOOT):
        return None
    cure = f"scale {name} to that"
    if low >= 0 and 2 < high <= 65535:
        cure = f"{name} / {255 if high <= 255 else 65535} for whole numbers as floats"
    elif abs(low) <= 255 and high <= 255:
        cure = f"{name} * std + mean undoes a standardisation, {name}.clip(0, 1) cuts what overshoots"
    return f"{name} go from {low:.3g} to {high:.3g}", cure


def to_host(x: Any) -> NDArray[Any]:
    """Return any library's array (torch and CuPy included, on a GPU or with gradients) as a NumPy array.

    bfloat16 and float8, which NumPy lacks, become float32, and long doubles, which all others lack, float64; bytes in
    another order are brought into this machine's.

    Raises
    ------
    ShapeError: `x` holds something else than numbers.
    """
    if hasattr(x, "detach"):  # torch
        check_plain(x)
        x = x.detach().cpu()
        x = x.float() if str(x.dtype).startswith(("torch.bfloat16", "torch.float8")) else x
    try:
        host = np.asarray(x)
    except ValueError:  # lists of unequal lengths
        raise ShapeError(f"wanted an array of numbers, not {short(x)}") from None
    except TypeError:  # CuPy's arrays leave the GPU only when asked
        if not hasattr(x, "get"):
            raise
        host = np.asarray(x.get())
    if host.dtype.name == "bfloat16":  # of JAX
        host = host.astype(np.float32)
    if host.dtype.kind not in "biufc":
        raise ShapeError(f"wanted an array of numbers, not {short(x)}, of dtype {host.dtype}")
    own = np.dtype(np.float64) if host.dtype.kind == "f" and host.itemsize > 8 else host.dtype.newbyteorder("=")
    return host.astype(own, copy=False)
