"""What layers of two ways have in common: a block of layers, and a shortcut beside it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from capscore.layer import Layer, Plan, Row, Run, Shape
from capscore.ops import A, Ops

from .chain import check_layers, plan_chain, plan_of, through


class Branches(Layer):
    """A block of layers and, beside it, its input: as it is, or as the layers of `shortcut` make it."""

    layers: tuple[Layer, ...]
    shortcut: tuple[Layer, ...]

    def __post_init__(self) -> None:
        """Check that they are layers; any sequence is taken as a tuple."""
        check_layers(self, "layers")
        check_layers(self, "shortcut")

    @abstractmethod
    def shape(self, block: Shape, past: Shape) -> Shape:
        """Return the shape of both together, or say why they do not fit."""

    @abstractmethod
    def join(self, ops: Ops[A], block: Any, past: Any) -> Any:
        """Return both together: what the block makes, and what comes past it."""

    def rows(self, x: Shape) -> tuple[Row, ...]:
        """Return the layers of the block, then those of the shortcut."""
        return *plan_chain(self.layers, x, "layers"), *plan_chain(self.shortcut, x, "shortcut")

    def plan(self, x: Shape) -> Plan:
        """Return the shape of both together; parameters are `layers.{i}.…` and `shortcut.{i}.…`."""
        rows = self.rows(x)
        block = rows[len(self.layers) - 1].output if self.layers else x
        past = rows[-1].output if self.shortcut else x
        return plan_of(rows, self.shape(block, past))

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: Any, run: Run) -> Any:
        """Run the block and the shortcut, and join them."""
        rows, count = self.rows(run.input), len(self.layers)
        block, past = (through(ops, part, p, x, run) for part in (rows[:count], rows[count:]))
        return self.join(ops, block, past)
