"""Variational Bayes routing: "Capsule Routing via Variational Bayes" (Ribeiro, Leontidis, Kollias 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from capscore.init import Constant
from capscore.layer import Capsules, Param, Run
from capscore.ops import A, Ops, scope
from capscore.values import check_numbers, check_whole

from .base import Routing, VotesShape
from .votes import Votes

FLOOR = 1e-11  # of an input's density under all output capsules, in the authors' code


@dataclass(frozen=True)
class VariationalBayes(Routing):
    """Output capsules are a Bayesian mixture of Gaussians of the votes, of diagonal covariance (algorithm 1).

    Priors are those of the authors' code: α₀ = κ₀ = 1, m₀ = 0, Ψ₀ = 1, ν₀ = D + 1. So are both batch normalisations,
    of poses and of activations before their sigmoid, which have no scale or shift of their own.
    """

    activates: ClassVar[bool] = True
    biased: ClassVar[bool] = False

    iterations: int = 3
    momentum: float = 0.1
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        """Check the settings."""
        check_whole(self, "iterations", most=100)
        check_numbers(self, "momentum", most=1)
        check_numbers(self, "epsilon", least=1e-12, most=1)

    def params(self, votes: VotesShape) -> dict[str, Param]:
        """Return the betas, [J] each, and running statistics of every type."""
        j = votes.n_out
        learned = {name: Param((j,), Constant(0.0)) for name in ("beta_u", "beta_a")}
        running = {
            f"{part}.{name}": Param((j,), Constant(first), False)
            for part in ("pose", "activation")
            for name, first in (("mean", 0.0), ("variance", 1.0))
        }
        return learned | running

    def multiply_adds(self, votes: VotesShape) -> int:
        """Return the multiply-adds of one image: the votes, means and variances, distances between iterations."""
        return votes.written + (3 * self.iterations - 1) * votes.numbers

    def __call__(self, ops: Ops[A], votes: Votes[A], p: Mapping[str, A], run: Run) -> Capsules[A]:
        """Route the votes to output capsules [B, J, D] with activations [B, J]."""
        (n, j, d), u_hat = (votes.n_in, votes.n_out, votes.d_out), votes.array()  # [J, B, N, D]
        one, steps = ops.asarray([[[1.0]]], u_hat), ops.asarray(np.arange(d).reshape(1, 1, d) / 2, u_hat)
        present = ops.concat([ops.reshape(votes.presence, (1, -1, n))] * j, 0)  # [J, B, N]
        c: A | float = 1 / j
        for t in range(self.iterations):
            with scope(ops, f"route/{t}"):
                r = ops.reshape(present * c, (j, -1, 1, n))
                total = ops.sum(r, 3)  # [J, B, 1]
                kappa, nu = total + 1.0, total + (d + 1.0)  # and α = κ
                m = ops.reshape(ops.matmul(r, u_hat), (j, -1, d)) / kappa
                off = u_hat - ops.reshape(m, (j, -1, 1, d))
                squares = off * off  # [J, B, N, D]
                # Ψ⁻¹ = 1 + Σ r (û - ū)² + R/κ ū² with ū = Σ r û/R, written without the division by R, which may be 0:
                q = ops.reshape(ops.matmul(r, squares), (j, -1, d)) + m * m + 1.0  # [J, B, D]
                log_det = ops.sum(digamma(ops, nu / 2 - steps) - ops.log(q), 2, keepdims=True) + d * math.log(2)
                log_share = digamma(ops, kappa) - digamma(ops, ops.sum(kappa, 0, keepdims=True))  # E[ln π], [J, B, 1]
                run.iteration(c, m)
                if t + 1 < self.iterations:
                    distance = ops.reshape(ops.matmul(squares, ops.reshape(one / q, (j, -1, d, 1))), (j, -1, n))
                    log_p = (log_det - one / kappa * d - distance * nu) / 2 - d / 2 * math.log(2 * math.pi)
                    c = votes.over_parents(log_share + log_p, FLOOR)  # [J, B, N]
        with scope(ops, "activation"):
            entropy = (log_det * -1.0 + d * math.log(2 * math.pi * math.e)) / 2
            a = ops.exp(log_share) * entropy + ops.reshape(p["beta_u"], (j, 1, 1))
            a = a * -1.0 + ops.reshape(p["beta_a"], (j, 1, 1))
            a = ops.sigmoid(self._standard(ops, a, j, p, run, "activation."), small=True)
        with scope(ops, "pose"):
            pose = self._standard(ops, m, j, p, run, "pose.")
        return Capsules(ops.transpose(pose, (1, 0, 2)), ops.transpose(ops.reshape(a, (j, -1)), (1, 0)))

    def _standard(self, ops: Ops[A], x: A, j: int, p: Mapping[str, A], run: Run, name: str) -> A:
        """Return x [J, B, D] at mean 0 and variance 1 for each of J types."""
        mean, variance = run.moments(ops, x, (1, 2), p, j, self.momentum, name)
        return (x - mean) / ops.sqrt(variance + self.epsilon)


def digamma(ops: Ops[A], x: A) -> A:
    """Return ψ(x) = Γ'(x)/Γ(x) of numbers from 1 on, to 1e-12: ψ(x) = ψ(x + 6) - Σ 1/(x + k), and its series there."""
    one = x * 0.0 + 1.0
    lower = one / x
    for k in range(1, 6):
        lower = lower + one / (x + float(k))
    y = x + 6.0
    z = one / (y * y)
    series = z * 0.0
    for term in (691 / 32760, -1 / 132, 1 / 240, -1 / 252, 1 / 120, -1 / 12):  # of y^-12 to y^-2
        series = (series + term) * z
    return ops.log(y) - one / y / 2 + series - lower
