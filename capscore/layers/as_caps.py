"""Capsules of the channels of a map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capscore.errors import SpecError
from capscore.layer import Capsules, Grid, Layer, Plan, Run, Shape, need_map
from capscore.ops import A, Index, Ops
from capscore.squash import SQUASHES, check_squash
from capscore.values import check_flags, check_whole


@dataclass(frozen=True)
class AsCaps(Layer):
    """The channels of a map as capsules at every position: type by type, `dim` channels each, then squashed.

    If `active`, one more channel for each type, after all others, gives the activations, by a sigmoid
    (Hinton, Sabour, Frosst 2018, section 5.1). What computes the channels is a matter of the layers before.
    """

    types: int
    dim: int
    squash: str = "squash"
    active: bool = False

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self, "types", "dim")
        check_squash(self)
        check_flags(self, "active")

    def plan(self, x: Shape) -> Plan:
        """Return a grid of capsules."""
        x = need_map(self, x)
        wanted = self.types * (self.dim + self.active)
        if x.channels != wanted:
            raise SpecError(
                f"AsCaps: {self.types} types of {self.dim} numbers{' and an activation' if self.active else ''} are "
                f"{wanted} channels, not {x.channels}: give the layer before that many"
            )
        return Plan(Grid(self.types, x.height, x.width, self.dim, self.active), {}, 0)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> Capsules[A]:
        """Turn a map [B, C, H, W] into capsules [B, N, K], index i = (type·H + y)·W + x, and activations [B, N]."""
        (t, d), n = (self.types, self.dim), run.output.dims[0]
        poses, activation = x, None
        if self.active:
            poses = ops.take(x, Index(range(t * d)), 1)
            activation = ops.sigmoid(ops.reshape(ops.take(x, Index(range(t * d, t * d + t)), 1), (-1, n)))
        u = ops.transpose(ops.reshape(poses, (-1, t, d, n // t)), (0, 2, 1, 3))  # [B, K, T, H·W]
        u = SQUASHES[self.squash](ops, ops.reshape(u, (-1, d, n)), 1)
        return Capsules(ops.transpose(u, (0, 2, 1)), activation)
