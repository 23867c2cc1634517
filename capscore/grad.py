"""Reverse-mode differentiation of whatever is written over the ops: one backward rule per op.

A `Tape` is itself a set of ops. Its arrays are `Var`s, which hold an array of the backend below and remember
how they were made; `Tape.gradients` walks back through them. It runs over NumPy and, through NumPy's dispatch
protocols, CuPy. PyTorch has its own engine and needs none of this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from . import im2col
from .fast import cook_toom
from .ops import Axes, Index, Ops

Pull = tuple["Var", Callable[[Any], Any]]  # a parent, and what it gets of the gradient of the result


class Var:
    """An array on a tape, with the arithmetic of arrays."""

    __slots__ = ("grad", "learns", "tape", "value")

    def __init__(self, tape: Tape, value: Any, learns: bool) -> None:
        self.tape, self.value, self.learns = tape, value, learns
        self.grad: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.value.shape  # type: ignore[no-any-return]

    def __add__(self, other: Any) -> Var:
        """self + other."""
        a, b = self, self.tape.lift(other)
        pulls = (a, lambda g: _fold(g, a.shape)), (b, lambda g: _fold(g, b.shape))
        return self.tape.record(a.value + b.value, *pulls)

    def __sub__(self, other: Any) -> Var:
        """self - other."""
        a, b = self, self.tape.lift(other)
        pulls = (a, lambda g: _fold(g, a.shape)), (b, lambda g: _fold(-g, b.shape))
        return self.tape.record(a.value - b.value, *pulls)

    def __mul__(self, other: Any) -> Var:
        """self · other, entry by entry."""
        a, b = self, self.tape.lift(other)
        pulls = (a, lambda g: _fold(g * b.value, a.shape)), (b, lambda g: _fold(g * a.value, b.shape))
        return self.tape.record(a.value * b.value, *pulls)

    def __truediv__(self, other: Any) -> Var:
        """self / other, entry by entry."""
        a, b = self, self.tape.lift(other)
        y = a.value / b.value
        pulls = (a, lambda g: _fold(g / b.value, a.shape)), (b, lambda g: _fold(-g * y / b.value, b.shape))
        return self.tape.record(y, *pulls)


class Tape:
    """The ops over `Var`s: each does what the backend does and notes how its gradient goes back."""

    def __init__(self, ops: Ops[Any]) -> None:
        self.ops = ops
        self.made: list[tuple[Var, list[Pull]]] = []

    def variable(self, value: Any) -> Var:
        """Put an array on the tape whose gradient is wanted."""
        return Var(self, value, learns=True)

    def asarray(self, x: Any, like: Var | None = None) -> Var:
        """Put an array on the tape that is constant."""
        return Var(self, self.ops.asarray(x, None if like is None else like.value), learns=False)

    def lift(self, x: Any) -> Var:
        """Return `x`, a Var or a Python scalar, as a Var."""
        return x if isinstance(x, Var) else Var(self, x, learns=False)

    def record(self, value: Any, *pulls: Pull) -> Var:
        """Return `value` as a Var made from the parents in `pulls`."""
        learning = [pull for pull in pulls if pull[0].learns]
        made = Var(self, value, learns=bool(learning))
        if learning:
            self.made.append((made, learning))
        return made

    def gradients(self, loss: Var, wanted: dict[str, Var]) -> dict[str, Any]:
        """Return ∂loss/∂x for every wanted variable by name, zero where it has no part; empties the tape."""
        loss.grad = np.ones_like(loss.value)
        while self.made:
            made, pulls = self.made.pop()  # what is done with is let go: memory falls as the walk goes back
            if made.grad is not None:
                for parent, pull in pulls:
                    g = pull(made.grad)
                    parent.grad = g if parent.grad is None else parent.grad + g
        return {name: np.zeros_like(x.value) if x.grad is None else x.grad for name, x in wanted.items()}

    def to_numpy(self, x: Var) -> Any:
        """Return the array as a NumPy array."""
        return self.ops.to_numpy(x.value)

    def reshape(self, x: Var, shape: tuple[int, ...]) -> Var:
        """Gradient: reshaped back."""
        return self.record(self.ops.reshape(x.value, shape), (x, lambda g: g.reshape(x.shape)))

    def transpose(self, x: Var, axes: tuple[int, ...]) -> Var:
        """Gradient: transposed back."""
        back = tuple(sorted(range(len(axes)), key=axes.__getitem__))
        return self.record(self.ops.transpose(x.value, axes), (x, lambda g: g.transpose(back)))

    def take(self, x: Var, index: Index, axis: int) -> Var:
        """Gradient: the sum over all places that a position was taken to."""
        size = x.shape[axis]

        def back(g: Any) -> Any:
            where, most = index.back(size)
            return (
                self.ops.take(g, where, axis).reshape(*g.shape[:axis], size, most, *g.shape[axis + 1 :]).sum(axis + 1)
            )

        return self.record(self.ops.take(x.value, index, axis), (x, back))

    def concat(self, xs: Sequence[Var], axis: int) -> Var:
        """Gradient: each array's own part."""
        ends = np.cumsum([x.shape[axis] for x in xs])
        parts = [(slice(None),) * axis + (slice(end - x.shape[axis], end),) for x, end in zip(xs, ends, strict=True)]
        pulls: list[Pull] = [(x, itemgetter(part)) for x, part in zip(xs, parts, strict=True)]
        return self.record(self.ops.concat([x.value for x in xs], axis), *pulls)

    def matmul(self, a: Var, b: Var) -> Var:
        """Gradient: g bᵀ and aᵀ g."""
        return self.record(
            self.ops.matmul(a.value, b.value),
            (a, lambda g: _fold(self.ops.matmul(g, b.value.swapaxes(-1, -2)), a.shape)),
            (b, lambda g: _fold(self.ops.matmul(a.value.swapaxes(-1, -2), g), b.shape)),
        )

    def conv2d(
        self,
        x: Var,
        weight: Var,
        bias: Var | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        groups: int = 1,
    ) -> Var:
        """Gradient: see `capscore.im2col`."""
        settings = stride, padding, groups
        return self.record(
            self.ops.conv2d(x.value, weight.value, _value(bias), *settings),
            (x, lambda g: im2col.input_gradient(g, x.value, weight.value, *settings)),
            (weight, lambda g: im2col.weight_gradient(g, x.value, weight.value, *settings)),
            *_of_bias(bias),
        )

    def fast_conv2d(self, x: Var, weight: Var, bias: Var | None, tiling: cook_toom.Tiling) -> Var:
        """Gradient: see `capscore.fast.cook_toom`."""
        if not tiling.pays(len(x.value)):
            return self.conv2d(x, weight, bias, (tiling.stride,) * 2, (tiling.padding,) * 2)
        back = _once(lambda g: cook_toom.gradients(self.ops, g, x.value, weight.value, tiling))
        y = self.ops.fast_conv2d(x.value, weight.value, _value(bias), tiling)  # type: ignore[attr-defined]
        return self.record(y, (x, lambda g: back(g)[0]), (weight, lambda g: back(g)[1]), *_of_bias(bias))

    def max_pool(self, x: Var, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Var:
        """Gradient: g for the first largest number of every window."""
        y = self.ops.max_pool(x.value, kernel, stride, padding)
        return self.record(y, (x, lambda g: im2col.max_pool_gradient(g, x.value, y, kernel, stride, padding)))

    def sum(self, x: Var, axis: Axes, keepdims: bool = False) -> Var:
        """Gradient: g for every entry summed."""
        axes = tuple(a % x.value.ndim for a in ((axis,) if isinstance(axis, int) else axis))
        kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
        y = self.ops.sum(x.value, axis, keepdims)
        return self.record(y, (x, lambda g: np.broadcast_to(g.reshape(kept), x.shape)))

    def norm(self, x: Var, axis: int, keepdims: bool = False) -> Var:
        """Gradient: the unit vector x/‖x‖, zero at zero."""
        n = self.ops.norm(x.value, axis, keepdims=True)
        unit = x.value / np.where(n == 0, n + 1, n)
        y = n if keepdims else n.squeeze(axis)
        return self.record(y, (x, lambda g: unit * g.reshape(n.shape)))

    def max(self, x: Var, axis: int, keepdims: bool = False) -> Var:
        """Gradient: g, shared by the largest entries."""
        y = self.ops.max(x.value, axis, True)

        def back(g: Any) -> Any:
            largest = (x.value == y).astype(y.dtype)
            return largest / largest.sum(axis=axis, keepdims=True) * g.reshape(y.shape)

        return self.record(y if keepdims else y.squeeze(axis), (x, back))

    def sqrt(self, x: Var) -> Var:
        """Gradient: 1 / 2√x."""
        y = self.ops.sqrt(x.value)
        return self.record(y, (x, lambda g: g / (y * 2)))

    def exp(self, x: Var) -> Var:
        """Gradient: e^x."""
        y = self.ops.exp(x.value)
        return self.record(y, (x, lambda g: g * y))

    def log(self, x: Var) -> Var:
        """Gradient: 1 / x."""
        return self.record(self.ops.log(x.value), (x, lambda g: g / x.value))

    def relu(self, x: Var) -> Var:
        """Gradient: 1 where x > 0."""
        y = self.ops.relu(x.value)
        return self.record(y, (x, lambda g: g * (y > 0)))

    def sigmoid(self, x: Var, small: bool = False) -> Var:
        """Gradient: y (1 - y)."""
        y = self.ops.sigmoid(x.value, small)
        return self.record(y, (x, lambda g: g * y * (y * -1.0 + 1.0)))

    def softmax(self, x: Var, axis: int, leaky: bool = False) -> Var:
        """Gradient: y (g - Σ g y), leaky or not: the extra logit is constant."""
        y = self.ops.softmax(x.value, axis, leaky)
        return self.record(y, (x, lambda g: y * (g - (g * y).sum(axis=axis, keepdims=True))))

    @property
    def FUSED(self) -> Mapping[type, Any]:
        """The backend's kernels, which bring their gradients with them."""
        return {kind: partial(self._fused, kernel) for kind, kernel in self.ops.FUSED.items()}

    def _fused(self, kernel: Any, routing: Any, *given: Var | None) -> Var:
        arrays = [_value(x) for x in given]
        v, kept = kernel.forward(routing, *arrays)
        back = _once(lambda g: kernel.backward(routing, g, kept, *arrays))

        def gradient(i: int) -> Callable[[Any], Any]:
            return lambda g: back(g)[i]

        return self.record(v, *((x, gradient(i)) for i, x in enumerate(given) if x is not None))

    def argmax_one_hot(self, x: Var) -> Var:
        """Gradient: none, a choice is constant around x."""
        return self.record(self.ops.argmax_one_hot(x.value))


def value_and_gradients(
    ops: Ops[Any], loss: Callable[[Tape, dict[str, Var]], Var], params: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return loss(tape, params) and its gradient for every parameter, as arrays of the backend `ops`."""
    tape = Tape(ops)
    variables = {name: tape.variable(value) for name, value in params.items()}
    value = loss(tape, variables)
    return value.value, tape.gradients(value, variables)


def _value(x: Var | None) -> Any:
    return None if x is None else x.value


def _of_bias(bias: Var | None) -> list[Pull]:
    return [] if bias is None else [(bias, lambda g: g.sum(axis=(0, 2, 3)))]


def _once(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function of one gradient that works once, whichever of the parents asks first."""
    found: list[Any] = []

    def ask(g: Any) -> Any:
        if not found:
            found.append(function(g))
        return found[0]

    return ask


def _fold(g: Any, shape: tuple[int, ...]) -> Any:
    """Sum a gradient over the axes along which an operand of `shape` was broadcast."""
    if g.shape == shape:
        return g
    lead = g.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(lead + i for i, n in enumerate(shape) if n == 1 and g.shape[lead + i] != 1)
    return g.sum(axis=axes, keepdims=True).reshape(shape) if axes else g
