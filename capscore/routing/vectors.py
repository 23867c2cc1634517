"""Routing by "bang per bit" of vectors: "An Algorithm for Routing Vectors in Sequences" (Heinsen 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from capscore.init import Constant, Uniform, normal
from capscore.layer import Capsules, Param, Run
from capscore.ops import A, Ops, scope
from capscore.squash import log_sigmoid, standardise
from capscore.values import check_flags, check_numbers, check_whole

from .base import Routing, VotesShape
from .votes import Votes

ZERO = Constant(0.0)


@dataclass(frozen=True)
class VectorRouting(Routing):
    """Output capsules predict the inputs; an input goes to those that predict it, which use it and ignore the rest.

    With x_i an input and û_ij its vote, f_i = σ(w_i · x_i/√N + b_i) says how much there is of it, and each iteration
    has (Heinsen 2022, algorithm 1, with the networks of the author's efficient form)

    - E-step: R_ij = 1/J at first, then softmax_j(log σ(s_ij x_i · g_j + t_ij)), where output j predicts
      g_j = (G LayerNorm(v_j)) ⊙ h_j + o_j;
    - D-step: D_use = f_i R_ij and D_ign = f_i - D_use;
    - M-step: v_j = Σ_i φ_ij û_ij with the credit φ_ij = β_use D_use - β_ign D_ign.

    Capsules are LayerNorm(v_j), or v_j itself if it is one number, the score of a class. Activations of the inputs are
    not read. The author's votes are those of `DenseCaps(bias=False, vote_bias=True, shared="factors")`. `shared`: one
    w, b, s and t for all inputs, and β a linear function of the input, so that inputs have no order.
    """

    biased: ClassVar[bool] = False

    iterations: int = 2
    shared: bool = False
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        """Check the settings."""
        check_whole(self, "iterations", most=100)
        check_flags(self, "shared")
        check_numbers(self, "epsilon", least=1e-12, most=1)

    def params(self, votes: VotesShape) -> dict[str, Param]:
        """Return what f, g, s, t and β are computed with; g, s and t only if there is an iteration that needs them."""
        n, j, k, d = 1 if self.shared else votes.n_in, votes.n_out, votes.d_in, votes.d_out
        found = {"present.weight": Param((n, k), normal(2 / math.sqrt(k))), "present.bias": Param((n,), ZERO)}
        if self.iterations > 1:
            found |= {
                "predict.weight": Param((k, d), normal(1 / math.sqrt(d))),
                "predict.scale": Param((j, k), normal(1.0)),
                "predict.bias": Param((j, k), ZERO),
                "score.scale": Param((n, j), normal(1 / math.sqrt(k))),
                "score.bias": Param((n, j), ZERO),
            }
        for name in ("use", "ignore"):
            if self.shared:
                linear = {
                    "weight": Param((j, k), Uniform(1 / math.sqrt(k))),
                    "bias": Param((j,), Uniform(1 / math.sqrt(k))),
                }
                found |= {f"{name}.{part}": param for part, param in linear.items()}
            else:
                found[name] = Param((n, j), normal(1.0))
        return found

    def multiply_adds(self, votes: VotesShape) -> int:
        """Return the multiply-adds of one image: a combine per iteration, predictions and scores between two."""
        n, j, k, d = votes.n_in, votes.n_out, votes.d_in, votes.d_out
        once = n * k + (2 * n * j * k if self.shared else 0)
        return self.iterations * votes.product + votes.windows * (once + (self.iterations - 1) * j * k * (d + n))

    def __call__(self, ops: Ops[A], votes: Votes[A], p: Mapping[str, A], run: Run) -> Capsules[A]:
        """Route the votes to output capsules [B, J, D]."""
        n, j, d, x = votes.n_in, votes.n_out, votes.d_out, votes.pose
        assert x is not None  # [B, N, K]

        def of_pairs(array: A) -> Any:
            """Return [J, 1, N] of [N, J], or [J, 1, 1] of [1, J]."""
            return ops.reshape(ops.transpose(array, (1, 0)), (j, 1, 1 if self.shared else n))

        def worth(name: str) -> Any:
            """Return β [J, 1, N] or [J, B, N]."""
            if not self.shared:
                return of_pairs(p[name])
            each = ops.matmul(x, ops.transpose(p[f"{name}.weight"], (1, 0))) + p[f"{name}.bias"]  # [B, N, J]
            return ops.transpose(each, (2, 0, 1))

        with scope(ops, "present"):
            # Reshaped before the bias: OpenVINO 2026.4 adds a bias of N to a sum over K along the wrong axis.
            f = ops.reshape(ops.sum(x * p["present.weight"], 2), (1, -1, n))
            f = ops.sigmoid(f / math.sqrt(n) + p["present.bias"], small=True)
            use, ignore = worth("use"), worth("ignore")
        c: Any = 1 / j
        v: Any = None
        for r in range(self.iterations):
            with scope(ops, f"route/{r}"):
                if r:
                    g = ops.matmul(self._normal(ops, v, d), ops.transpose(p["predict.weight"], (1, 0)))  # [J, B, K]
                    g = g * ops.reshape(p["predict.scale"], (j, 1, -1)) + ops.reshape(p["predict.bias"], (j, 1, -1))
                    match = ops.transpose(ops.matmul(x, ops.transpose(g, (1, 2, 0))), (2, 0, 1))  # [J, B, N]
                    c = log_sigmoid(ops, match * of_pairs(p["score.scale"]) + of_pairs(p["score.bias"]))
                    c = ops.softmax(c, 0)
                used = f * c
                v = votes.combine(use * used - ignore * (f - used))  # [J, B, D]
            run.iteration(c, v)
        return Capsules(ops.transpose(self._normal(ops, v, d), (1, 0, 2)))

    def _normal(self, ops: Ops[A], v: A, d: int) -> A:
        return v if d == 1 else standardise(ops, v, d, self.epsilon)
