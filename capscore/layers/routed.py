"""What layers of capsules that see capsules have in common: votes, and a routing of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from capscore.errors import SpecError
from capscore.init import Init
from capscore.layer import Capsules, Grid, Layer, Param, Run, Shape
from capscore.ops import A, Ops
from capscore.routing import Routing, Votes, VotesShape
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
        if self.bias and not self.routing.biased:
            raise SpecError(
                f"{type(self).__name__}: {type(self.routing).__name__} adds no bias to its capsules: bias=False"
            )
        if self.dim % self.pose_rows:
            raise SpecError(f"{type(self).__name__}: pose_rows {self.pose_rows} does not divide a pose of {self.dim}")

    @abstractmethod
    def sizes(self, x: Shape) -> VotesShape:
        """Return the sizes of the votes of a grid of capsules, or say why it does not fit."""

    def pairs(self, x: Shape) -> tuple[int, int]:
        """Return how many capsules vote, and for how many."""
        votes = self.sizes(x)
        return votes.n_in, votes.n_out

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

    def fused(self, ops: Ops[A], p: Mapping[str, A], pose: A, run: Run) -> Capsules[A] | None:
        """Route by the backend's fused form, which has no votes; None where there is none.

        It computes the same, keeps no trace and begins anew: it steps aside where a trace is asked for, and where
        parents are given.
        """
        if run.trace is not None or run.parents is not None or self.pose_rows > 1 or not self.routing.fusible:
            return None
        kernel: Any = ops.FUSED.get(type(self.routing))
        v = None if kernel is None else kernel(self.routing, pose, p["weight"], p.get("bias"), *_own(p).values())
        return None if v is None else Capsules(v)

    def route(self, ops: Ops[A], p: Mapping[str, A], votes: Votes[A], run: Run) -> Capsules[A]:
        """Route the votes."""
        if run.parents is not None:
            positions = 1 if votes.windows is None else votes.windows.positions
            parents = ops.reshape(run.parents, (-1, votes.n_out, positions, self.dim))
            parents = ops.reshape(ops.transpose(parents, (1, 0, 2, 3)), (votes.n_out, -1, self.dim))
            run = run._replace(parents=parents)  # [J, B, D]: as a routing has them
        return self.routing(ops, votes, _own(p), run._replace(part=ROUTING))


def _own(p: Mapping[str, A]) -> dict[str, A]:
    """Return what the routing learns, by its own names and in their order."""
    return {name.removeprefix(ROUTING): array for name, array in p.items() if name.startswith(ROUTING)}
