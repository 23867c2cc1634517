"""Inverted dot-product attention: the routing of Tsai, Srivastava, Goh, Salakhutdinov (2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from capscore.init import Constant
from capscore.layer import Capsules, Param, Run
from capscore.ops import A, Ops, scope
from capscore.squash import standardise
from capscore.values import check_numbers, check_whole

from .base import Routing, VotesShape
from .votes import Votes


@dataclass(frozen=True)
class InvertedAttention(Routing):
    """Inputs attend to the output capsules of the iteration before: these compete for each input.

    c_ij = softmax_j(û_ij · v_j / √D), v_j = LayerNorm(Σ_i c_ij û_ij), algorithm 1. All output capsules share the norm's
    scale and shift. The first iteration has uniform couplings, unless the run brings capsules to go on from: see
    `layers.Concurrent`. (The authors' code divides c_ij by Σ_j c_ij + 1e-10 as well, which is 1 in float32.)
    """

    resumes: ClassVar[bool] = True

    iterations: int = 2
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self, "iterations", most=100)
        check_numbers(self, "epsilon", least=1e-12, most=1)

    def params(self, votes: VotesShape) -> dict[str, Param]:
        """Return scale and shift, [D]; none for capsules of a single number, which are not normalised."""
        if votes.d_out == 1:
            return {}
        return {"weight": Param((votes.d_out,), Constant(1.0)), "bias": Param((votes.d_out,), Constant(0.0))}

    def multiply_adds(self, votes: VotesShape) -> int:
        """Return the multiply-adds of one image: a combine per iteration, an agree between two of them."""
        return votes.agreed(self.iterations)

    def __call__(self, ops: Ops[A], votes: Votes[A], p: Mapping[str, A], run: Run) -> Capsules[A]:
        """Route the votes to output capsules [B, J, D]."""
        v = run.parents
        for r in range(self.iterations):
            with scope(ops, f"route/{r}"):
                c: A | float = 1 / votes.n_out
                if v is not None:
                    c = ops.softmax(votes.agree(v) / math.sqrt(votes.d_out), 0)  # [J, B, N]
                v = votes.combine(c)  # [J, B, D]
                if p:
                    v = standardise(ops, v, votes.d_out, self.epsilon) * p["weight"] + p["bias"]
            run.iteration(c, v)
        return Capsules(ops.transpose(v, (1, 0, 2)))
