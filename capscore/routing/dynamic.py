"""Routing by agreement: procedure 1 of "Dynamic Routing Between Capsules"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from capscore.errors import ShapeError, SpecError, short
from capscore.layer import INFERENCE, Capsules, Run
from capscore.ops import A, Ops, scope
from capscore.squash import SQUASHES, check_squash, squash
from capscore.values import check_choice, check_flags, check_whole

from .base import Routing, VotesShape
from .votes import ArrayVotes, Votes


@dataclass(frozen=True)
class DynamicRouting(Routing):
    """Routing by agreement; see `dynamic_routing`."""

    iterations: int = 3
    leaky: bool = False
    squash: str = "squash"
    over: str = "outputs"

    def __post_init__(self) -> None:
        """Check the settings: a spec from a stranger must not start an endless loop."""
        check_whole(self, "iterations", most=100)
        check_flags(self, "leaky")
        check_squash(self)
        check_choice(self, "over", "outputs", "inputs")
        if self.leaky and self.over == "inputs":
            raise SpecError('DynamicRouting: leaky is for over="outputs": it takes the share of inputs that fit none')

    @property
    def fusible(self) -> bool:
        """Whether squash and softmax are the paper's."""
        return (self.squash, self.over) == ("squash", "outputs")

    def multiply_adds(self, votes: VotesShape) -> int:
        """Return the multiply-adds of one image: a combine per iteration, an agree between two of them."""
        return votes.agreed(self.iterations)

    def __call__(self, ops: Ops[A], votes: Votes[A], p: Mapping[str, A], run: Run) -> Capsules[A]:
        """Route the votes to output capsules [B, J, D]."""
        squash = SQUASHES[self.squash]
        return Capsules(dynamic_routing(ops, votes, self.iterations, self.leaky, run, squash, self.over))


def dynamic_routing(
    ops: Ops[A],
    votes: Votes[A] | A,
    iterations: int = 3,
    leaky: bool = False,
    run: Run = INFERENCE,
    squash: Callable[..., Any] = squash,
    over: str = "outputs",
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
    squash : what makes capsules of their sums; see `capscore.squash`
    over : what the softmax is over. The paper has inputs choose among outputs. With "inputs" outputs choose among
        inputs, as in public code such as gram-ai's: weights that were trained with one are of no use with the other

    Returns
    -------
    output capsules v [B, J, D], each shorter than 1
    """
    if not isinstance(votes, Votes):
        votes = ArrayVotes(ops, votes)
    if iterations < 1:
        raise ShapeError(f"iterations must be at least 1, not {short(iterations)}")
    logits: A | None = None
    axis, choices = (0, votes.n_out + leaky) if over == "outputs" else (2, int(votes.n_in))
    c: A | float = 1 / choices  # the softmax of zero logits
    with scope(ops, "route/0"):
        v = squash(ops, votes.combine(c))  # [J, B, D]  s_j = Σ_i c_ij û_ij + bias_j
    run.iteration(c, v)
    for r in range(1, iterations):
        with scope(ops, f"route/{r}"):
            a = votes.agree(v)  # [J, B, N]  a_ij = û_ij · v_j
            logits = a if logits is None else logits + a  # [J, B, N]  b_ij
            c = ops.softmax(logits, axis, leaky)  # [J, B, N]
            v = squash(ops, votes.combine(c))  # [J, B, D]
        run.iteration(c, v)
    return ops.transpose(v, (1, 0, 2))  # [B, J, D]
