"""Routing by expectation maximisation: "Matrix Capsules with EM Routing" (Hinton, Sabour, Frosst 2018)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from capscore.init import TruncatedNormal, Uniform
from capscore.layer import Capsules, Param, Run
from capscore.ops import A, Ops, scope
from capscore.values import check_numbers, check_whole

from .base import Routing, VotesShape
from .votes import Votes

EPSILON = 1e-9  # Gritzman's


@dataclass(frozen=True)
class EMRouting(Routing):
    """Output capsules are Gaussians that are fitted to the votes: procedure 1, as its authors explained it in public.

    An input is shared among all output capsules that see it, of all types and positions. The inverse temperature of
    iteration t = 0, 1, … is `inverse_temperature` · (1 - `decay`^(t+1)).

    `information` is how much a capsule hears whatever the number of its inputs: the sum of its assignments is scaled by
    information · J/N, as Gritzman (2019) does to have one temperature for all layers; None: unscaled, as in the paper.
    First numbers of the betas are Gritzman's too, and go with votes of `TruncatedNormal(1)` weights.
    """

    activates: ClassVar[bool] = True
    biased: ClassVar[bool] = False

    iterations: int = 3
    inverse_temperature: float = 0.01
    decay: float = 0.95
    information: float | None = 100.0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_whole(self, "iterations", most=100)
        check_numbers(self, "inverse_temperature")
        check_numbers(self, "decay", most=1)
        if self.information is not None:
            check_numbers(self, "information", least=1e-9)

    def params(self, votes: VotesShape) -> dict[str, Param]:
        """Return the cost of a vote's number and the activation's threshold, [J] each."""
        j = votes.n_out
        return {
            "beta_u": Param((j,), Uniform(math.sqrt(6 / (j + 1)))),
            "beta_a": Param((j,), TruncatedNormal(500.0, mean=-1000.0)),
        }

    def multiply_adds(self, votes: VotesShape) -> int:
        """Return the multiply-adds of one image: the votes, means and variances, distances between iterations."""
        return votes.written + (3 * self.iterations - 1) * votes.numbers

    def __call__(self, ops: Ops[A], votes: Votes[A], p: Mapping[str, A], run: Run) -> Capsules[A]:
        """Route the votes to output capsules [B, J, D] with activations [B, J]."""
        (n, j, d), u_hat = (votes.n_in, votes.n_out, votes.d_out), votes.array()  # [J, B, N, D]
        beta_u, beta_a = ops.reshape(p["beta_u"], (j, 1)), ops.reshape(p["beta_a"], (j, 1))
        one = ops.asarray([[[1.0]]], u_hat)
        scale = 1.0 if self.information is None else self.information * j / n
        present = ops.reshape(votes.presence, (1, -1, n))
        c = ops.concat([votes.among_parents(present * 0.0 + 1.0)] * j, 0)  # [J, B, N]
        for t in range(self.iterations):
            with scope(ops, f"route/{t}"):
                r = ops.reshape(c * present, (j, -1, 1, n))
                total = ops.sum(r, 3)  # [J, B, 1]
                mean = ops.reshape(ops.matmul(r, u_hat), (j, -1, d)) / (total + EPSILON)
                off = u_hat - ops.reshape(mean, (j, -1, 1, d))
                squares = off * off  # [J, B, N, D]
                variance = ops.reshape(ops.matmul(r, squares), (j, -1, d)) / (total + EPSILON) + EPSILON
                log_deviation = ops.sum(ops.log(variance), 2) / 2  # [J, B]  Σ_h ln σ_h
                cost = (beta_u * d + log_deviation) * ops.reshape(total, (j, -1)) * scale
                inverse_temperature = self.inverse_temperature * (1 - self.decay ** (t + 1))
                activation = ops.sigmoid((beta_a - cost) * inverse_temperature)
                run.iteration(c, mean)
                if t + 1 < self.iterations:  # the E step; a constant of all logits is left out
                    distance = ops.reshape(ops.matmul(squares, ops.reshape(one / variance, (j, -1, d, 1))), (j, -1, n))
                    height = ops.reshape(ops.log(activation + EPSILON) - log_deviation, (j, -1, 1))
                    c = votes.over_parents(height - distance / 2)
        return Capsules(ops.transpose(mean, (1, 0, 2)), ops.transpose(activation, (1, 0)))
