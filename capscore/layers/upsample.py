"""Upsampling: more positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore.layer import Layer, Map, Plan, Run, Shape, need_map
from capscore.ops import A, Ops
from capscore.values import check_choice, check_whole


@dataclass(frozen=True)
class Upsample(Layer):
    """A map `factor` times as large in each direction.

    A new position takes the number of the "nearest" old one, or the "bilinear" mean of the nearest in each direction:
    both have their centres at (i + ½) / size, and the outermost numbers go on beyond the border (Keras, TensorFlow;
    PyTorch with align_corners=False).
    """

    factor: int = 2
    mode: str = "nearest"

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self, "factor")
        check_choice(self, "mode", "nearest", "bilinear")

    def plan(self, x: Shape) -> Plan:
        """Return a map."""
        c, h, w = need_map(self, x)
        made = Map(c, h * self.factor, w * self.factor)
        return Plan(made, {}, c * h * made.width * (w + made.height) if self.mode == "bilinear" else 0)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> A:
        """Turn a map [B, C, H, W] into [B, C, H·factor, W·factor]."""
        assert isinstance(run.input, Map)
        c, h, w = run.input
        if self.mode == "bilinear":
            x = ops.matmul(x, ops.asarray(self._means(w).T, x))  # [B, C, H, W·factor]
            return ops.matmul(ops.asarray(self._means(h), x), x)
        ones = ops.asarray(np.ones((1, 1, self.factor, 1, self.factor)), x)
        y = ops.reshape(x, (-1, h, 1, w, 1)) * ones  # [B·C, H, f, W, f]
        return ops.reshape(y, (-1, c, h * self.factor, w * self.factor))

    def _means(self, size: int) -> NDArray[Any]:
        """Return [size · factor, size]: how much each new position of a line takes of every old one."""
        at = (np.arange(size * self.factor) + 0.5) / self.factor - 0.5
        at = np.clip(at, 0, size - 1)
        means: NDArray[Any] = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size)))
        return means
