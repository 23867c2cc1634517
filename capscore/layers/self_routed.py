"""Class scores by self-routing, without votes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from capscore.errors import SpecError
from capscore.layer import Capsules, Grid, Layer, Plan, Run, Shape, Vector
from capscore.ops import A, Ops, scope
from capscore.routing import SelfRouting, VotesShape
from capscore.routing.self_routing import EPSILON, self_couplings
from capscore.squash import presence
from capscore.values import check_whole


@dataclass(frozen=True)
class SelfRoutedClasses(Layer):
    """Scores of `count` classes, log a_j of `SelfRouting`: of capsules that need no pose (Hahn, Pyeon, Kim 2019).

    The a_j sum to 1, so that `CrossEntropy` of the scores is the negative log-likelihood.
    """

    quantises: ClassVar[bool] = False

    count: int

    def __post_init__(self) -> None:
        """Check the number."""
        check_whole(self, "count")

    def plan(self, x: Shape) -> Plan:
        """Return a vector; parameters are those of `SelfRouting`."""
        if not isinstance(x, Grid):
            raise SpecError(f"SelfRoutedClasses takes capsules, not {x}: AsCaps or PrimaryCaps makes them")
        n, k = x.dims
        return Plan(Vector(self.count), SelfRouting().params(VotesShape(n, self.count, 0, k)), n * self.count * (k + 1))

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: Capsules[A], run: Run) -> A:
        """Turn capsules [B, N, K] into scores [B, J]."""
        n, k = run.input.dims
        with scope(ops, "route"):
            c, share = self_couplings(ops, x.pose, presence(ops, x), p, (n, self.count, k))
            a = ops.sum(c * share, 2)  # [J, B]
            return ops.log(ops.transpose(a, (1, 0)) + EPSILON)
