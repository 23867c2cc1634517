"""Upsampling: more positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capscore.layer import Layer, Map, Plan, Run, Shape, need_map
from capscore.ops import A, Ops
from capscore.values import check_choice, check_whole


@dataclass(frozen=True)
class Upsample(Layer):
    """A map `factor` times as large in each direction.

    Every position is that of its nearest neighbour, or, "bilinear", of the four around it by their distance; beyond the
    middle of a pixel at the edge, of fewer.
    """

    factor: int = 2
    mode: str = "nearest"

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self, "factor")
        check_choice(self, "mode", "nearest", "bilinear")

    def plan(self, x: Shape) -> Plan:
        """Return a map."""
        x = need_map(self, x)
        output = Map(x.channels, x.height * self.factor, x.width * self.factor)
        products = x.channels * output.height * x.width * (x.height + output.width)  # rows, then columns
        return Plan(output, {}, products if self.mode == "bilinear" else 0)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> A:
        """Turn a map [B, C, H, W] into [B, C, H·factor, W·factor]."""
        assert isinstance(run.input, Map)
        c, h, w = run.input
        if self.mode == "bilinear":
            rows, columns = (ops.asarray(_between(size, self.factor), x) for size in (h, w))
            return ops.matmul(ops.matmul(rows, x), ops.transpose(columns, (1, 0)))
        ones = ops.asarray(np.ones((1, 1, self.factor, 1, self.factor)), x)
        y = ops.reshape(x, (-1, h, 1, w, 1)) * ones  # [B·C, H, f, W, f]
        return ops.reshape(y, (-1, c, h * self.factor, w * self.factor))


def _between(size: int, factor: int) -> NDArray[np.float64]:
    """Return the share of every old position in every new one, [size·factor, size]."""
    middle = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1)  # where it lies among the old ones
    distance = np.abs(middle[:, None] - np.arange(size))
    share: NDArray[np.float64] = np.maximum(1 - distance, 0)
    return share
