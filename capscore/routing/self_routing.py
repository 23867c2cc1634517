"""Self-routing: "Self-Routing Capsule Networks" (Hahn, Pyeon, Kim 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from capscore.init import Constant
from capscore.layer import Capsules, Param, Run
from capscore.ops import A, Ops, scope
from capscore.values import check_flags

from .base import Routing, VotesShape
from .votes import LinearVotes, Votes

EPSILON = 1e-12  # the authors have none: inputs of which none is present, and classes of no share, stay finite


@dataclass(frozen=True)
class SelfRouting(Routing):
    """Every input tells by itself, from its pose alone, which output capsules it belongs to: one pass, no agreement.

    c_ij = softmax_j(w_ij · u_i + b_ij), a_j = Σ_i c_ij a_i / Σ_i a_i, and the pose of j is the mean of its votes,
    weighed by c_ij a_i (section 3.2). The activations of all output capsules sum to 1. A layer of classes whose loss is
    `CrossEntropy` takes `logits`: its scores are log a_j.
    """

    activates: ClassVar[bool] = True

    logits: bool = False

    def __post_init__(self) -> None:
        """Check the setting."""
        check_flags(self, "logits")

    def params(self, votes: VotesShape) -> dict[str, Param]:
        """Return what the couplings are computed with: weight [N, J, K] and bias [N, J]."""
        shape = (votes.n_in, votes.n_out)
        return {"weight": Param((*shape, votes.d_in), Constant(0.0)), "bias": Param(shape, Constant(0.0))}

    def multiply_adds(self, votes: VotesShape) -> int:
        """Return the multiply-adds of one image: a combine, and the logits."""
        return votes.product + 2 * votes.windows * votes.n_in * votes.d_in * votes.n_out

    def __call__(self, ops: Ops[A], votes: Votes[A], p: Mapping[str, A], run: Run) -> Capsules[A]:
        """Route the votes to output capsules [B, J, D] with activations [B, J]."""
        size = (votes.n_in, votes.n_out, run.input.dims[1])
        with scope(ops, "route"):
            c, share = self_couplings(ops, votes.pose, votes.presence, p, size)
            used = c * share  # [J, B, N]
            total = ops.sum(used, 2, keepdims=True)
            v = votes.combine(used / (total + EPSILON))  # [J, B, D]
            a = ops.transpose(ops.reshape(total, (votes.n_out, -1)), (1, 0))
        run.iteration(c, v)
        return Capsules(ops.transpose(v, (1, 0, 2)), ops.log(a + EPSILON) if self.logits else a)


def self_couplings(
    ops: Ops[A], pose: Any, presence: A, p: Mapping[str, A], size: tuple[int, int, int]
) -> tuple[A, Any]:
    """Return couplings [J, B, N] and the share of each input in all that is present, [1, B, N].

    Poses are [B, N, K], `size` is (N, J, K).
    """
    n, j, k = size
    logits = LinearVotes(ops, pose, ops.reshape(p["weight"], (n, j, 1, k)), None, (n, j, 1, k)).array()
    logits = ops.reshape(logits, (j, -1, n)) + ops.reshape(ops.transpose(p["bias"], (1, 0)), (j, 1, n))
    share: Any = ops.reshape(presence, (1, -1, n))
    return ops.softmax(logits, 0), share / (ops.sum(share, 2, keepdims=True) + EPSILON)
