"""EM-like routing with a net benefit per capsule: "An Algorithm for Routing Capsules in All Domains" (Heinsen 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from capscore.init import Constant
from capscore.layer import Capsules, Param, Run
from capscore.ops import A, Ops, scope
from capscore.squash import log_sigmoid
from capscore.values import check_flags, check_numbers, check_whole

from .base import Routing, VotesShape
from .votes import Votes


@dataclass(frozen=True)
class HeinsenRouting(Routing):
    """Output capsules are Gaussians of the votes that they use; they score by what they use and what they ignore.

    With f_i the activation of input i and û_ij its vote, each iteration has (Heinsen 2019, algorithm 1)

    - E-step: R_ij = 1/J at first, then softmax_j(log σ(a_j) + log N(û_ij; μ_j, σ²_j));
    - D-step: D_use = f_i R_ij and D_ign = f_i - D_use;
    - M-step: a_j = Σ_i β_use D_use - β_ign D_ign, and μ_j, σ²_j the mean and variance of the votes, weighed by D_use.

    Poses are μ, activations σ(a). A layer of classes whose loss is `CrossEntropy` takes `logits`: its scores are a.
    The votes are μ_i W_ij + B_ij: `DenseCaps(bias=False, vote_bias=True)`, with `pose_rows` of matrices. `shared`: one
    β for all inputs instead of one for each. `epsilon` is added to Σ_i D_use and to σ².
    """

    activates: ClassVar[bool] = True
    biased: ClassVar[bool] = False

    iterations: int = 3
    epsilon: float = 1e-5
    shared: bool = False
    logits: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        check_whole(self, "iterations", most=100)
        check_numbers(self, "epsilon", least=1e-12, most=1)
        check_flags(self, "shared", "logits")

    def params(self, votes: VotesShape) -> dict[str, Param]:
        """Return β_use and β_ign, [N, J] or [1, J]."""
        shape = (1 if self.shared else votes.n_in, votes.n_out)
        return {name: Param(shape, Constant(0.0)) for name in ("beta_use", "beta_ign")}

    def multiply_adds(self, votes: VotesShape) -> int:
        """Return the multiply-adds of one image: the votes, their means and variances, and their distances."""
        return votes.written + (4 * self.iterations - 1) * votes.numbers

    def __call__(self, ops: Ops[A], votes: Votes[A], p: Mapping[str, A], run: Run) -> Capsules[A]:
        """Route the votes to output capsules [B, J, D] and their activations [B, J]."""
        j, n, d = votes.n_out, votes.n_in, votes.d_out
        of_pair = (j, 1, 1 if self.shared else n)
        beta_use, beta_ign = (ops.reshape(ops.transpose(p[f"beta_{of}"], (1, 0)), of_pair) for of in ("use", "ign"))
        f = ops.reshape(votes.presence, (1, -1, n))  # [1, B, N]
        u_hat = votes.array()  # [J, B, N, D]

        def given(c: Any) -> tuple[Any, Any, Any, Any]:
            """Return a [J, B], μ, σ² [J, B, 1, D] and (û - μ)² [J, B, N, D] for couplings [J, B, N] or one for all."""
            use = f * c  # [J, B, N], or [1, B, N] where one coupling is that of all
            a = ops.sum(beta_use * use - beta_ign * (f - use), 2)
            share = use / (ops.sum(use, 2, keepdims=True) + self.epsilon)
            share = ops.reshape(share, (1 if isinstance(c, float) else j, -1, 1, n))
            mean = ops.matmul(share, u_hat)
            square = (u_hat - mean) * (u_hat - mean)
            return a, mean, ops.matmul(share, square) + self.epsilon, square

        c: Any = 1 / j
        with scope(ops, "route/0"):
            a, mean, variance, square = given(c)
        run.iteration(c, ops.reshape(mean, (j, -1, d)))
        for r in range(1, self.iterations):
            with scope(ops, f"route/{r}"):
                far = ops.sum(square / (variance * 2.0), 3) + ops.sum(ops.log(variance), 3) / 2  # [J, B, N]
                c = ops.softmax(ops.reshape(log_sigmoid(ops, a), (j, -1, 1)) - far, 0)
                a, mean, variance, square = given(c)
            run.iteration(c, ops.reshape(mean, (j, -1, d)))
        pose, a = ops.transpose(ops.reshape(mean, (j, -1, d)), (1, 0, 2)), ops.transpose(a, (1, 0))
        return Capsules(pose, a if self.logits else ops.sigmoid(a, small=True))
