"""What a routing is: how input capsules agree on the output capsules they belong to. One file per algorithm.

Inside a routing the output capsule comes first, so that the long axis of input capsules stays last and contiguous:
couplings and logits are [J, B, N], capsules [J, B, D], for B images, N input capsules, J output capsules of D
dimensions. A new routing is a frozen dataclass deriving from `Routing`; nothing else has to know of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from capscore.layer import Capsules, Param, Run
from capscore.ops import A, Ops
from capscore.values import Value

from .votes import Votes


class VotesShape(NamedTuple):
    """Sizes of the votes of input capsules of d_in numbers for output capsules of d_out.

    A pose of several `rows` is a matrix, whose numbers lie row by row: its vote is the pose times a weight.
    """

    n_in: int
    n_out: int
    d_out: int
    d_in: int
    rows: int = 1
    windows: int = 1  # how often the same weights see so many inputs: at every position of a convolutional layer
    alike: bool = False  # whether all inputs have the same weight: they are summed before they are multiplied by it

    @property
    def weight(self) -> tuple[int, int, int, int]:
        """Shape [n_in, n_out, d_out/rows, d_in/rows] of the votes' weight."""
        return self.n_in, self.n_out, self.d_out // self.rows, self.d_in // self.rows

    @property
    def product(self) -> int:
        """Multiply-adds of one `combine` or `agree` of one image, without votes in memory."""
        if not self.alike:
            return self.written
        return self.windows * self.n_out * self.d_in * (self.n_in + self.d_out // self.rows)

    @property
    def numbers(self) -> int:
        """How many numbers the votes of one image are."""
        return self.windows * self.n_in * self.n_out * self.d_out

    @property
    def written(self) -> int:
        """Multiply-adds of the votes of one image, written to memory."""
        return self.numbers * self.d_in // self.rows

    def agreed(self, iterations: int) -> int:
        """Return the multiply-adds of a `combine` per iteration, uniform at first, and an `agree` between two."""
        scaled = 0 if self.alike else self.windows * self.n_in * self.d_in * self.n_out  # inputs times their couplings
        return self.product + (iterations - 1) * 2 * (self.product + scaled)


class Routing(Value, ABC):
    """A routing algorithm and its settings. Subclasses are frozen dataclasses of JSON values."""

    activates: ClassVar[bool] = False  # whether it gives its capsules activations
    biased: ClassVar[bool] = True  # whether it adds the bias of the layer to its capsules
    resumes: ClassVar[bool] = False  # whether it can go on from capsules [J, B, D], where `run.parents` brings some

    @property
    def fusible(self) -> bool:
        """Whether a backend's fused form of the class computes what these settings say."""
        return True

    def params(self, votes: VotesShape) -> dict[str, Param]:
        """Return what the routing learns, by name: nothing, for most."""
        return {}

    @abstractmethod
    def multiply_adds(self, votes: VotesShape) -> int:
        """Return the multiply-adds of routing one image."""

    @abstractmethod
    def __call__(self, ops: Ops[A], votes: Votes[A], p: Mapping[str, A], run: Run) -> Capsules[A]:
        """Route the votes to output capsules [B, J, D]; tell `run.iteration` of every iteration."""
