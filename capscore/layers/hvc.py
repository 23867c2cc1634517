"""Homogeneous vector capsules: "No Routing Needed Between Capsules" (Byerly, Kalganova, Dear 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from capscore.errors import SpecError
from capscore.init import Constant, Init, TruncatedNormal
from capscore.layer import Capsules, Grid, Layer, Map, Param, Plan, Row, Run, Shape, Vector
from capscore.ops import A, Ops
from capscore.squash import presence
from capscore.values import check_kind, check_whole

from .chain import place, plan_of, through
from .norm import BatchNorm


class Normalised(Layer):
    """A layer of capsules that ends in a `BatchNorm`, whose statistics are over the batch and all its capsules."""

    quantises: ClassVar[bool] = False

    norm: BatchNorm

    def __post_init__(self) -> None:
        """Check every setting."""
        check_kind(self, "norm", BatchNorm, "BatchNorm(scale=False)")

    def grid(self, x: Shape) -> Grid:
        """Return the input shape of a layer that takes capsules, or raise SpecError."""
        if not isinstance(x, Grid):
            raise SpecError(f"{type(self).__name__} takes capsules, not {x}: AsCaps or PrimaryCaps makes them")
        return x

    def normalised(self, ops: Ops[A], p: Mapping[str, A], x: Any, run: Run) -> Any:
        """Return what [B, D, J] becomes: the D are channels, the capsules positions."""
        (row,) = self.rows(run.input)
        return ops.reshape(
            through(ops, (row,), p, ops.reshape(x, (-1, *row.input.dims)), run), (-1, *row.input.dims[:2])
        )


@dataclass(frozen=True)
class HomogeneousCaps(Normalised):
    """`count` capsules, each the sum of all below times a vector of its own, number by number: y_j = Σ_i w_ij ⊙ x_i.

    Nothing is routed, and a number of a capsule sees the same number of others alone. Then come batch normalisation,
    with statistics for each of the numbers over the batch and the `count`, and ReLU (section 3). In the paper a capsule
    below is the channels of a position, `AsCaps(1, channels, squash="none")`.
    """

    count: int
    norm: BatchNorm = BatchNorm(epsilon=1e-3, activation="relu", scale=False)  # noqa: RUF009 - frozen
    init: Init | None = None  # of the weight; None: 1/√N

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self, "count")
        check_kind(self, "init", Init, "HeNormal()", optional=True)
        super().__post_init__()

    def rows(self, x: Shape) -> tuple[Row, ...]:
        """Return the normalisation, in its place."""
        return (place(self.norm, Map(self.grid(x).dim, self.count, 1), "norm"),)

    def plan(self, x: Shape) -> Plan:
        """Return a list of capsules; parameters are weight [N, J, D] and `norm.…`."""
        (n, d), plan = self.grid(x).dims, plan_of(self.rows(x), Grid(self.count, 1, 1, self.grid(x).dim))
        weight = Param((n, self.count, d), self.init or TruncatedNormal(1 / math.sqrt(n)))
        return Plan(plan.output, {"weight": weight} | plan.params, plan.multiply_adds + n * self.count * d)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: Capsules[A], run: Run) -> Capsules[A]:
        """Turn capsules [B, N, D] into [B, J, D]."""
        y = ops.matmul(ops.transpose(x.pose, (2, 0, 1)), ops.transpose(p["weight"], (2, 0, 1)))  # [D, B, J]
        y = self.normalised(ops, p, ops.transpose(y, (1, 0, 2)), run)  # [B, D, J]
        return Capsules(ops.transpose(y, (0, 2, 1)))


@dataclass(frozen=True)
class BranchScores(Normalised):
    """Scores of classes by one branch of a network: how present its capsules are, times a learned weight, normalised.

    The statistics are over the batch and the classes. `Residual` adds the scores of branches, which end in this layer,
    each with a weight of its own (section 3.1).
    """

    norm: BatchNorm = BatchNorm(epsilon=1e-3, scale=False)  # noqa: RUF009 - frozen

    def rows(self, x: Shape) -> tuple[Row, ...]:
        """Return the normalisation, in its place."""
        return (place(self.norm, Map(1, self.grid(x).dims[0], 1), "norm"),)

    def plan(self, x: Shape) -> Plan:
        """Return a vector of as many scores as there are capsules; parameters are weight [1] and `norm.…`."""
        n, d = self.grid(x).dims
        plan = plan_of(self.rows(x), Vector(n))
        return Plan(plan.output, {"weight": Param((1,), Constant(1.0))} | plan.params, plan.multiply_adds + n * (d + 1))

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: Capsules[A], run: Run) -> A:
        """Turn capsules [B, J, D] into scores [B, J]."""
        y = self.normalised(ops, p, presence(ops, x) * p["weight"], run)
        return ops.reshape(y, (-1, run.input.dims[0]))
