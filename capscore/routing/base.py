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
    """Sizes of votes: those of their weight, [n_in, n_out, d_out, d_in]."""

    n_in: int
    n_out: int
    d_out: int
    d_in: int


class Routing(Value, ABC):
    """A routing algorithm and its settings. Subclasses are frozen dataclasses of JSON values."""

    activates: ClassVar[bool] = False  # whether it gives its capsules activations

    def params(self, votes: VotesShape) -> dict[str, Param]:
        """Return what the routing learns, by name: nothing, for most."""
        return {}

    @abstractmethod
    def multiply_adds(self, votes: VotesShape) -> int:
        """Return the multiply-adds of routing one image."""

    @abstractmethod
    def __call__(self, ops: Ops[A], votes: Votes[A], p: Mapping[str, A], run: Run) -> Capsules[A]:
        """Route the votes to output capsules [B, J, D]; tell `run.iteration` of every iteration."""
