"""Layers around which the input goes, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from capscore.errors import SpecError
from capscore.layer import Capsules, Grid, Layer, Shape
from capscore.ops import A, Ops

from .activation import activate, check_activation
from .branches import Branches


@dataclass(frozen=True)
class Residual(Branches):
    """A block of layers whose output is added to its input (He et al. 2016), followed by an activation.

    Both are maps, vectors or capsules of one shape. `shortcut` are layers on the input's way; without any, the block
    must keep the shape. Of capsules the poses are added, and stay so: a sum may be longer than 1 (Rajasegaran et al.
    2019, section 3.3). Activations are probabilities, which have no sum: capsules that have them are refused.
    """

    layers: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()
    activation: str = "relu"

    def __post_init__(self) -> None:
        """Check every setting."""
        check_activation(self)
        super().__post_init__()

    def shape(self, block: Shape, past: Shape) -> Shape:
        """Return the shape of the sum."""
        if block != past:
            raise SpecError(
                f"Residual: the block makes {block}, the shortcut {past}; both must be of one shape: "
                "a Conv of kernel 1 as shortcut changes channels and, by its stride, the size"
            )
        if isinstance(block, Grid) and block.active:
            raise SpecError(
                f"Residual adds poses, and {block} has activations, which have no sum: "
                "end block and shortcut with capsules that have none, as those of DynamicRouting()"
            )
        if isinstance(block, Grid) and self.activation != "none":
            raise SpecError(f'Residual: poses are added as they are: activation="none", not {self.activation!r}')
        return block

    def join(self, ops: Ops[A], block: Any, past: Any) -> Any:
        """Return activation(block + past)."""
        if isinstance(block, Capsules):
            return Capsules(block.pose + past.pose)
        return activate(ops, block + past, self.activation)
