"""Self-attention routing: the one pass of "Efficient-CapsNet" (Mazzia, Salvetti, Chiaberge 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from capscore.init import Constant
from capscore.layer import Capsules, Param, Run
from capscore.ops import A, Ops, scope
from capscore.squash import SQUASHES, check_squash

from .base import Routing, VotesShape
from .votes import Votes


@dataclass(frozen=True)
class SelfAttention(Routing):
    """Inputs are coupled by how much their vote agrees with the sum of all votes, plus a learned prior.

    With û_ij the votes, c_ij = softmax_j(û_ij · Σ_k û_kj / √D), and s_j = Σ_i (c_ij + β_ij) û_ij (equations 4 to 6).
    The prior β is added after the softmax: c + β may be negative.
    """

    squash: str = "exponential"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_squash(self)

    def params(self, votes: VotesShape) -> dict[str, Param]:
        """Return the prior, [J, N]."""
        return {"prior": Param((votes.n_out, votes.n_in), Constant(0.0))}

    def multiply_adds(self, votes: VotesShape) -> int:
        """Return the multiply-adds of one image: two combines and an agree."""
        return votes.agreed(2)

    def __call__(self, ops: Ops[A], votes: Votes[A], p: Mapping[str, A], run: Run) -> Capsules[A]:
        """Route the votes to output capsules [B, J, D]."""
        with scope(ops, "route"):
            logits = votes.agree(votes.combine(1.0)) / math.sqrt(votes.d_out)  # [J, B, N]
            c = ops.softmax(logits, 0) + ops.reshape(p["prior"], (votes.n_out, 1, votes.n_in))
            v = SQUASHES[self.squash](ops, votes.combine(c))  # [J, B, D]
        run.iteration(c, v)
        return Capsules(ops.transpose(v, (1, 0, 2)))
