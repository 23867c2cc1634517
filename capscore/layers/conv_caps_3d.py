"""Capsules on a grid, each seeing one kind of vote of all types below: the 3-D convolution of DeepCaps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from capscore.errors import SpecError
from capscore.init import HeNormal, Init
from capscore.layer import Capsules, Grid, Layer, Map, Param, Plan, Run, Shape
from capscore.ops import A, Index, Ops, scope
from capscore.routing import ArrayVotes, DynamicRouting, dynamic_routing
from capscore.squash import SQUASHES
from capscore.values import Pair, check_flags, check_kind, check_whole, pair

from .chain import check_size
from .conv import check_window, margins, slide


@dataclass(frozen=True)
class ConvCaps3D(Layer):
    """Capsules of `types` at every position of a grid, which types below vote for as a whole (Rajasegaran et al. 2019).

    Every type below is convolved with the same kernel [types · dim, dim below, kernel, kernel]: a 3-D convolution whose
    depth and step are the dimension below (section 3.1). A type below is a child, and every capsule above, of all types
    and positions, a parent. So dynamic routing has one coupling for each child and parent: its softmax is over types
    and positions together, and all capsules of a type are squashed as one vector (equations 3 to 5).

    `scrambled`: as the authors' code has it, whose reshape takes numbers in the order (y, x, type, number) for numbers
    in the order (type, number, y, x). Their weights mean that.
    """

    quantises: ClassVar[bool] = False

    types: int
    dim: int
    kernel: Pair
    stride: Pair = 1
    padding: Pair | str = 0
    routing: DynamicRouting = DynamicRouting()  # noqa: RUF009 - frozen, one for all is fine
    bias: bool = True
    init: Init | None = None
    scrambled: bool = False

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self, "types", "dim")
        check_window(self)
        check_kind(self, "routing", DynamicRouting, "DynamicRouting()")
        check_flags(self, "bias", "scrambled")
        check_kind(self, "init", Init, "HeNormal()", optional=True)

    def plan(self, x: Shape) -> Plan:
        """Return a grid of capsules."""
        if not isinstance(x, Grid):
            raise SpecError(f"ConvCaps3D takes capsules, not {x}: PrimaryCaps makes them")
        height, width = slide(self, Map(x.types * x.dim, x.height, x.width))
        shape = (self.types * self.dim, x.dim, *pair(self.kernel))
        params = {"weight": Param(shape, self.init or HeNormal())}
        if self.bias:
            params["bias"] = Param((self.types, self.dim))
        check_size("ConvCaps3D: votes", (x.types, height, width, shape[0]))
        votes = x.types * height * width * shape[0]
        products = math.prod(shape[1:]) + 2 * self.routing.iterations - 1  # and a combine or an agree, in turn
        return Plan(Grid(self.types, height, width, self.dim), params, votes * products)

    def pairs(self, x: Shape) -> tuple[int, int]:
        """Return how many types vote, and for how many capsules."""
        assert isinstance(x, Grid)
        return x.types, self.plan(x).output.dims[0]

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: Capsules[A], run: Run) -> Capsules[A]:
        """Turn capsules [B, N, K] of a grid into those of another, [B, N', D], by votes and routing."""
        assert isinstance(run.input, Grid)
        assert isinstance(run.output, Grid)
        (t, h, w, k, _), (j, n, d) = run.input, (self.types, run.output.dims[0], self.dim)
        squash, places = SQUASHES[self.routing.squash], n // j

        def squash_types(ops: Ops[A], s: A) -> A:
            """Squash s [J·P, B, D]: every type's capsules at all P places as one vector."""
            s = ops.transpose(ops.reshape(s, (j, places, -1, d)), (0, 2, 1, 3))
            v = squash(ops, ops.reshape(s, (j, -1, places * d)))
            return ops.reshape(ops.transpose(ops.reshape(v, (j, -1, places, d)), (0, 2, 1, 3)), (n, -1, d))

        order = (0, 2, 3, 1, 4) if self.scrambled else (0, 1, 4, 2, 3)
        maps = ops.transpose(ops.reshape(x.pose, (-1, t, h, w, k)), order)
        with scope(ops, "votes"):
            y = ops.conv2d(ops.reshape(maps, (-1, k, h, w)), p["weight"], None, pair(self.stride), margins(self))
            y = ops.transpose(ops.reshape(y, (-1, t, j, d, places)), (0, 1, 2, 4, 3))
        bias = ops.take(p["bias"], Index(np.repeat(np.arange(j), places)), 0) if self.bias else None
        votes = ArrayVotes(ops, ops.reshape(y, (-1, t, n, d)), bias, (t, n, d))
        seen = run._replace(input=Grid(t, 1, 1, k))  # a type is a child
        how = self.routing
        return Capsules(dynamic_routing(ops, votes, how.iterations, how.leaky, seen, squash_types, how.over))
