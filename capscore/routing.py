"""Routing: how input capsules agree on the output capsules they belong to. One class per algorithm.

Inside a routing the output capsule comes first, so that the long axis of input capsules stays last and
contiguous: couplings and logits are [J, B, N], capsules [J, B, D], for B images, N input capsules, J output
capsules of D dimensions. A new routing is a frozen dataclass deriving from `Routing`, in a file of its own or
here; nothing else has to know of it, the spec's JSON included.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from .errors import ShapeError, SpecError, short
from .layers import ArrayVotes, Votes, squash
from .ops import A, Ops, scope


class Routing(ABC):
    """A routing algorithm and its settings. Subclasses are frozen dataclasses of JSON values."""

    known: ClassVar[dict[str, type[Routing]]] = {}

    def __init_subclass__(cls) -> None:
        """Make the algorithm known to the spec's JSON under its class name."""
        Routing.known[cls.__name__] = cls

    @abstractmethod
    def __call__(self, ops: Ops[A], votes: Votes[A], trace: list[A | float] | None = None) -> A:
        """Route the votes to output capsules [B, J, D], appending each iteration's couplings to `trace`."""

    @abstractmethod
    def multiply_adds(self, n_in: int, d_in: int, n_out: int, d_out: int) -> int:
        """Return the multiply-adds of routing one image."""


@dataclass(frozen=True)
class DynamicRouting(Routing):
    """Routing by agreement (procedure 1 of the paper); see `dynamic_routing`."""

    iterations: int = 3
    leaky: bool = False

    def __post_init__(self) -> None:
        """Check the settings: a spec from a stranger must not start an endless loop."""
        if type(self.iterations) is not int or not 1 <= self.iterations <= 100:
            raise SpecError(f"routing iterations must be a whole number from 1 to 100, not {short(self.iterations)}")
        if type(self.leaky) is not bool:
            raise SpecError(f"leaky must be true or false, not {short(self.leaky)}")

    def __call__(self, ops: Ops[A], votes: Votes[A], trace: list[A | float] | None = None) -> A:
        """Route the votes to output capsules [B, J, D]."""
        return dynamic_routing(ops, votes, self.iterations, self.leaky, trace)

    def multiply_adds(self, n_in: int, d_in: int, n_out: int, d_out: int) -> int:
        """Return the multiply-adds of one image: a combine per iteration, an agree between two of them."""
        product = n_in * d_in * n_out * d_out  # what one combine or agree costs without votes in memory
        return product + (self.iterations - 1) * 2 * (product + n_in * d_in * n_out)


def dynamic_routing(
    ops: Ops[A],
    votes: Votes[A] | A,
    iterations: int = 3,
    leaky: bool = False,
    trace: list[Any] | None = None,
) -> A:
    """Route votes to output capsules by agreement: procedure 1 of "Dynamic Routing Between Capsules".

    Gradients flow through every iteration.

    Parameters
    ----------
    ops : the backend module
    votes : a `Votes`, or an array û [B, N, J, D] of votes
    iterations : how often the capsules are computed; 1 is no routing, every coupling being uniform
    leaky : an extra routing logit, fixed at zero, takes the share of inputs that fit no output capsule
    trace : a list that receives the coupling coefficients of every iteration, [J, B, N], the first as the
        number that all of them equal

    Returns
    -------
    output capsules v [B, J, D], each shorter than 1
    """
    if not isinstance(votes, Votes):
        votes = ArrayVotes(ops, votes)
    if iterations < 1:
        raise ShapeError(f"iterations must be at least 1, not {short(iterations)}")
    logits: A | None = None
    c: A | float = 1 / (votes.n_out + leaky)  # the softmax of zero logits
    with scope(ops, "route/0"):
        v = squash(ops, votes.combine(c))  # [J, B, D]  s_j = Σ_i c_ij û_ij + bias_j
    if trace is not None:
        trace.append(c)
    for r in range(1, iterations):
        with scope(ops, f"route/{r}"):
            a = votes.agree(v)  # [J, B, N]  a_ij = û_ij · v_j
            logits = a if logits is None else logits + a  # [J, B, N]  b_ij
            c = ops.softmax(logits, 0, leaky)  # [J, B, N]  over output capsules
            v = squash(ops, votes.combine(c))  # [J, B, D]
        if trace is not None:
            trace.append(c)
    return ops.transpose(v, (1, 0, 2))  # [B, J, D]
