"""Layers around which the input goes, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capscore.errors import SpecError
from capscore.layer import Grid, Layer, Plan, Row, Run, Shape
from capscore.ops import A, Ops

from .activation import activate, check_activation
from .chain import check_layers, plan_chain, plan_of, through


@dataclass(frozen=True)
class Residual(Layer):
    """A block of layers whose output is added to its input (He et al. 2016), followed by an activation.

    Both are maps or vectors. `shortcut` are layers on the input's way; without any, the block must keep the shape.
    """

    layers: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()
    activation: str = "relu"

    def __post_init__(self) -> None:
        """Check every setting."""
        check_layers(self, "layers")
        check_layers(self, "shortcut")
        check_activation(self)

    def rows(self, x: Shape) -> tuple[Row, ...]:
        """Return the layers of the block, then those of the shortcut."""
        return *plan_chain(self.layers, x, "layers"), *plan_chain(self.shortcut, x, "shortcut")

    def plan(self, x: Shape) -> Plan:
        """Return the shape of the sum; parameters are `layers.{i}.…` and `shortcut.{i}.…`."""
        rows = self.rows(x)
        block = rows[len(self.layers) - 1].output if self.layers else x
        past = rows[-1].output if self.shortcut else x
        if isinstance(block, Grid):
            raise SpecError(f"Residual adds maps or vectors, and its block makes {block}: capsules come after it")
        if block != past:
            raise SpecError(
                f"Residual: the block makes {block}, the shortcut {past}; both must be of one shape: "
                "a Conv of kernel 1 as shortcut changes channels and, by its stride, the size"
            )
        return plan_of(rows, block)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> Any:
        """Return activation(block(x) + shortcut(x))."""
        rows, count = self.rows(run.input), len(self.layers)
        block, past = (through(ops, part, p, x, run) for part in (rows[:count], rows[count:]))
        return activate(ops, block + past, self.activation)
