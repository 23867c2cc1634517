"""Convolution the other way: maps grow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from capscore.init import HeNormal, Init
from capscore.layer import Layer, Map, Param, Plan, Run, Shape, need_map
from capscore.ops import A, Index, Ops
from capscore.values import check_kind, check_whole

from .activation import activate, check_activation
from .chain import check_size


@dataclass(frozen=True)
class ConvTranspose(Layer):
    """A transposed convolution: a map `stride` times as large, whose every position hands its numbers to a window.

    It is a convolution of the map with `stride` - 1 zeros between any two of its rows and columns. The weight
    [channels, in, kernel, kernel] is that of this convolution: what others call the kernel, mirrored. Windows lie as
    TensorFlow's padding "same" has them: the window of the first position begins (kernel - stride) // 2 before the map.
    """

    channels: int
    kernel: int
    stride: int = 1
    activation: str = "relu"
    init: Init | None = None

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self, "channels", "kernel", "stride")
        check_activation(self)
        check_kind(self, "init", Init, "HeNormal()", optional=True)

    def plan(self, x: Shape) -> Plan:
        """Return a map."""
        c, h, w = need_map(self, x)
        shape = self.channels, c, self.kernel, self.kernel
        check_size("ConvTranspose: the map among zeros", (c, *(n * self.stride + self.kernel - 1 for n in (h, w))))
        params = {"weight": Param(shape, self.init or HeNormal()), "bias": Param(shape[:1])}
        return Plan(Map(self.channels, h * self.stride, w * self.stride), params, math.prod(shape) * h * w)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> A:
        """Turn a map [B, C, H, W] into a map [B, channels, H·stride, W·stride]."""
        assert isinstance(run.input, Map)
        for axis in (2, 3):
            x = ops.take(x, self._spread(run.input[axis - 1]), axis)
        return activate(ops, ops.conv2d(x, p["weight"], p["bias"], (1, 1), (0, 0)), self.activation)

    def _spread(self, size: int) -> Index:
        """Return where a line of the map lies among zeros, so that a window at every place makes the new line."""
        before = max(0, self.kernel - self.stride) // 2
        at = np.arange(size * self.stride + self.kernel - 1) + before - (self.kernel - 1)
        there = (at >= 0) & (at < size * self.stride) & (at % self.stride == 0)
        return Index(np.where(there, at // self.stride, -1))
