"""A score of each class from the pose of its capsule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capscore.init import Constant, TruncatedNormal
from capscore.layer import Capsules, Grid, Layer, Param, Plan, Run, Shape, misplaced
from capscore.ops import A, Ops


@dataclass(frozen=True)
class Logits(Layer):
    """Each capsule's activation is a linear function of its pose, the same for all (Tsai et al. 2020).

    At the end of a network it makes the scores of classes, of any sign and size, for `CrossEntropy`.
    """

    def plan(self, x: Shape) -> Plan:
        """Return the same capsules, with activations."""
        if not isinstance(x, Grid):
            raise misplaced(self, x, "capsules")
        n, d = x.dims
        params = {"weight": Param((1, d), TruncatedNormal(0.1)), "bias": Param((1,), Constant(0.0))}
        return Plan(x._replace(active=True), params, n * d)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: Capsules[A], run: Run) -> Capsules[A]:
        """Return the capsules [B, N, K] as they are, and activations [B, N]."""
        return Capsules(x.pose, ops.sum(x.pose * p["weight"], 2) + p["bias"])
