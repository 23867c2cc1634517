"""Features of capsules on a grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capscore.errors import SpecError
from capscore.layer import Capsules, Grid, Layer, Map, Plan, Run, Shape
from capscore.ops import A, Ops


@dataclass(frozen=True)
class AsMap(Layer):
    """Capsules on a grid as a map, `AsCaps` the other way: type by type the `dim` numbers of their poses as channels.

    After them comes one more channel for each type if the capsules have activations. Convolutions, norms and whatever
    else takes a map then work on capsules.
    """

    def plan(self, x: Shape) -> Plan:
        """Return a map."""
        if not isinstance(x, Grid):
            raise SpecError(f"AsMap takes capsules, not {x}: put it behind the layer that makes capsules")
        return Plan(Map(x.types * (x.dim + x.active), x.height, x.width), {}, 0)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: Capsules[A], run: Run) -> A:
        """Turn capsules [B, N, K], index i = (type·H + y)·W + x, and activations [B, N] into a map [B, C, H, W]."""
        assert isinstance(run.input, Grid)
        t, h, w, d, _ = run.input
        y = ops.transpose(ops.reshape(x.pose, (-1, t, h * w, d)), (0, 1, 3, 2))  # [B, T, K, H·W]
        y = ops.reshape(y, (-1, t * d, h, w))
        return y if x.activation is None else ops.concat((y, ops.reshape(x.activation, (-1, t, h, w))), 1)
