"""Fully connected features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from capscore.errors import SpecError
from capscore.init import Init, TruncatedNormal
from capscore.layer import Grid, Layer, Map, Param, Plan, Run, Shape, Vector, misplaced
from capscore.ops import A, Ops
from capscore.values import check_kind, sizes

from .activation import activate, check_activation


@dataclass(frozen=True)
class Linear(Layer):
    """A matrix and a bias over all features of a map or a vector, followed by an activation.

    `output` is one size, for a vector, or three: (channels, height, width) of a map.
    """

    output: int | tuple[int, ...]
    activation: str = "relu"
    init: Init | None = None  # of the weight; None: standard deviation 0.1, the authors' at any size

    def __post_init__(self) -> None:
        """Check every setting."""
        wanted = sizes([self.output] if isinstance(self.output, int) else self.output, "Linear: output")
        if len(wanted) not in (1, 3):
            raise SpecError(f"Linear: output must be one size or (channels, height, width), not {wanted}")
        object.__setattr__(self, "output", wanted[0] if len(wanted) == 1 else wanted)
        check_activation(self)
        check_kind(self, "init", Init, "HeNormal()", optional=True)

    def plan(self, x: Shape) -> Plan:
        """Return a vector or a map."""
        if isinstance(x, Grid):
            raise misplaced(self, x, "a map or a vector")
        output = Vector(self.output) if isinstance(self.output, int) else Map(*self.output)
        shape = math.prod(output.dims), math.prod(x.dims)
        params = {"weight": Param(shape, self.init or TruncatedNormal(0.1)), "bias": Param(shape[:1])}
        return Plan(output, params, math.prod(shape))

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> A:
        """Turn features into [B, size] or [B, channels, height, width]."""
        if isinstance(run.input, Map):
            x = ops.reshape(x, (-1, math.prod(run.input.dims)))
        y = activate(ops, ops.matmul(x, ops.transpose(p["weight"], (1, 0))) + p["bias"], self.activation)
        return ops.reshape(y, (-1, *run.output.dims)) if isinstance(run.output, Map) else y
