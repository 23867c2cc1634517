"""Dynamic routing in blocks of input capsules: what it needs of memory does not grow with the number of votes.

The same function as `capscore.routing.dynamic_routing` over the votes û_ij = W_ij u_i, with its gradient through all
iterations written out by hand. Routing logits are linear in the output capsules: b_ij = û_ij · V_j, where V_j sums the
v_j of all iterations so far. So neither votes nor logits nor couplings are kept. Every pass over the input capsules
computes them again, a block at a time, in arrays that stay in the cache; of an iteration, s alone is kept.

It runs on arrays that can be sliced and written. Shapes: u [B, N, K], weight [N, J, D, K], bias [J, D]; inside,
[J, B, …] as in every routing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple

from capscore.ops import Writable
from capscore.routing import DynamicRouting, dynamic_routing
from capscore.routing.votes import ArrayVotes, votes_in_memory
from capscore.squash import squash

from .buffers import Buffers, block_bytes
from .prepared import prepared

BLOCK_BYTES = 2 << 20  # of what is made of all pairs (output capsule, input) of a block, [J, B, K, n]
VOTES_BYTES = 1 << 20  # up to this, votes in memory are faster: a weight is then read once, in its own layout
KEPT_BYTES = 32 << 20  # up to this, u and weight are brought into the layout of the products once, else every time
# What lies in memory on the way; of CAPSULES and WEIGHT, that of every block that is kept has a number.
Slot = Enum("Slot", "CAPSULES WEIGHT PRODUCT PAIR PAIRS")


class Block(NamedTuple):
    """Some of the input capsules, as the products want them."""

    at: slice
    u: Any  # [B, K, n]
    weight: Any  # [J, D, K·n]

    @property
    def n(self) -> int:
        """How many input capsules."""
        return int(self.at.stop - self.at.start)


class Streaming:
    """Dynamic routing on one backend: `forward`, and `backward` from what forward kept."""

    def __init__(self, ops: Writable[Any]) -> None:
        self.ops, self.buffers = ops, Buffers(ops)

    def __call__(self, routing: DynamicRouting, u: Any, weight: Any, bias: Any | None) -> Any:
        """Return v [B, J, D]."""
        n, j, d, _ = weight.shape
        if u.shape[0] * n * j * d * u.itemsize > VOTES_BYTES:
            return self.forward(routing, u, weight, bias, learning=False)[0]
        by_capsule = self.buffers.transpose(Slot.CAPSULES, u, (1, 0, 2))
        votes = votes_in_memory(self.ops, by_capsule, weight, weight.shape)
        return dynamic_routing(self.ops, ArrayVotes(self.ops, votes, bias), routing.iterations, routing.leaky)

    def forward(
        self, routing: DynamicRouting, u: Any, weight: Any, bias: Any | None, learning: bool = True
    ) -> tuple[Any, list[Any]]:
        """Return v [B, J, D], and s [J, B, D] of every iteration."""
        ops, (_, j, d, k), b = self.ops, weight.shape, u.shape[0]
        blocks = Blocks(self.buffers, u, weight, learning)
        start = 0 if bias is None else ops.reshape(bias, (j, 1, d))
        s: Any = 0
        for block in blocks:  # all couplings are equal: one matrix product
            flat = ops.reshape(block.weight, (j * d, k * block.n))
            s = ops.matmul(ops.reshape(block.u, (b, k * block.n)), ops.transpose(flat, (1, 0))) + s  # [B, J·D]
        s = ops.transpose(ops.reshape(s, (b, j, d)), (1, 0, 2)) * (1 / (j + routing.leaky)) + start
        v = squash(ops, s)
        kept, total = [s], v
        for r in range(1, routing.iterations):
            s = start
            for block in blocks:
                t = ops.reshape(self.buffers.matmul(Slot.PRODUCT, total, block.weight), (j, b, k, block.n))
                t *= block.u
                c = ops.softmax(ops.sum(t, 2), 0, routing.leaky)  # [J, B, n]
                cu = self.buffers.multiply(Slot.PRODUCT, ops.reshape(c, (j, b, 1, block.n)), block.u)
                s = ops.matmul(ops.reshape(cu, (j, b, k * block.n)), ops.transpose(block.weight, (0, 2, 1))) + s
            v = squash(ops, s)
            kept.append(s)
            if r + 1 < routing.iterations:
                total = total + v
        return ops.transpose(v, (1, 0, 2)), kept

    def backward(
        self, routing: DynamicRouting, g: Any, kept: list[Any], u: Any, weight: Any, bias: Any | None
    ) -> tuple[Any, Any, Any | None]:
        """Return the gradients of u, weight and bias from that of v, [B, J, D]."""
        ops, buffers, (_, j, d, k), b = self.ops, self.buffers, weight.shape, u.shape[0]
        du, dweight, dbias = u * 0, weight * 0, None
        blocks = Blocks(self.buffers, u, weight, learning=True)
        totals = [squash(ops, kept[0])]  # V of every iteration but the first
        for s in kept[1:-1]:
            totals.append(totals[-1] + squash(ops, s))
        dv, later = ops.transpose(g, (1, 0, 2)), None
        for s, total in zip(kept[:0:-1], totals[::-1], strict=False):
            ds = squash_gradient(ops, s, dv)
            dbias = _add(dbias, ops.sum(ds, 1))
            pair = buffers.take(Slot.PAIR, (j, 2, b, d), u)
            pair[:, 0], pair[:, 1] = total, ds
            rows = ops.reshape(pair, (j, 2 * b, d))
            for block in blocks:
                t = buffers.matmul(Slot.PRODUCT, rows, block.weight)
                t = ops.reshape(t, (j, 2, b, k, block.n))  # û_ij = W_ij u_i:
                a = ops.sum(buffers.multiply(Slot.PAIRS, t, block.u), 3)  # [J, 2, B, n]  û · V and û · ds
                c, dc = ops.softmax(a[:, 0], 0, routing.leaky), a[:, 1]
                dc = c * (dc - ops.sum(c * dc, 0, True))
                a[:, 0], a[:, 1] = dc, c
                a = ops.reshape(a, (j, 2, b, 1, block.n))
                t *= a
                du[:, block.at] += ops.transpose(ops.sum(t, (0, 1)), (0, 2, 1))
                au = buffers.multiply(Slot.PAIRS, a, block.u)  # [J, 2, B, K, n]
                w = ops.transpose(block.weight, (0, 2, 1))
                later = _add(later, ops.matmul(ops.reshape(au[:, 0], (j, b, k * block.n)), w))  # Σ_i dc_ij û_ij
                au = ops.reshape(au, (j, 2 * b, k * block.n))
                dw = buffers.matmul(Slot.PRODUCT, ops.transpose(rows, (0, 2, 1)), au)
                dweight[block.at] += ops.transpose(ops.reshape(dw, (j, d, k, block.n)), (3, 0, 1, 2))
            dv = later
        ds = squash_gradient(ops, kept[0], dv)
        dbias = _add(dbias, ops.sum(ds, 1))
        ds = ops.reshape(ops.transpose(ds, (1, 0, 2)) * (1 / (j + routing.leaky)), (b, j * d))
        for block in blocks:
            w = ops.reshape(block.weight, (j * d, k * block.n))
            du[:, block.at] += ops.transpose(ops.reshape(ops.matmul(ds, w), (b, k, block.n)), (0, 2, 1))
            dw = ops.matmul(ops.transpose(ds, (1, 0)), ops.reshape(block.u, (b, k * block.n)))
            dweight[block.at] += ops.transpose(ops.reshape(dw, (j, d, k, block.n)), (3, 0, 1, 2))
        return du, dweight, None if bias is None else dbias


class Blocks:
    """The blocks of input capsules, again and again; each is valid until the next if they are too large to be kept."""

    def __init__(self, buffers: Buffers[Any], u: Any, weight: Any, learning: bool) -> None:
        self.buffers, self.u, self.weight = buffers, u, weight
        (n, j, _, k), b = weight.shape, u.shape[0]
        step = max(1, block_bytes(u, BLOCK_BYTES) // max(1, j * b * k * u.itemsize))
        self.slices = [slice(i, min(i + step, n)) for i in range(0, n, step)]
        self.kept: list[Block] | None = None
        if (math.prod(u.shape) + math.prod(weight.shape)) * u.itemsize > KEPT_BYTES:
            return
        if learning:
            weights = [self._weight(at, i) for i, at in enumerate(self.slices)]
        else:
            weights = prepared(f"routing by {step}", weight, self._fresh)
        self.kept = [Block(at, self._u(at, i), w) for i, (at, w) in enumerate(zip(self.slices, weights, strict=True))]

    def __iter__(self) -> Iterator[Block]:
        """Yield every block."""
        if self.kept is None:
            return (Block(at, self._u(at), self._weight(at)) for at in self.slices)
        return iter(self.kept)

    def _u(self, at: slice, i: int = 0) -> Any:
        return self.buffers.transpose((Slot.CAPSULES, i), self.u[:, at], (0, 2, 1))

    def _weight(self, at: slice, i: int = 0) -> Any:
        n, j, d, k = self.weight[at].shape
        w = self.buffers.transpose((Slot.WEIGHT, i), self.weight[at], (1, 2, 3, 0))
        return self.buffers.ops.reshape(w, (j, d, k * n))

    def _fresh(self, _: Any) -> list[Any]:
        return [self._weight(at) * 1.0 for at in self.slices]


def squash_gradient(ops: Any, s: Any, g: Any) -> Any:
    """Return the gradient of s [..., D] from that of its squash: f·g + ŝ (ŝ·g) n·f', with n = ‖s‖, f = n/(1+n²)."""
    n = ops.norm(s, -1, keepdims=True)
    m = n + 1.0
    p = n / m
    q = p * (p - 1.0) * 2.0 + 1.0  # (1+n²)/(1+n)²: as in squash, no square leaves the range of floats
    unit = s / (n + (n == 0))
    along = ops.sum(unit * g, -1, True) * (p * (p * -2.0 + 1.0) / (q * q * m))
    return g * (p / (q * m)) + unit * along


def _add(total: Any | None, x: Any) -> Any:
    return x if total is None else total + x
