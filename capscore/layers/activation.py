"""The activations of layers that are not capsules, said with the ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from capscore.layer import Grid, Layer, Plan, Run, Shape, misplaced
from capscore.ops import A, Ops
from capscore.values import Value, check_choice, check_numbers

SLOPE = 0.01  # of leaky ReLU below zero


def _leaky_relu(ops: Any, x: Any, slope: float = SLOPE) -> Any:
    return ops.relu(x) - ops.relu(x * -1.0) * slope


def _elu(ops: Any, x: Any) -> Any:
    return ops.relu(x) + (ops.exp(ops.relu(x * -1.0) * -1.0) - 1.0)


def _gelu(ops: Any, x: Any) -> Any:
    """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))): the form that needs no error function (Hendrycks, Gimpel 2016)."""
    steep = 1.5957691216057308  # 2√(2/π): a tanh as a sigmoid
    part = x * 0.01  # so that its square, a factor of the gradient, is finite in float32 for all x up to 1e20
    return x * ops.sigmoid(x * steep + part * part * (part * (0.044715 * steep * 1e6)))


ACTIVATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "relu": lambda ops, x: ops.relu(x),
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "gelu": _gelu,
    "silu": lambda ops, x: x * ops.sigmoid(x),
    "sigmoid": lambda ops, x: ops.sigmoid(x),
    "none": lambda ops, x: x,
}


def check_activation(value: Value) -> None:
    """Raise SpecError unless the field `activation` names one."""
    check_choice(value, "activation", *ACTIVATIONS)


def activate(ops: Ops[A], x: A, name: str) -> A:
    """Apply the activation called `name`."""
    y: A = ACTIVATIONS[name](ops, x)
    return y


@dataclass(frozen=True)
class Activation(Layer):
    """An activation by itself; `slope` is that of "leaky_relu" below zero."""

    activation: str = "relu"
    slope: float = SLOPE

    def __post_init__(self) -> None:
        """Check every setting."""
        check_activation(self)
        check_numbers(self, "slope", most=1)

    def plan(self, x: Shape) -> Plan:
        """Return the same shape."""
        if isinstance(x, Grid):
            raise misplaced(self, x, "a map or a vector")
        return Plan(x, {}, 0)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> A:
        """Return an array of the same shape."""
        if self.activation == "leaky_relu":
            return _leaky_relu(ops, x, self.slope)  # type: ignore[no-any-return]
        return activate(ops, x, self.activation)
