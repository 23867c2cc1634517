"""The layers of a capsule network, written once over the ops of `capscore.ops`.

Shapes: images [B, C, H, W]; primary capsules u [B, N, K]; class capsules v [B, J, D].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic

from .cook_toom import tiling
from .ops import A, Ops, scope

if TYPE_CHECKING:
    from .spec import CapsNetSpec


def squash(ops: Ops[A], s: A, axis: int = -1) -> A:
    """Shrink vectors to a length below 1, keeping their direction (equation 1): v = ‖s‖²/(1+‖s‖²) · s/‖s‖.

    Zero for the zero vector and a unit vector for a very long one, with finite gradients at both.
    """
    with scope(ops, "squash"):
        n = ops.norm(s, axis, keepdims=True)
        m = n + 1.0
        p = n / m  # n/(1+n²) = p / ((p² + (1-p)²)·(1+n)): no square leaves the range of floats
        return s * (p / ((p * (p - 1.0) * 2.0 + 1.0) * m))


def lengths(ops: Ops[A], capsules: A) -> A:
    """Return the lengths [B, J] of capsules [B, J, D]: the probability that each entity is present."""
    return ops.norm(capsules, -1)


class Votes(ABC, Generic[A]):
    """Votes û_ij as a linear map: what a routing asks of them, however they are kept."""

    n_out: int

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

    def __init__(self, ops: Ops[A], u: A, weight: A, bias: A | None, shape: tuple[int, int, int, int]) -> None:
        self.ops, self.bias = ops, bias
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


def primary_capsules(ops: Ops[A], spec: CapsNetSpec, params: Mapping[str, A], x: A, fast_conv: str | None = None) -> A:
    """Turn images [B, C, H, W] into primary capsules u [B, N, K]: stem, convolution, grouping, squash.

    A capsule is the `dim` channels of one type at one position; its index is i = (type·H + y)·W + x.
    """
    size = spec.input
    for i, conv in enumerate(spec.stem):
        with scope(ops, f"stem.{i}"):
            fast = tiling(fast_conv, *size, conv.kernel, conv.stride, conv.padding)
            x = ops.conv2d(x, params[f"stem.{i}.weight"], params[f"stem.{i}.bias"], conv.stride, conv.padding, fast)
            x = ops.relu(x) if conv.activation == "relu" else x
            size = spec.stem_maps[i]
    p, (height, width) = spec.primary, spec.primary_map
    with scope(ops, "primary"):
        fast = tiling(fast_conv, *size, p.kernel, p.stride, p.padding)
        x = ops.conv2d(x, params["primary.weight"], params["primary.bias"], p.stride, p.padding, fast)
        u = ops.transpose(ops.reshape(x, (-1, p.types, p.dim, height * width)), (0, 2, 1, 3))  # [B, K, T, H·W]
        u = squash(ops, ops.reshape(u, (-1, p.dim, p.types * height * width)), 1)  # [B, K, N], as the votes want it
        return ops.transpose(u, (0, 2, 1))  # [B, N, K]


def dense_capsules(
    ops: Ops[A], spec: CapsNetSpec, params: Mapping[str, A], i: int, u: A, trace: list[A | float] | None = None
) -> A:
    """Turn capsules u [B, N, K] into those of capsule layer `i`, v [B, J, D], by votes and routing."""
    routing = spec.capsules[i].routing
    with scope(ops, f"capsules.{i}"):
        weight, bias = params[f"capsules.{i}.weight"], params.get(f"capsules.{i}.bias")
        fused = getattr(ops, "FUSED", {}).get(type(routing)) if trace is None else None
        if fused is not None and (v := fused(routing, u, weight, bias)) is not None:
            return v  # type: ignore[no-any-return]
        return routing(ops, LinearVotes(ops, u, weight, bias, spec.votes_shape(i)), trace)


def forward(
    ops: Ops[A],
    spec: CapsNetSpec,
    params: Mapping[str, A],
    x: A,
    trace: list[list[A | float]] | None = None,
    fast_conv: str | None = None,
) -> A:
    """Run the network from images [B, C, H, W] in [0, 1] to its last capsules [B, J, D] (figure 1).

    A `trace` list receives one list per capsule layer, with the couplings of every iteration. `fast_conv` names the
    tiles of `capscore.cook_toom`.
    """
    u = primary_capsules(ops, spec, params, x, fast_conv)
    for i in range(len(spec.capsules)):
        couplings: list[A | float] | None = None
        if trace is not None:
            trace.append(couplings := [])
        u = dense_capsules(ops, spec, params, i, u, couplings)
    return u


def reconstruct(ops: Ops[A], spec: CapsNetSpec, params: Mapping[str, A], capsules: A, mask: A) -> A:
    """Draw images [B, C, H, W] from capsules [B, J, D] of which `mask` [B, J] keeps some (figure 2).

    Three layers in the paper: ReLU on the hidden ones, sigmoid on the pixels.
    """
    last = spec.capsules[-1]
    with scope(ops, "decoder"):
        x = capsules * ops.reshape(mask, (-1, last.count, 1))
        x = ops.reshape(x, (-1, last.count * last.dim))
        sizes = spec.decoder_sizes
        for i in range(len(sizes)):
            x = ops.matmul(x, ops.transpose(params[f"decoder.{i}.weight"], (1, 0))) + params[f"decoder.{i}.bias"]
            x = ops.relu(x) if i + 1 < len(sizes) else ops.sigmoid(x)
        return ops.reshape(x, (-1, *spec.input))
