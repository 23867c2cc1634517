"""Votes û_ij = W_ij u_i: what input capsule i says that output capsule j is (equation 2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic

from capscore.layer import Capsules
from capscore.ops import A, Ops, scope
from capscore.squash import presence

from .windows import Windows, exponentials


class Votes(ABC, Generic[A]):
    """Votes û_ij as a linear map: what a routing asks of them, however they are kept.

    For a convolutional layer, B counts the windows of all images, and the inputs are those of one window.
    """

    ops: Ops[A]
    n_in: int
    n_out: int
    d_out: int
    pose: A | None = None  # [B, N, K]: the input capsules
    activation: A | None = None  # [B, N]: how present they are, where their layer says so
    windows: Windows | None = None  # how they were cut out of a grid, in a convolutional layer

    @abstractmethod
    def combine(self, c: A | float) -> A:
        """Return s [J, B, D], s_j = Σ_i c_ij û_ij + bias_j, for couplings c [J, B, N] or one number for all."""

    @abstractmethod
    def agree(self, v: A) -> A:
        """Return a [J, B, N], a_ij = û_ij · v_j, for output capsules v [J, B, D]."""

    @abstractmethod
    def array(self) -> A:
        """Return the votes û [J, B, N, D] themselves, for routings that need more than the two products."""

    @property
    def presence(self) -> A:
        """How present each input is, [B, N]: its activation, or its length if it has none."""
        assert self.pose is not None
        return presence(self.ops, Capsules(self.pose, self.activation))

    def over_parents(self, logits: A, floor: float = 0.0) -> A:
        """Return couplings [J, B, N]: the softmax over all output capsules that see an input, of all types and windows.

        (`ops.softmax(logits, 0)` is that over the types within each window.) An input whose Σ e^logit is below `floor`
        is divided by that instead: it fits no output capsule, and its couplings sum to less than 1.
        """
        if self.windows is not None:
            return self.windows.softmax(self.ops, logits, self.n_out, floor)
        if not floor:
            return self.ops.softmax(logits, 0)
        largest, total = exponentials(self.ops, logits, (0,), floor)
        return self.ops.exp(logits - largest) / total

    def among_parents(self, x: A) -> A:
        """Return x [1, B, N] in equal parts for all output capsules that see an input."""
        x = x / self.n_out
        return x if self.windows is None else self.windows.divide(self.ops, x)


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

    Poses of R `rows` are matrices [R, K] and votes U_i W_ij matrices [R, D]: the rows are as many vectors that share
    their couplings. `shape` is that of the weight.
    """

    def __init__(
        self,
        ops: Ops[A],
        u: A,
        weight: A,
        bias: A | None,
        shape: tuple[int, int, int, int],
        activation: A | None = None,
        rows: int = 1,
        windows: Windows | None = None,
    ) -> None:
        self.ops, self.bias, self.activation, self.rows, self.windows = ops, bias, activation, rows, windows
        self.n_in, self.n_out, self.d, self.k = n, j, d, k = shape
        self.d_out, self.pose = rows * d, u
        self.u = ops.transpose(u, (0, 2, 1))  # [B, R·K, N]
        with scope(ops, "votes"):
            self.weight = ops.reshape(ops.transpose(weight, (1, 2, 3, 0)), (j, d, k * n))  # [J, D, K·N]

    def combine(self, c: A | float) -> A:
        """Return s [J, B, R·D]."""
        ops, j, d, kn = self.ops, self.n_out, self.d, self.k * self.n_in
        if isinstance(c, float):
            w = ops.transpose(ops.reshape(self.weight, (j * d, kn)), (1, 0))  # [K·N, J·D]
            s = ops.matmul(ops.reshape(self.u, (-1, kn)), w) * c  # [B·R, J·D]
            s = ops.transpose(ops.reshape(s, (-1, j, d)), (1, 0, 2))  # [J, B·R, D]
        else:
            cu = ops.reshape(c, (j, -1, 1, self.n_in)) * self.u  # [J, B, R·K, N]
            s = ops.matmul(ops.reshape(cu, (j, -1, kn)), ops.transpose(self.weight, (0, 2, 1)))  # [J, B·R, D]
        if self.rows > 1:
            s = ops.reshape(s, (j, -1, self.d_out))
        return s if self.bias is None else s + ops.reshape(self.bias, (j, 1, self.d_out))

    def agree(self, v: A) -> A:
        """Return a [J, B, N]."""
        ops, j = self.ops, self.n_out
        if self.rows > 1:
            v = ops.reshape(v, (j, -1, self.d))  # [J, B·R, D]
        t = ops.matmul(v, self.weight)  # [J, B·R, K·N]
        return ops.sum(ops.reshape(t, (j, -1, self.rows * self.k, self.n_in)) * self.u, 2)

    def array(self) -> A:
        """Return û [J, B, N, R·D]."""
        ops, r, (n, j, d, k) = self.ops, self.rows, (self.n_in, self.n_out, self.d, self.k)
        w = ops.reshape(ops.transpose(ops.reshape(self.weight, (j * d, k, n)), (2, 1, 0)), (n, k, j * d))
        u = ops.transpose(ops.reshape(self.u, (-1, r, k, n)), (3, 0, 1, 2))  # [N, B, R, K]
        u_hat = ops.reshape(ops.matmul(ops.reshape(u, (n, -1, k)), w), (n, -1, r, j, d))
        return ops.reshape(ops.transpose(u_hat, (3, 1, 0, 2, 4)), (j, -1, n, r * d))


class SharedVotes(Votes[A]):
    """Votes û_ij = W_j u_i, where all inputs have one matrix: an output capsule sums them before it multiplies.

    `weight` is [J, D, K]; or [1, D, K] with a `scale` [J, K], and W_j = weight · diag(scale_j). Poses of R `rows` are
    matrices, as in `LinearVotes`. Memory is linear in N, J, D and K.
    """

    def __init__(
        self,
        ops: Ops[A],
        u: A,
        weight: A,
        bias: A | None,
        shape: tuple[int, int, int, int],
        activation: A | None = None,
        rows: int = 1,
        scale: A | None = None,
    ) -> None:
        self.ops, self.weight, self.bias, self.activation, self.rows = ops, weight, bias, activation, rows
        self.u = self.pose = u
        self.n_in, self.n_out, self.d, self.k = shape
        self.d_out = rows * self.d
        self.scale = None if scale is None else ops.reshape(scale, (self.n_out, 1, self.k))

    def _scaled(self, x: A) -> A:
        return x if self.scale is None else x * self.scale

    def _of_all(self, x: A) -> A:
        """Return rows x [R, K] by the matrices of all output capsules: [J, R, D]."""
        ops, j, d, k = self.ops, self.n_out, self.d, self.k
        if self.scale is not None:
            return ops.matmul(ops.reshape(x, (1, -1, k)) * self.scale, ops.transpose(self.weight, (0, 2, 1)))
        by_output = ops.transpose(ops.reshape(self.weight, (j * d, k)), (1, 0))
        return ops.transpose(ops.reshape(ops.matmul(x, by_output), (-1, j, d)), (1, 0, 2))

    def combine(self, c: A | float) -> A:
        """Return s [J, B, R·D]."""
        ops, j, u = self.ops, self.n_out, self.u
        if isinstance(c, float):
            s = self._of_all(ops.reshape(ops.sum(u, 1) * c, (-1, self.k)))
        else:
            total = ops.transpose(ops.matmul(ops.transpose(c, (1, 0, 2)), u), (1, 0, 2))  # [J, B, R·K]
            total = self._scaled(ops.reshape(total, (j, -1, self.k)))
            s = ops.matmul(total, ops.transpose(self.weight, (0, 2, 1)))
        s = ops.reshape(s, (j, -1, self.d_out))
        return s if self.bias is None else s + ops.reshape(self.bias, (j, 1, self.d_out))

    def agree(self, v: A) -> A:
        """Return a [J, B, N]."""
        ops, j, u = self.ops, self.n_out, self.u
        t = self._scaled(ops.matmul(ops.reshape(v, (j, -1, self.d)), self.weight))  # [J, B·R, K]
        t = ops.transpose(ops.reshape(t, (j, -1, self.rows * self.k)), (1, 2, 0))  # [B, R·K, J]
        return ops.transpose(ops.matmul(u, t), (2, 0, 1))

    def array(self) -> A:
        """Return û [J, B, N, R·D]."""
        u_hat = self._of_all(self.ops.reshape(self.u, (-1, self.k)))
        return self.ops.reshape(u_hat, (self.n_out, -1, self.n_in, self.d_out))


class ArrayVotes(Votes[A]):
    """Votes given as an array û [B, N, J, D], with an optional bias [J, D]; `sizes` (N, J, D) if it cannot tell."""

    def __init__(
        self, ops: Ops[A], u_hat: Any, bias: A | None = None, sizes: tuple[int, int, int] | None = None
    ) -> None:
        self.ops, self.bias = ops, bias
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
        """Return û [J, B, N, D]."""
        return self.by_capsule


class ShiftedVotes(Votes[A]):
    """Votes û_ij + e_ij, with e the same for all images, such as a place or a learned number.

    e is [J, N, D], [1, N, D] if it is that of all outputs, or [J, 1, D] if it is that of all inputs.
    """

    def __init__(self, votes: Votes[A], shift: A, alike: bool = False) -> None:
        self.votes, self.shift, self.alike, self.ops = votes, shift, alike, votes.ops
        self.n_in, self.n_out, self.d_out = votes.n_in, votes.n_out, votes.d_out
        self.pose, self.activation, self.windows = votes.pose, votes.activation, votes.windows

    def combine(self, c: A | float) -> A:
        """Return s [J, B, D]."""
        ops = self.ops
        if isinstance(c, float):
            total = ops.sum(self.shift, 1, keepdims=True) * (c * self.n_in if self.alike else c)  # [J or 1, 1, D]
        else:
            total = ops.matmul(ops.sum(c, 2, keepdims=True) if self.alike else c, self.shift)  # [J, B, D]
        return self.votes.combine(c) + total

    def agree(self, v: A) -> A:
        """Return a [J, B, N]."""
        return self.votes.agree(v) + self.ops.matmul(v, self.ops.transpose(self.shift, (0, 2, 1)))

    def array(self) -> A:
        """Return û + e [J, B, N, D]."""
        return self.votes.array() + self.ops.reshape(self.shift, (-1, 1, 1 if self.alike else self.n_in, self.d_out))
