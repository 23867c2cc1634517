"""Capsules on a grid that see those below in a window around them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from capscore.init import Init, TruncatedNormal
from capscore.layer import Capsules, Grid, Map, Param, Plan, Run, Shape
from capscore.ops import A, Ops
from capscore.routing import DynamicRouting, LinearVotes, Routing, Votes, VotesShape
from capscore.routing.windows import Sizes, Windows, windows
from capscore.values import Pair, check_flags, check_whole, pair

from .conv import check_window, margins, slide
from .routed import RoutedCaps


@dataclass(frozen=True)
class ConvCaps(RoutedCaps):
    """Capsules of `types` at every position of a grid, each seeing the capsules in a window below.

    Matrices are shared over the positions: weight [kernel · kernel · types below, types, dim, dim below], the window
    row by row, its types last. Padding adds capsules of zeros, whose activation is 0.

    `scrambled` mixes the numbers of the windows up as the published code of inverted attention does, for its weights:
    at each place in the window, the poses of all positions, [positions, dim below], are written down transposed and
    read as if they were not.
    """

    types: int
    dim: int
    kernel: Pair
    stride: Pair = 1
    padding: Pair | str = 0
    routing: Routing = DynamicRouting()  # noqa: RUF009 - frozen, one for all is fine
    bias: bool = True
    pose_rows: int = 1
    init: Init | None = None
    scrambled: bool = False

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self, "types")
        check_flags(self, "scrambled")
        check_window(self)
        super().__post_init__()

    def windows(self, x: Shape) -> Windows:
        """Return the windows of a grid, or say why they do not fit."""
        x = self.grid(x)
        slide(self, Map(x.types * x.dim, x.height, x.width))
        return windows(Sizes(*x[:3], pair(self.kernel), pair(self.stride), margins(self)))

    def sizes(self, x: Shape) -> VotesShape:
        """Return the sizes of the votes of one window."""
        found = self.windows(x)
        return VotesShape(found.n_in, self.types, self.dim, self.grid(x).dim, self.pose_rows, found.positions)

    def plan(self, x: Shape) -> Plan:
        """Return a grid of capsules. Under uniform couplings s has the same spread whatever the sizes."""
        votes, found = self.sizes(x), self.windows(x)
        std = 0.1 * math.sqrt(1152 / votes.n_in) * self.types / 10
        params = {"weight": Param(votes.weight, self.init or TruncatedNormal(std))}
        if self.bias:
            params["bias"] = Param((self.types, self.dim))
        grid = Grid(self.types, found.height, found.width, self.dim, self.routing.activates)
        return Plan(grid, params | self.of_routing(votes), self.routing.multiply_adds(votes))

    def pairs(self, x: Shape) -> tuple[int, int]:
        """Return how many capsules all windows have together, and for how many types each votes."""
        found = self.windows(x)
        return found.positions * found.n_in, self.types

    def votes(self, ops: Ops[A], p: Mapping[str, A], x: Capsules[A], run: Run) -> Votes[A]:
        """Return the votes of capsules [B, N, K] for every window of every image."""
        return self._votes(ops, p, self._cut(ops, x, run), run)

    def _cut(self, ops: Ops[A], x: Capsules[A], run: Run) -> Capsules[A]:
        found, d = self.windows(run.input), self.grid(run.input).dim
        pose = found.cut(ops, x.pose, d)
        if self.scrambled:
            pose = ops.transpose(ops.reshape(pose, (-1, found.positions, found.n_in, d)), (0, 2, 3, 1))
            pose = ops.transpose(ops.reshape(pose, (-1, found.n_in, found.positions, d)), (0, 2, 1, 3))
            pose = ops.reshape(pose, (-1, found.n_in, d))
        return Capsules(pose, None if x.activation is None else found.cut(ops, x.activation))

    def _votes(self, ops: Ops[A], p: Mapping[str, A], cut: Capsules[A], run: Run) -> Votes[A]:
        found, shape = self.windows(run.input), self.sizes(run.input).weight
        return LinearVotes(ops, cut.pose, p["weight"], p.get("bias"), shape, cut.activation, self.pose_rows, found)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: Capsules[A], run: Run) -> Capsules[A]:
        """Turn capsules [B, N, K] of a grid into those of another, [B, N', D], by votes and routing.

        A trace of the couplings has the inputs of all windows one after another.
        """
        found = self.windows(run.input)
        inside = run._replace(trace=None if run.trace is None else [])
        cut = self._cut(ops, x, run)
        v = self.fused(ops, p, cut.pose, run)
        if v is None:
            v = self.route(ops, p, self._votes(ops, p, cut, run), inside)
        for each in inside.trace or ():
            c, pairs = each.couplings, self.pairs(run.input)
            c = c if isinstance(c, float) else ops.reshape(c, (self.types, -1, pairs[0]))
            run.trace.append(each._replace(couplings=c, pairs=pairs))  # type: ignore[union-attr]
        pose = ops.transpose(ops.reshape(v.pose, (-1, found.positions, self.types, self.dim)), (0, 2, 1, 3))
        pose = ops.reshape(pose, (-1, self.types * found.positions, self.dim))
        if v.activation is None:
            return Capsules(pose)
        activation = ops.transpose(ops.reshape(v.activation, (-1, found.positions, self.types)), (0, 2, 1))
        return Capsules(pose, ops.reshape(activation, (-1, self.types * found.positions)))
