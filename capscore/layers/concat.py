"""Layers beside whose output their input stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from capscore.errors import SpecError
from capscore.layer import Capsules, Grid, Layer, Map, Shape, Vector
from capscore.ops import A, Ops

from .branches import Branches


@dataclass(frozen=True)
class Concat(Branches):
    """What a block of layers makes, and then its input or what the layers of `shortcut` make of that.

    Maps of one height and width become one map of the channels of both (Huang et al. 2017), vectors one vector.
    Capsules of one dimension become one grid of the types of both; if they lie on grids of two sizes, one list, those
    of the block first (Rajasegaran et al. 2019, section 3.3).
    """

    layers: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()

    def shape(self, block: Shape, past: Shape) -> Shape:
        """Return the shape of both together."""
        if isinstance(block, Vector) and isinstance(past, Vector):
            return Vector(block.size + past.size)
        if isinstance(block, Map) and isinstance(past, Map) and block[1:] == past[1:]:
            return Map(block.channels + past.channels, *block[1:])
        if isinstance(block, Grid) and isinstance(past, Grid) and block[3:] == past[3:]:
            if block[1:] == past[1:]:
                return block._replace(types=block.types + past.types)
            return Grid(block.dims[0] + past.dims[0], 1, 1, *block[3:])
        raise SpecError(
            f"Concat: the block makes {block}, the shortcut {past}; both must be vectors, maps of one height and "
            "width, or capsules of one dim that all have activations or none"
        )

    def join(self, ops: Ops[A], block: Any, past: Any) -> Any:
        """Return both, one after another."""
        if not isinstance(block, Capsules):
            return ops.concat((block, past), 1)
        pose = ops.concat((block.pose, past.pose), 1)
        if block.activation is None:
            return Capsules(pose)
        return Capsules(pose, ops.concat((block.activation, past.activation), 1))
