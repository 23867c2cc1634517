"""Dynamic routing in blocks of capsules: what it needs of memory does not grow with the number of votes.

The same function as `capscore.routing.dynamic_routing` over the votes û_ij = W_ij u_i, with its gradient through all
iterations written out by hand. Routing logits are linear in the output capsules: b_ij = û_ij · V_j, where V_j sums the
v_j of all iterations so far. So neither votes nor logits nor couplings are kept. Every pass over the input capsules
computes them again, a block at a time, in arrays that stay in the cache; of an iteration, s alone is kept. The windows
of a convolutional layer are images to a routing, thousands that see few inputs: they are routed some at a time.

It runs on arrays that can be sliced and written. Shapes: u [B, N, K], weight [N, J, D, K], bias [J, D]; inside,
[J, B, …] as in every routing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
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
IMAGES = 128  # of a block, at least, if there are so many: with fewer, reading weights takes longer than arithmetic


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
        by_capsule = self.buffers.transpose("routing capsules", u, (1, 0, 2))
        votes = votes_in_memory(self.ops, by_capsule, weight, weight.shape)
        return dynamic_routing(self.ops, ArrayVotes(self.ops, votes, bias), routing.iterations, routing.leaky)

    def forward(
        self, routing: DynamicRouting, u: Any, weight: Any, bias: Any | None, learning: bool = True
    ) -> tuple[Any, list[Any]]:
        """Return v [B, J, D], and s [J, B, D] of every iteration."""
        blocks = Blocks(self.buffers, u, weight, learning)
        found = [self._forward(routing, blocks.of(u[part]), weight.shape, bias) for part in blocks.parts]
        if len(found) == 1:
            return found[0]
        v, kept = zip(*found, strict=True)
        return self.ops.concat(v, 0), [self.ops.concat(s, 1) for s in zip(*kept, strict=True)]

    def _forward(
        self, routing: DynamicRouting, blocks: Iterable[Block], sizes: tuple[int, ...], bias: Any | None
    ) -> tuple[Any, list[Any]]:
        """Return the same for images of which these are all blocks."""
        ops, (_, j, d, k) = self.ops, sizes
        start = 0 if bias is None else ops.reshape(bias, (j, 1, d))
        s: Any = 0
        for block in blocks:  # all couplings are equal: one matrix product
            flat = ops.reshape(block.weight, (j * d, k * block.n))
            s = ops.matmul(ops.reshape(block.u, (-1, k * block.n)), ops.transpose(flat, (1, 0))) + s  # [B, J·D]
        s = ops.transpose(ops.reshape(s, (-1, j, d)), (1, 0, 2)) * (1 / (j + routing.leaky)) + start
        v = squash(ops, s)
        kept, total = [s], v
        for r in range(1, routing.iterations):
            s = start
            for block in blocks:
                t = ops.reshape(self.buffers.matmul("routing", total, block.weight), (j, -1, k, block.n))
                t *= block.u
                c = ops.softmax(ops.sum(t, 2), 0, routing.leaky)  # [J, B, n]
                cu = self.buffers.multiply("routing", ops.reshape(c, (j, -1, 1, block.n)), block.u)
                s = ops.matmul(ops.reshape(cu, (j, -1, k * block.n)), ops.transpose(block.weight, (0, 2, 1))) + s
            v = squash(ops, s)
            kept.append(s)
            if r + 1 < routing.iterations:
                total = total + v
        return ops.transpose(v, (1, 0, 2)), kept

    def backward(
        self, routing: DynamicRouting, g: Any, kept: list[Any], u: Any, weight: Any, bias: Any | None
    ) -> tuple[Any, Any, Any | None]:
        """Return the gradients of u, weight and bias from that of v, [B, J, D]."""
        du, dweight, dbias = u * 0, weight * 0, None
        blocks = Blocks(self.buffers, u, weight, learning=True)
        for part in blocks.parts:
            of_part = self._backward(routing, g[part], [s[:, part] for s in kept], blocks.of(u[part]), du[part], dweight)
            dbias = _add(dbias, of_part)
        return du, dweight, None if bias is None else dbias

    def _backward(
        self, routing: DynamicRouting, g: Any, kept: list[Any], blocks: Iterable[Block], du: Any, dweight: Any
    ) -> Any:
        """Add the gradients of u and weight, for images of which these are all blocks; return that of the bias."""
        ops, buffers, (_, j, d, k), b = self.ops, self.buffers, dweight.shape, len(g)
        totals = [squash(ops, kept[0])]  # V of every iteration but the first
        for s in kept[1:-1]:
            totals.append(totals[-1] + squash(ops, s))
        dv, later, dbias = ops.transpose(g, (1, 0, 2)), None, None
        for s, total in zip(kept[:0:-1], totals[::-1], strict=False):
            ds = squash_gradient(ops, s, dv)
            dbias = _add(dbias, ops.sum(ds, 1))
            pair = buffers.take("routing pair", (j, 2, b, d), du)
            pair[:, 0], pair[:, 1] = total, ds
            rows = ops.reshape(pair, (j, 2 * b, d))
            for block in blocks:
                t = ops.reshape(
                    buffers.matmul("routing", rows, block.weight), (j, 2, b, k, block.n)
                )  # û_ij = W_ij u_i:
                a = ops.sum(buffers.multiply("routing pairs", t, block.u), 3)  # [J, 2, B, n]  û · V and û · ds
                c, dc = ops.softmax(a[:, 0], 0, routing.leaky), a[:, 1]
                dc = c * (dc - ops.sum(c * dc, 0, True))
                a[:, 0], a[:, 1] = dc, c
                a = ops.reshape(a, (j, 2, b, 1, block.n))
                t *= a
                du[:, block.at] += ops.transpose(ops.sum(t, (0, 1)), (0, 2, 1))
                au = buffers.multiply("routing pairs", a, block.u)  # [J, 2, B, K, n]
                w = ops.transpose(block.weight, (0, 2, 1))
                later = _add(later, ops.matmul(ops.reshape(au[:, 0], (j, b, k * block.n)), w))  # Σ_i dc_ij û_ij
                dw = buffers.matmul("routing", ops.transpose(rows, (0, 2, 1)), ops.reshape(au, (j, 2 * b, k * block.n)))
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
        return dbias


class Blocks:
    """The blocks of some images' input capsules, and how these images are parts of all.

    Blocks too large to be kept are made every time, each valid until the next.
    """

    def __init__(self, buffers: Buffers[Any], u: Any, weight: Any, learning: bool) -> None:
        self.buffers, self.weight = buffers, weight
        (n, j, _, k), b = weight.shape, u.shape[0]
        pairs = max(1, block_bytes(u, BLOCK_BYTES) // max(1, j * k * u.itemsize))  # (image, input) of a block
        self.parts = _even(b, max(IMAGES, pairs // n))
        images = self.parts[0].stop
        self.slices = _even(n, max(1, pairs // max(1, images)))
        step = self.slices[0].stop
        self.keep = (images * n * k + math.prod(weight.shape)) * u.itemsize <= KEPT_BYTES
        if not self.keep:
            return
        self.names = [f" {i} of {len(self.slices)}" for i in range(len(self.slices))]
        if learning:
            self.weights = [self._weight(at, name) for at, name in zip(self.slices, self.names, strict=True)]
        else:
            self.weights = prepared(f"routing by {step}", weight, self._fresh)

    def of(self, u: Any) -> Iterable[Block]:
        """Return the blocks of one part of the images, [B, N, K], to be gone through again and again."""
        if not self.keep:
            return _Made(lambda at: Block(at, self._u(u, at), self._weight(at)), self.slices)
        each = zip(self.slices, self.names, self.weights, strict=True)
        return [Block(at, self._u(u, at, name), w) for at, name, w in each]

    def _u(self, u: Any, at: slice, name: str = "") -> Any:
        return self.buffers.transpose("routing capsules" + name, u[:, at], (0, 2, 1))

    def _weight(self, at: slice, name: str = "") -> Any:
        n, j, d, k = self.weight[at].shape
        w = self.buffers.transpose("routing weight" + name, self.weight[at], (1, 2, 3, 0))
        return self.buffers.ops.reshape(w, (j, d, k * n))

    def _fresh(self, _: Any) -> list[Any]:
        return [self._weight(at) * 1.0 for at in self.slices]


def _even(count: int, most: int) -> list[slice]:
    """Return the fewest parts of a count, as even as can be, none of them larger than `most`."""
    size = -(-count // max(1, -(-count // most)))
    return [slice(i, min(i + size, count)) for i in range(0, max(1, count), max(1, size))]


class _Made(NamedTuple):
    """Blocks that are made whenever one goes through them."""

    make: Callable[[slice], Block]
    slices: list[slice]

    def __iter__(self) -> Iterator[Block]:  # type: ignore[override]
        return map(self.make, self.slices)


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
