"""Routing by agreement: procedure 1 of "Dynamic Routing Between Capsules"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capscore.errors import ShapeError, short
from capscore.layer import INFERENCE, Capsules, Run
from capscore.ops import A, Ops, scope
from capscore.squash import squash
from capscore.values import check_flags, check_whole

from .base import Routing, VotesShape
from .votes import ArrayVotes, Votes


@dataclass(frozen=True)
class DynamicRouting(Routing):
    """Routing by agreement; see `dynamic_routing`."""

    iterations: int = 3
    leaky: bool = False

    def __post_init__(self) -> None:
        """Check the settings: a spec from a stranger must not start an endless loop."""
        check_whole(self, "iterations", most=100)
        check_flags(self, "leaky")

    def multiply_adds(self, votes: VotesShape) -> int:
        """Return the multiply-adds of one image: a combine per iteration, an agree between two of them."""
        n_in, n_out, d_out, d_in = votes
        product = n_in * d_in * n_out * d_out  # what one combine or agree costs without votes in memory
        return product + (self.iterations - 1) * 2 * (product + n_in * d_in * n_out)

    def __call__(self, ops: Ops[A], votes: Votes[A], p: Mapping[str, A], run: Run) -> Capsules[A]:
        """Route the votes to output capsules [B, J, D]."""
        return Capsules(dynamic_routing(ops, votes, self.iterations, self.leaky, run))


def dynamic_routing(
    ops: Ops[A],
    votes: Votes[A] | A,
    iterations: int = 3,
    leaky: bool = False,
    run: Run = INFERENCE,
    over_inputs: bool = False,
) -> A:
    """Route votes to output capsules by agreement: procedure 1 of "Dynamic Routing Between Capsules".

    Gradients flow through every iteration.

    Parameters
    ----------
    ops : the backend module
    votes : a `Votes`, or an array û [B, N, J, D] of votes
    iterations : how often the capsules are computed; 1 is no routing, every coupling being uniform
    leaky : an extra routing logit, fixed at zero, takes the share of inputs that fit no output capsule
    run : hears of every iteration: its coupling coefficients [J, B, N], the first as the number that all of them
        equal, and its capsules [J, B, D]
    over_inputs : the couplings of an output capsule sum to 1 over the inputs, see `InputSoftmaxRouting`; not leaky

    Returns
    -------
    output capsules v [B, J, D], each shorter than 1
    """
    if not isinstance(votes, Votes):
        votes = ArrayVotes(ops, votes)
    if iterations < 1:
        raise ShapeError(f"iterations must be at least 1, not {short(iterations)}")
    logits: A | None = None
    axis, count = (2, int(votes.n_in)) if over_inputs else (0, votes.n_out + leaky)
    c: A | float = 1 / count  # the softmax of zero logits
    with scope(ops, "route/0"):
        v = squash(ops, votes.combine(c))  # [J, B, D]  s_j = Σ_i c_ij û_ij + bias_j
    run.iteration(c, v)
    for r in range(1, iterations):
        with scope(ops, f"route/{r}"):
            a = votes.agree(v)  # [J, B, N]  a_ij = û_ij · v_j
            logits = a if logits is None else logits + a  # [J, B, N]  b_ij
            c = ops.softmax(logits, axis, leaky)  # [J, B, N]  over output capsules, or over inputs
            v = squash(ops, votes.combine(c))  # [J, B, D]
        run.iteration(c, v)
    return ops.transpose(v, (1, 0, 2))  # [B, J, D]
