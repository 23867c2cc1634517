"""Capsules that see every capsule below, each through a matrix of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from capscore.errors import SpecError
from capscore.init import TruncatedNormal
from capscore.layer import Capsules, Grid, Layer, Param, Plan, Run, Shape
from capscore.ops import A, Ops
from capscore.routing import DynamicRouting, LinearVotes, Routing, VotesShape
from capscore.values import check_flags, check_kind, check_whole

ROUTING = "routing."  # before the names of what a routing learns


@dataclass(frozen=True)
class DenseCaps(Layer):
    """`count` capsules of `dim` numbers, each seeing every capsule below through a matrix and the routing."""

    quantises: ClassVar[bool] = False

    count: int
    dim: int = 16
    routing: Routing = DynamicRouting()  # noqa: RUF009 - frozen, one for all is fine
    bias: bool = True

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self, "count", "dim")
        check_kind(self, "routing", Routing, "DynamicRouting()")
        check_flags(self, "bias")

    def votes(self, x: Shape) -> VotesShape:
        """Return the sizes of the votes of a grid of capsules."""
        if not isinstance(x, Grid):
            raise SpecError(f"DenseCaps takes capsules, not {x}: PrimaryCaps makes them")
        return VotesShape(x.dims[0], self.count, self.dim, x.dim)

    def plan(self, x: Shape) -> Plan:
        """Return a list of capsules. Under uniform couplings s has the same spread whatever the sizes."""
        votes = self.votes(x)
        std = 0.1 * math.sqrt(1152 / votes.n_in) * self.count / 10
        params = {"weight": Param(tuple(votes), TruncatedNormal(std))}
        if self.bias:
            params["bias"] = Param((self.count, self.dim))
        params |= {ROUTING + name: param for name, param in self.routing.params(votes).items()}
        return Plan(Grid(self.count, 1, 1, self.dim, self.routing.activates), params, self.routing.multiply_adds(votes))

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: Capsules[A], run: Run) -> Capsules[A]:
        """Turn capsules u [B, N, K] into v [B, J, D], by votes and routing.

        A backend's fused form of the routing runs unless a trace is asked for: it computes the same and keeps none.
        """
        weight, bias = p["weight"], p.get("bias")
        fused = ops.FUSED.get(type(self.routing)) if run.trace is None else None
        if fused is not None and (v := fused(self.routing, x.pose, weight, bias)) is not None:
            return Capsules(v)
        votes = LinearVotes(ops, x.pose, weight, bias, self.votes(run.input), x.activation)
        own = {name.removeprefix(ROUTING): array for name, array in p.items() if name.startswith(ROUTING)}
        return self.routing(ops, votes, own, run)
