"""Votes û_ij = W_ij u_i: what input capsule i says that output capsule j is (equation 2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic

from capscore.ops import A, Ops, scope


class Votes(ABC, Generic[A]):
    """Votes û_ij as a linear map: what a routing asks of them, however they are kept."""

    n_in: int
    n_out: int
    d_out: int
    activation: A | None = None  # [B, N]: how present the input capsules are, where their layer says so

    @abstractmethod
    def combine(self, c: A | float) -> A:
        """Return s [J, B, D], s_j = Σ_i c_ij û_ij + bias_j, for couplings c [J, B, N] or one number for all."""

    @abstractmethod
    def agree(self, v: A) -> A:
        """Return a [J, B, N], a_ij = û_ij · v_j, for output capsules v [J, B, D]."""

    @abstractmethod
    def array(self) -> A:
        """Return the votes û [B, N, J, D] themselves, for routings that need more than the two products."""


def votes_in_memory(ops: Ops[A], u: A, weight: A, shape: tuple[int, int, int, int]) -> A:
    """Return the votes û [B, N, J, D] of capsules u [N, B, K] and weight [N, J, D, K], for so few that it pays."""
    n, j, d, k = shape
    by_input = ops.transpose(ops.reshape(weight, (n, j * d, k)), (0, 2, 1))  # [N, K, J·D]
    return ops.transpose(ops.reshape(ops.matmul(u, by_input), (n, -1, j, d)), (1, 0, 2, 3))


class LinearVotes(Votes[A]):
    """Votes û_ij = W_ij u_i that are never written down.

    Each product is one matrix product per output capsule: combine is (c_j ⊗ u) against W_j, agree is W_jᵀ v_j
    against u. That was measured to be several times faster than products with votes in memory, and the
    first combine, all of whose couplings are equal, is a single matrix product.
    """

    def __init__(
        self,
        ops: Ops[A],
        u: A,
        weight: A,
        bias: A | None,
        shape: tuple[int, int, int, int],
        activation: A | None = None,
    ) -> None:
        self.ops, self.bias, self.activation = ops, bias, activation
        self.n_in, self.n_out, self.d_out, self.d_in = shape
        n, j, d, k = shape
        self.u = ops.transpose(u, (0, 2, 1))  # [B, K, N]
        with scope(ops, "votes"):
            self.weight = ops.reshape(ops.transpose(weight, (1, 2, 3, 0)), (j, d, k * n))  # [J, D, K·N]

    def combine(self, c: A | float) -> A:
        """Return s [J, B, D]."""
        ops, j, d, kn = self.ops, self.n_out, self.d_out, self.d_in * self.n_in
        if isinstance(c, float):
            w = ops.transpose(ops.reshape(self.weight, (j * d, kn)), (1, 0))  # [K·N, J·D]
            s = ops.matmul(ops.reshape(self.u, (-1, kn)), w) * c  # [B, J·D]
            s = ops.transpose(ops.reshape(s, (-1, j, d)), (1, 0, 2))  # [J, B, D]
        else:
            cu = ops.reshape(c, (j, -1, 1, self.n_in)) * self.u  # [J, B, K, N]
            s = ops.matmul(ops.reshape(cu, (j, -1, kn)), ops.transpose(self.weight, (0, 2, 1)))  # [J, B, D]
        return s if self.bias is None else s + ops.reshape(self.bias, (j, 1, d))

    def agree(self, v: A) -> A:
        """Return a [J, B, N]."""
        t = self.ops.matmul(v, self.weight)  # [J, B, K·N]
        return self.ops.sum(self.ops.reshape(t, (self.n_out, -1, self.d_in, self.n_in)) * self.u, 2)

    def array(self) -> A:
        """Return û [B, N, J, D]."""
        ops, (n, j, d, k) = self.ops, (self.n_in, self.n_out, self.d_out, self.d_in)
        w = ops.reshape(ops.transpose(ops.reshape(self.weight, (j * d, k, n)), (2, 1, 0)), (n, k, j * d))
        u_hat = ops.matmul(ops.transpose(self.u, (2, 0, 1)), w)  # [N, B, J·D]
        return ops.transpose(ops.reshape(u_hat, (n, -1, j, d)), (1, 0, 2, 3))


class ArrayVotes(Votes[A]):
    """Votes given as an array û [B, N, J, D], with an optional bias [J, D]; `sizes` (N, J, D) if it cannot tell."""

    def __init__(
        self, ops: Ops[A], u_hat: Any, bias: A | None = None, sizes: tuple[int, int, int] | None = None
    ) -> None:
        self.ops, self.bias, self.u_hat = ops, bias, u_hat
        known: tuple[int, int, int] = sizes or u_hat.shape[1:]
        self.n_in, self.n_out, self.d_out = known
        self.n_out = int(self.n_out)  # where PyTorch traces, sizes are tensors: couplings would not be a number
        self.by_capsule = ops.transpose(u_hat, (2, 0, 1, 3))  # [J, B, N, D]

    def combine(self, c: A | float) -> A:
        """Return s [J, B, D]."""
        ops, j, n, d = self.ops, self.n_out, self.n_in, self.d_out
        if isinstance(c, float):
            s = ops.sum(self.by_capsule, 2) * c
        else:
            s = ops.reshape(ops.matmul(ops.reshape(c, (j, -1, 1, n)), self.by_capsule), (j, -1, d))
        return s if self.bias is None else s + ops.reshape(self.bias, (j, 1, d))

    def agree(self, v: A) -> A:
        """Return a [J, B, N]."""
        ops, j, n, d = self.ops, self.n_out, self.n_in, self.d_out
        return ops.reshape(ops.matmul(self.by_capsule, ops.reshape(v, (j, -1, d, 1))), (j, -1, n))

    def array(self) -> A:
        """Return û [B, N, J, D]."""
        return self.u_hat  # type: ignore[no-any-return]
