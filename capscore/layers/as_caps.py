"""Capsules of the channels of a map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capscore.errors import SpecError
from capscore.layer import Capsules, Grid, Layer, Map, Plan, Row, Run, Shape, need_map
from capscore.ops import A, Index, Ops
from capscore.squash import SQUASHES, check_squash
from capscore.values import check_flags, check_whole

from .chain import place, plan_of, through
from .norm import BatchNorm


@dataclass(frozen=True)
class AsCaps(Layer):
    """The channels of a map as capsules at every position: type by type, `dim` channels each, then squashed.

    If `active`, one more channel for each type, after all others, gives the activations, by a sigmoid
    (Hinton, Sabour, Frosst 2018, section 5.1). What computes the channels is a matter of the layers before. If `norm`,
    poses and activations are normalised over the batch first, those of one type together (Ribeiro et al. 2020).
    """

    types: int
    dim: int
    squash: str = "squash"
    active: bool = False
    norm: bool = False

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self, "types", "dim")
        check_squash(self)
        check_flags(self, "active", "norm")

    def plan(self, x: Shape) -> Plan:
        """Return a grid of capsules."""
        x = need_map(self, x)
        wanted = self.types * (self.dim + self.active)
        if x.channels != wanted:
            raise SpecError(
                f"AsCaps: {self.types} types of {self.dim} numbers{' and an activation' if self.active else ''} are "
                f"{wanted} channels, not {x.channels}: give the layer before that many"
            )
        return plan_of(self.rows(x), Grid(self.types, x.height, x.width, self.dim, self.active))

    def rows(self, x: Shape) -> tuple[Row, ...]:
        """Return what normalises: the numbers of every type at every position, as a map."""
        _, h, w = need_map(self, x)
        sizes = {"pose": self.dim} | ({"activation": 1} if self.active else {})
        return tuple(place(BatchNorm(), Map(self.types, n, h * w), part) for part, n in sizes.items() if self.norm)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> Capsules[A]:
        """Turn a map [B, C, H, W] into capsules [B, N, K], index i = (type·H + y)·W + x, and activations [B, N]."""
        (t, d), n = (self.types, self.dim), run.output.dims[0]
        parts = [x]
        if self.active:
            parts = [ops.take(x, Index(range(t * d)), 1), ops.take(x, Index(range(t * d, t * d + t)), 1)]
        parts = [ops.reshape(part, (-1, t, size, n // t)) for part, size in zip(parts, (d, 1), strict=False)]
        if self.norm:
            parts = [through(ops, (row,), p, y, run) for row, y in zip(self.rows(run.input), parts, strict=True)]
        u = ops.reshape(ops.transpose(parts[0], (0, 2, 1, 3)), (-1, d, n))  # [B, K, N]
        pose = ops.transpose(SQUASHES[self.squash](ops, u, 1), (0, 2, 1))
        return Capsules(pose, ops.sigmoid(ops.reshape(parts[1], (-1, n)), small=True) if self.active else None)
