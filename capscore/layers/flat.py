"""Capsules that are cut from a map as it lies in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from capscore.errors import SpecError
from capscore.layer import Capsules, Grid, Layer, Plan, Run, Shape, need_map
from capscore.ops import A, Ops
from capscore.squash import squash
from capscore.values import check_whole

from .conv import divisor


@dataclass(frozen=True)
class FlatCaps(Layer):
    """Every `dim` numbers of a map that follow each other in memory, channel by channel and row by row, squashed.

    `PrimaryCaps` makes a capsule of several channels at one position, as the paper does. Public code that calls
    `view(batch, -1, dim)` on channels-first features makes capsules of neighbouring pixels instead, and of two channels
    where one ends within a capsule. This layer is for networks that were trained so. Their capsules have no place.
    """

    dim: int

    def __post_init__(self) -> None:
        """Check the size."""
        check_whole(self, "dim")

    def plan(self, x: Shape) -> Plan:
        """Return a list of capsules."""
        size = math.prod(need_map(self, x).dims)
        if size % self.dim:
            raise SpecError(f"capsules of {self.dim} numbers do not divide {x}; {divisor(size, self.dim)} would")
        return Plan(Grid(size // self.dim, 1, 1, self.dim), {}, 0)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> Capsules[A]:
        """Turn a map [B, C, H, W] into capsules [B, N, dim]."""
        return Capsules(squash(ops, ops.reshape(x, (-1, *run.output.dims))))
