"""Upsampling: more positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from capscore.layer import Layer, Map, Plan, Run, Shape, need_map
from capscore.ops import A, Ops
from capscore.values import check_whole


@dataclass(frozen=True)
class Upsample(Layer):
    """Every position of a map `factor` times in each direction: the nearest neighbour."""

    factor: int = 2

    def __post_init__(self) -> None:
        """Check the factor."""
        check_whole(self, "factor")

    def plan(self, x: Shape) -> Plan:
        """Return a map."""
        x = need_map(self, x)
        return Plan(Map(x.channels, x.height * self.factor, x.width * self.factor), {}, 0)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> A:
        """Turn a map [B, C, H, W] into [B, C, H·factor, W·factor]."""
        assert isinstance(run.input, Map)
        c, h, w = run.input
        ones = ops.asarray(np.ones((1, 1, self.factor, 1, self.factor)), x)
        y = ops.reshape(x, (-1, h, 1, w, 1)) * ones  # [B·C, H, f, W, f]
        return ops.reshape(y, (-1, c, h * self.factor, w * self.factor))
