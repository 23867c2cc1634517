"""Primary capsules: from features to capsules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capscore.layer import Capsules, Grid, Layer, Map, Plan, Run, Shape
from capscore.ops import A, Ops
from capscore.squash import SQUASHES, check_squash
from capscore.values import Pair, check_whole, pair

from .conv import check_window, convolution, margins


@dataclass(frozen=True)
class PrimaryCaps(Layer):
    """A convolution whose types·dim channels form capsules of `dim` numbers at every position, squashed (figure 1).

    With `groups` equal to types·dim and the input's channels, each channel sees one of the input: a depthwise
    convolution. With a kernel as large as the map it then leaves a single position (Efficient-CapsNet).
    """

    types: int
    dim: int
    kernel: Pair
    stride: Pair = 1
    padding: Pair | str = 0
    groups: int = 1
    squash: str = "squash"

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self, "types", "dim", "groups")
        check_window(self)
        check_squash(self)

    def plan(self, x: Shape) -> Plan:
        """Return a grid of capsules."""
        plan = convolution(self, x, self.types * self.dim, self.groups, bias=True, init=None)
        assert isinstance(plan.output, Map)
        return plan._replace(output=Grid(self.types, plan.output.height, plan.output.width, self.dim))

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> Capsules[A]:
        """Turn a map [B, C, H, W] into capsules u [B, N, K]: convolution, grouping, squash.

        A capsule is the `dim` channels of one type at one position; its index is i = (type·H + y)·W + x.
        """
        (t, d), n = (self.types, self.dim), run.output.dims[0]
        x = ops.conv2d(x, p["weight"], p["bias"], pair(self.stride), margins(self), self.groups)
        u = ops.transpose(ops.reshape(x, (-1, t, d, n // t)), (0, 2, 1, 3))  # [B, K, T, H·W]
        u = SQUASHES[self.squash](ops, ops.reshape(u, (-1, d, n)), 1)  # [B, K, N], as the votes want it
        return Capsules(ops.transpose(u, (0, 2, 1)))  # [B, N, K]
