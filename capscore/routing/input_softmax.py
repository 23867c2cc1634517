"""Routing by agreement with the softmax over the wrong axis, for networks that were trained so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capscore.layer import Capsules, Run
from capscore.ops import A, Ops
from capscore.values import check_whole

from .base import Routing, VotesShape
from .dynamic import DynamicRouting, dynamic_routing
from .votes import Votes


@dataclass(frozen=True)
class InputSoftmaxRouting(Routing):
    """Procedure 1 of the paper, except that the couplings of an output capsule sum to 1 over its input capsules.

    The paper has the inputs choose among the outputs. Public code, gram-ai's PyTorch among it, has the outputs choose
    among the inputs, and weights that were trained with one of the two are of no use with the other.
    """

    iterations: int = 3

    def __post_init__(self) -> None:
        """Check the setting."""
        check_whole(self, "iterations", most=100)

    def multiply_adds(self, votes: VotesShape) -> int:
        """Return the multiply-adds of one image: those of `DynamicRouting`."""
        return DynamicRouting(self.iterations).multiply_adds(votes)

    def __call__(self, ops: Ops[A], votes: Votes[A], p: Mapping[str, A], run: Run) -> Capsules[A]:
        """Route the votes to output capsules [B, J, D]."""
        return Capsules(dynamic_routing(ops, votes, self.iterations, run=run, over_inputs=True))
