"""Normalisation of capsules: of each by itself, or over the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from capscore.layer import Capsules, Grid, Layer, Map, Plan, Run, Shape, misplaced
from capscore.ops import A, Ops
from capscore.values import check_choice, check_flags, check_numbers

from .norm import BatchNorm, LayerNorm


@dataclass(frozen=True)
class CapsNorm(Layer):
    """Poses at mean 0 and variance 1, then, if `affine`, scaled and shifted. Activations stay.

    Over the "capsule", the numbers of each are a `LayerNorm` of their own; all share one scale and shift [dim]. Over
    the "batch", the poses are a map of types·dim channels, type by type, and that is given to `BatchNorm`: scale,
    shift and running statistics are [types·dim], and `momentum` is that of the statistics.
    """

    over: str = "capsule"
    affine: bool = True
    momentum: float = 0.1
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        """Check every setting."""
        check_choice(self, "over", "capsule", "batch")
        check_flags(self, "affine")
        check_numbers(self, "momentum", most=1)
        check_numbers(self, "epsilon", least=1e-12, most=1)

    def _map(self, x: Shape) -> Map:
        """Return what the norm takes the capsules of a grid for, or raise SpecError."""
        if not isinstance(x, Grid):
            raise misplaced(self, x, "capsules")
        return Map(x.dim, 1, 1) if self.over == "capsule" else Map(x.types * x.dim, x.height, x.width)

    @property
    def _norm(self) -> BatchNorm | LayerNorm:
        return LayerNorm(self.epsilon) if self.over == "capsule" else BatchNorm(self.momentum, self.epsilon)

    def plan(self, x: Shape) -> Plan:
        """Return the same shape."""
        plan = self._norm.plan(self._map(x))
        params = {name: p for name, p in plan.params.items() if self.affine or name not in ("weight", "bias")}
        each = x.dims[0] if self.over == "capsule" else 1
        return Plan(x, params, each * plan.multiply_adds)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: Capsules[A], run: Run) -> Capsules[A]:
        """Return capsules [B, N, K]."""
        (n, d), shape = run.input.dims, self._map(run.input)
        c, h, w = shape
        if not self.affine:
            p = {**p, "weight": ops.asarray(np.ones(c), x.pose), "bias": ops.asarray(np.zeros(c), x.pose)}
        poses = ops.reshape(x.pose, (-1, c // d, h * w, d))
        y = ops.reshape(ops.transpose(poses, (0, 1, 3, 2)), (-1, c, h, w))
        y = self._norm(ops, p, y, run._replace(input=shape, output=shape))
        y = ops.transpose(ops.reshape(y, (-1, c // d, d, h * w)), (0, 1, 3, 2))
        return x._replace(pose=ops.reshape(y, (-1, n, d)))
