"""Capsules that see every capsule below."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from capscore.errors import SpecError, short
from capscore.init import Constant, Init, TruncatedNormal, normal
from capscore.layer import Capsules, Grid, Param, Plan, Run, Shape
from capscore.ops import A, Index, Ops
from capscore.routing import DynamicRouting, LinearVotes, Routing, SharedVotes, ShiftedVotes, Votes, VotesShape
from capscore.values import check_flags, check_whole

from .routed import RoutedCaps


@dataclass(frozen=True)
class DenseCaps(RoutedCaps):
    """`count` capsules of `dim` numbers, each seeing every capsule below through a matrix and the routing.

    `shared`: capsules of one type share their matrices, wherever they lie; "all": capsules of all types share one for
    each of the `count`; "factors": the `count` share it too, W_j = weight · diag(scale_j)/√N with a `scale` [count, K]
    (Heinsen 2022). `coordinates`: votes are told where their capsule lies, by (x + ½)/width added to the last number of
    their first row and (y + ½)/height to that of the second (Hinton, Sabour, Frosst 2018, section 4). `vote_bias`:
    every vote has a learned number added to each of its own, shared as the matrices are.
    """

    count: int
    dim: int = 16
    routing: Routing = DynamicRouting()  # noqa: RUF009 - frozen, one for all is fine
    bias: bool = True
    pose_rows: int = 1
    shared: bool | str = False
    coordinates: bool = False
    vote_bias: bool = False
    init: Init | None = None

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self, "count")
        check_flags(self, "coordinates", "vote_bias")
        if type(self.shared) is not bool and self.shared not in ("all", "factors"):
            raise SpecError(f'DenseCaps: shared must be true, false, "all" or "factors", not {short(self.shared)}')
        super().__post_init__()
        if self.coordinates and self.pose_rows < 2:
            raise SpecError("DenseCaps: coordinates go to the first two rows of a pose: pose_rows must be at least 2")

    def sizes(self, x: Shape) -> VotesShape:
        """Return the sizes of the votes of a grid of capsules."""
        x = self.grid(x)
        return VotesShape(x.dims[0], self.count, self.dim, x.dim, self.pose_rows, alike=type(self.shared) is str)

    def matrices(self, x: Grid) -> int:
        """Return how many capsules of a grid have matrices of their own."""
        return {False: x.dims[0], True: x.types, "all": 1, "factors": 1}[self.shared]

    def plan(self, x: Shape) -> Plan:
        """Return a list of capsules. Under uniform couplings s has the same spread whatever the sizes."""
        x, votes = self.grid(x), self.sizes(x)
        own = self.matrices(x)
        std = 0.1 * math.sqrt(1152 / votes.n_in) * self.count / 10
        if self.shared == "factors":
            _, j, d, k = votes.weight
            params = {
                "weight": Param((1, 1, d, k), self.init or normal(2 / math.sqrt(k))),
                "scale": Param((j, k), normal(1.0)),
            }
        else:
            params = {"weight": Param((own, *votes.weight[1:]), self.init or TruncatedNormal(std))}
        if self.bias:
            params["bias"] = Param((self.count, self.dim))
        if self.vote_bias:
            params["vote_bias"] = Param((own, self.count, self.dim), Constant(0.0))
        params |= self.of_routing(votes)
        return Plan(Grid(self.count, 1, 1, self.dim, self.routing.activates), params, self.routing.multiply_adds(votes))

    def votes(self, ops: Ops[A], p: Mapping[str, A], x: Capsules[A], run: Run) -> Votes[A]:
        """Return the votes of capsules u [B, N, K]."""
        grid, sizes = self.grid(run.input), self.sizes(run.input)
        n, _, d, k = sizes.weight
        own = self.matrices(grid)
        each = Index(np.repeat(np.arange(own), n // own))  # whose matrices every capsule has

        def for_all(array: A) -> A:
            return ops.take(array, each, 0) if own < n and not sizes.alike else array

        weight, bias = for_all(p["weight"]), p.get("bias")
        votes: Votes[A]
        if sizes.alike:
            scale = p["scale"] / math.sqrt(n) if self.shared == "factors" else None
            weight = ops.reshape(weight, (-1, d, k))
            votes = SharedVotes(ops, x.pose, weight, bias, sizes.weight, x.activation, self.pose_rows, scale)
        else:
            votes = LinearVotes(ops, x.pose, weight, bias, sizes.weight, x.activation, self.pose_rows)
        if self.vote_bias:
            votes = ShiftedVotes(votes, ops.transpose(for_all(p["vote_bias"]), (1, 0, 2)), sizes.alike)
        if self.coordinates:
            y, x_ = np.indices((grid.height, grid.width)).reshape(2, -1)
            places = np.zeros((grid.types, len(y), self.pose_rows, self.dim // self.pose_rows))
            places[:, :, 0, -1], places[:, :, 1, -1] = (x_ + 0.5) / grid.width, (y + 0.5) / grid.height
            votes = ShiftedVotes(votes, ops.asarray(places.reshape(1, -1, self.dim), weight))
        return votes

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: Capsules[A], run: Run) -> Capsules[A]:
        """Turn capsules u [B, N, K] into v [B, J, D], by votes and routing."""
        plain = not (self.shared or self.coordinates or self.vote_bias)
        v = self.fused(ops, p, x.pose, run) if plain else None
        return self.route(ops, p, self.votes(ops, p, x, run), run) if v is None else v
