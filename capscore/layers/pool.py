"""Pooling: fewer positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from capscore.errors import SpecError
from capscore.layer import Layer, Map, Plan, Run, Shape, Vector, need_map
from capscore.ops import A, Ops
from capscore.values import Pair, pair

from .conv import check_window, margins, slide


@dataclass(frozen=True)
class Pool(Layer):
    """One number of every window of a map; `stride` is the window's size if None."""

    kernel: Pair = 2
    stride: Pair | None = None
    padding: Pair | str = 0

    def __post_init__(self) -> None:
        """Check every setting."""
        if self.stride is None:
            object.__setattr__(self, "stride", self.kernel)
        check_window(self)
        if any(2 * margin > size for margin, size in zip(margins(self), pair(self.kernel), strict=True)):
            raise SpecError(
                f"{type(self).__name__}: padding {self.padding} is more than half the kernel {self.kernel}; "
                f"at most {min(pair(self.kernel)) // 2} would fit"
            )

    def plan(self, x: Shape) -> Plan:
        """Return a map."""
        x = need_map(self, x)
        return Plan(Map(x.channels, *slide(self, x)), {}, 0)

    @property
    def step(self) -> tuple[int, int]:
        """The stride, down and right."""
        assert self.stride is not None
        return pair(self.stride)


@dataclass(frozen=True)
class MaxPool(Pool):
    """The largest number of every window of a map; `stride` is the window's size if None."""

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> A:
        """Turn a map [B, C, H, W] into [B, C, H', W']."""
        return ops.max_pool(x, pair(self.kernel), self.step, margins(self))


@dataclass(frozen=True)
class AveragePool(Pool):
    """The mean of every window of a map, zeros of the padding included; `stride` is the window's size if None."""

    def plan(self, x: Shape) -> Plan:
        """Return a map."""
        plan, (kh, kw) = super().plan(x), pair(self.kernel)
        return plan._replace(multiply_adds=math.prod(plan.output.dims) * kh * kw)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> A:
        """Turn a map [B, C, H, W] into [B, C, H', W']: a depthwise convolution by equal numbers."""
        assert isinstance(run.input, Map)
        kh, kw = pair(self.kernel)
        weight = ops.asarray(np.full((run.input.channels, 1, kh, kw), 1 / (kh * kw)), x)
        return ops.conv2d(x, weight, None, self.step, margins(self), run.input.channels)


@dataclass(frozen=True)
class GlobalPool(Layer):
    """The mean of every channel of a map: a vector."""

    def plan(self, x: Shape) -> Plan:
        """Return a vector."""
        x = need_map(self, x)
        return Plan(Vector(x.channels), {}, x.channels * x.height * x.width)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> A:
        """Turn a map [B, C, H, W] into [B, C]."""
        assert isinstance(run.input, Map)
        return ops.sum(x, (2, 3)) / (run.input.height * run.input.width)
