"""What layers of capsules that see capsules have in common: votes, and a routing of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from capscore.errors import SpecError
from capscore.init import Init
from capscore.layer import Capsules, Grid, Layer, Param, Run, Shape
from capscore.ops import A, Ops
from capscore.routing import LinearVotes, Routing, Votes, VotesShape
from capscore.values import check_flags, check_kind, check_whole

ROUTING = "routing."  # before the names of what a routing learns


class RoutedCaps(Layer):
    """Capsules of `dim` numbers, each seeing some below through a matrix of its own and the routing.

    With `pose_rows` above 1 a pose is a matrix of so many rows, and its vote is the pose times a small matrix
    (Hinton, Sabour, Frosst 2018). `init` is that of the votes' weight.
    """

    quantises: ClassVar[bool] = False

    dim: int
    routing: Routing
    bias: bool
    pose_rows: int
    init: Init | None

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self, "dim", "pose_rows")
        check_kind(self, "routing", Routing, "DynamicRouting()")
        check_kind(self, "init", Init, "HeNormal()", optional=True)
        check_flags(self, "bias")
        if self.dim % self.pose_rows:
            raise SpecError(f"{type(self).__name__}: pose_rows {self.pose_rows} does not divide a pose of {self.dim}")

    @abstractmethod
    def sizes(self, x: Shape) -> VotesShape:
        """Return the sizes of the votes of a grid of capsules, or say why it does not fit."""

    @abstractmethod
    def votes(self, ops: Ops[A], p: Mapping[str, A], x: Capsules[A], run: Run) -> Votes[A]:
        """Return the votes of capsules [B, N, K]."""

    def grid(self, x: Shape) -> Grid:
        """Return the input shape of a layer that takes capsules, or raise SpecError."""
        if not isinstance(x, Grid):
            raise SpecError(f"{type(self).__name__} takes capsules, not {x}: PrimaryCaps makes them")
        if x.dim % self.pose_rows:
            raise SpecError(f"{type(self).__name__}: pose_rows {self.pose_rows} does not divide poses of {x.dim}")
        return x

    def of_routing(self, votes: VotesShape) -> dict[str, Param]:
        """Return what the routing learns, under the layer's names for it."""
        return {ROUTING + name: param for name, param in self.routing.params(votes).items()}

    def route(self, ops: Ops[A], p: Mapping[str, A], votes: Votes[A], run: Run) -> Capsules[A]:
        """Route the votes.

        A backend's fused form of the routing runs unless a trace is asked for: it computes the same and keeps none.
        """
        if run.trace is None and type(votes) is LinearVotes and votes.rows == 1 and self.routing.fusible:
            fused: Any = ops.FUSED.get(type(self.routing))
            if fused is not None and (v := fused(self.routing, votes.pose, p["weight"], p.get("bias"))) is not None:
                return Capsules(v)
        own = {name.removeprefix(ROUTING): array for name, array in p.items() if name.startswith(ROUTING)}
        return self.routing(ops, votes, own, run._replace(part=ROUTING))
