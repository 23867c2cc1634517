"""Dropout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from capscore.layer import Capsules, Layer, Plan, Run, Shape
from capscore.ops import A, Ops
from capscore.values import check_flags, check_numbers


@dataclass(frozen=True)
class Dropout(Layer):
    """In training, a share `rate` of the numbers is zero and the others are larger for it; else nothing happens.

    With `whole`, channels of a map and capsules vanish as a whole. What vanishes depends on the seed, the step and the
    layer alone, and is the same on every backend. (`caps.Module` on PyTorch draws from PyTorch's generator.)
    """

    rate: float = 0.5
    whole: bool = False

    def __post_init__(self) -> None:
        """Check every setting."""
        check_numbers(self, "rate", most=0.99)
        check_flags(self, "whole")

    def plan(self, x: Shape) -> Plan:
        """Return the same shape."""
        return Plan(x, {}, 0)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: Any, run: Run) -> Any:
        """Return `x`, thinned in training."""
        if not run.training or not self.rate:
            return x
        array = x.pose if isinstance(x, Capsules) else x
        dims = run.input.dims
        if self.whole and len(dims) > 1:
            dims = (dims[0], *([1] * (len(dims) - 1)))
        if run.thin is not None:
            y = run.thin(array, self.rate, dims)
            return x._replace(pose=y) if isinstance(x, Capsules) else y
        (mine, processes), batch = run.share, array.shape[0]  # training alone reads the batch

        def kept(rng: np.random.Generator) -> Any:
            whole = rng.random((batch * processes, *dims))
            return (whole[mine::processes] >= self.rate) / (1 - self.rate)

        y = array * run.draw(ops, kept, (batch, *dims), array)
        return x._replace(pose=y) if isinstance(x, Capsules) else y
