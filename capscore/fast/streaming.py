"""Routing in blocks of capsules: what it needs of memory does not grow with the number of votes.

The same functions as `capscore.routing.DynamicRouting` and `SelfAttention` over the votes û_ij = W_ij u_i, with their
gradients written out by hand, through all iterations. Routing logits are linear in the output capsules: b_ij =
û_ij · V_j, where V_j sums the v_j of all iterations so far. So neither votes nor logits nor couplings are kept. Every
pass over the input capsules computes them again, a block at a time, in arrays that stay in the cache; of an iteration,
s alone is kept. The windows of a convolutional layer are images to a routing, thousands that see few inputs: they are
routed some at a time.

It runs on arrays that can be sliced and written. Shapes: u [B, N, K], weight [N, J, D, K], bias [J, D]; inside,
[J, B, …] as in every routing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, NamedTuple

from capscore.layer import INFERENCE
from capscore.ops import Writable
from capscore.routing import DynamicRouting, Routing, SelfAttention, VotesShape
from capscore.routing.votes import ArrayVotes, votes_in_memory
from capscore.squash import SHORT, exponential_squash, squash, unchanged

from .buffers import Buffers, block_bytes
from .prepared import prepared

BLOCK_BYTES = 2 << 20  # of what is made of all pairs (output capsule, input) of a block, [J, B, K, n]
VOTES_BYTES = 1 << 20  # up to this, votes in memory are faster: a weight is then read once, in its own layout
KEPT_BYTES = 32 << 20  # up to this, u and weight are brought into the layout of the products once, else every time
IMAGES = 128  # of a block, at least, if there are so many: with fewer, reading weights takes longer than arithmetic
# What lies in memory on the way; of CAPSULES and WEIGHT, that of every block that is kept has a number.
Slot = Enum("Slot", "CAPSULES WEIGHT PRODUCT PAIR PAIRS")


class Step(NamedTuple):
    """What makes v of s at the end of an iteration."""

    of: Callable[[Any, Any], Any]  # (ops, s)
    gradient: Callable[[Any, Any, Any], Any]  # (ops, s, gradient of v)


class Rule(NamedTuple):
    """What the loops over the blocks have to know of a routing."""

    first: float  # the coupling of all pairs in the first iteration
    leaky: bool
    steps: list[Step]  # at the end of every iteration


def _dynamic(routing: DynamicRouting, j: int, d: int) -> Rule:
    return Rule(1 / (j + routing.leaky), routing.leaky, [SQUASHES[routing.squash]] * routing.iterations)


def _attention(routing: SelfAttention, j: int, d: int) -> Rule:
    """Its Σ_k û_kj / √D is a first iteration."""
    scale = 1 / math.sqrt(d)
    scaled = Step(lambda ops, s: s * scale, lambda ops, s, g: g * scale)
    return Rule(1.0, False, [scaled, SQUASHES[routing.squash]])


RULES: dict[type[Routing], Callable[[Any, int, int], Rule]] = {DynamicRouting: _dynamic, SelfAttention: _attention}


class Block(NamedTuple):
    """Some of the input capsules, as the products want them."""

    at: slice
    u: Any  # [B, K, n]
    weight: Any  # [J, D, K·n]
    prior: Any | None  # [J, 1, n], added to the couplings

    @property
    def n(self) -> int:
        """How many input capsules."""
        return int(self.at.stop - self.at.start)

    def coupled(self, c: Any) -> Any:
        """Return couplings [J, B, n] with the prior."""
        return c if self.prior is None else c + self.prior


class Streaming:
    """A routing on one backend: `forward`, and `backward` from what forward kept. `own` is what the routing learns."""

    def __init__(self, ops: Writable[Any]) -> None:
        self.ops, self.buffers = ops, Buffers(ops)

    def __call__(self, routing: Routing, u: Any, weight: Any, bias: Any | None, *own: Any) -> Any:
        """Return v [B, J, D]."""
        n, j, d, k = weight.shape
        if u.shape[0] * n * j * d * u.itemsize > VOTES_BYTES:
            return self.forward(routing, u, weight, bias, *own, learning=False)[0]
        by_capsule = self.buffers.transpose(Slot.CAPSULES, u, (1, 0, 2))
        votes = ArrayVotes(self.ops, votes_in_memory(self.ops, by_capsule, weight, weight.shape), bias)
        named = dict(zip(routing.params(VotesShape(n, j, d, k)), own, strict=True))
        return routing(self.ops, votes, named, INFERENCE).pose

    def forward(
        self, routing: Routing, u: Any, weight: Any, bias: Any | None, *own: Any, learning: bool = True
    ) -> tuple[Any, list[Any]]:
        """Return v [B, J, D], and s [J, B, D] of every iteration."""
        _, j, d, _ = weight.shape
        rule, blocks = RULES[type(routing)](routing, j, d), Blocks(self.buffers, u, weight, learning, *own)
        found = [self._forward(rule, blocks.of(u[part]), (j, d), bias) for part in blocks.parts]
        if len(found) == 1:
            return found[0]
        v, kept = zip(*found, strict=True)
        return self.ops.concat(v, 0), [self.ops.concat(s, 1) for s in zip(*kept, strict=True)]

    def _forward(
        self, rule: Rule, blocks: Iterable[Block], sizes: tuple[int, int], bias: Any | None
    ) -> tuple[Any, list[Any]]:
        """Return the same of the images of these blocks."""
        ops, (j, d) = self.ops, sizes
        start = 0 if bias is None else ops.reshape(bias, (j, 1, d))
        s: Any = 0
        for block in blocks:  # all couplings are equal: one matrix product
            kn = block.u.shape[1] * block.u.shape[2]
            w = ops.transpose(ops.reshape(block.weight, (j * d, kn)), (1, 0))
            s = ops.matmul(ops.reshape(block.u, (len(block.u), kn)), w) + s  # [B, J·D]
        s = ops.transpose(ops.reshape(s, (-1, j, d)), (1, 0, 2)) * rule.first + start
        v, kept, total = rule.steps[0].of(ops, s), [s], None
        for step in rule.steps[1:]:
            s, total = start, v if total is None else total + v
            for block in blocks:
                b, k, n = block.u.shape
                t = ops.reshape(self.buffers.matmul(Slot.PRODUCT, total, block.weight), (j, b, k, n))
                t *= block.u
                c = block.coupled(ops.softmax(ops.sum(t, 2), 0, rule.leaky))  # [J, B, n]
                cu = self.buffers.multiply(Slot.PRODUCT, ops.reshape(c, (j, b, 1, n)), block.u)
                s = ops.matmul(ops.reshape(cu, (j, b, k * n)), ops.transpose(block.weight, (0, 2, 1))) + s
            v = step.of(ops, s)
            kept.append(s)
        return ops.transpose(v, (1, 0, 2)), kept

    def backward(
        self, routing: Routing, g: Any, kept: list[Any], u: Any, weight: Any, bias: Any | None, *own: Any
    ) -> tuple[Any, ...]:
        """Return the gradients of u, weight, bias and what the routing learns from that of v, [B, J, D]."""
        rule = RULES[type(routing)](routing, *weight.shape[1:3])
        blocks = Blocks(self.buffers, u, weight, True, *own)
        du, dweight, dbias, dprior = u * 0, weight * 0, None, [prior * 0 for prior in own]
        for part in blocks.parts:
            sums = [s[:, part] for s in kept]
            to = du[part], dweight, *dprior
            dbias = _add(dbias, self._backward(rule, g[part], sums, blocks.of(u[part]), *to))
        return du, dweight, None if bias is None else dbias, *dprior

    def _backward(
        self, rule: Rule, g: Any, kept: list[Any], blocks: Iterable[Block], du: Any, dweight: Any, *dprior: Any
    ) -> Any:
        """Add the gradients of the images of these blocks to `du`, `dweight`, `dprior`; return that of the bias."""
        ops, buffers, (_, j, d, k), b = self.ops, self.buffers, dweight.shape, len(g)
        totals: list[Any] = []  # V of every iteration but the first
        for step, s in zip(rule.steps[:-1], kept, strict=False):
            totals.append(_add(totals[-1] if totals else None, step.of(ops, s)))
        dv, later, dbias = ops.transpose(g, (1, 0, 2)), None, None
        for step, s, total in zip(rule.steps[:0:-1], kept[:0:-1], totals[::-1], strict=True):
            ds = step.gradient(ops, s, dv)
            dbias = _add(dbias, ops.sum(ds, 1))
            pair = buffers.take(Slot.PAIR, (j, 2, b, d), du)
            pair[:, 0], pair[:, 1] = total, ds
            rows = ops.reshape(pair, (j, 2 * b, d))
            for block in blocks:
                t = buffers.matmul(Slot.PRODUCT, rows, block.weight)
                t = ops.reshape(t, (j, 2, b, k, block.n))  # û_ij = W_ij u_i:
                a = ops.sum(buffers.multiply(Slot.PAIRS, t, block.u), 3)  # [J, 2, B, n]  û · V and û · ds
                for each in dprior:
                    each[:, block.at] += ops.sum(a[:, 1], 1)
                c, dc = ops.softmax(a[:, 0], 0, rule.leaky), a[:, 1]
                dc = c * (dc - ops.sum(c * dc, 0, True))
                a[:, 0], a[:, 1] = dc, block.coupled(c)
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
        ds = rule.steps[0].gradient(ops, kept[0], dv)
        dbias = _add(dbias, ops.sum(ds, 1))
        ds = ops.reshape(ops.transpose(ds, (1, 0, 2)) * rule.first, (b, j * d))
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

    def __init__(self, buffers: Buffers[Any], u: Any, weight: Any, learning: bool, *prior: Any) -> None:
        self.buffers, self.weight, self.prior = buffers, weight, prior
        (n, j, _, k), b = weight.shape, u.shape[0]
        pairs = max(1, block_bytes(u, BLOCK_BYTES) // max(1, j * k * u.itemsize))  # (image, input) of a block
        self.parts = _even(b, max(IMAGES, pairs // n))
        images = self.parts[0].stop
        self.slices = _even(n, max(1, pairs // max(1, images)))
        self.weights: list[Any] | None = None
        if (images * n * k + math.prod(weight.shape)) * u.itemsize > KEPT_BYTES:
            return
        if learning:
            self.weights = [self._weight(at, i) for i, at in enumerate(self.slices)]
        else:
            self.weights = prepared(f"routing by {self.slices[0].stop}", weight, self._fresh)

    def of(self, u: Any) -> Iterable[Block]:
        """Return the blocks of one part of the images, [B, N, K], to be gone through again and again."""
        if self.weights is None:
            return _Again(lambda: (self._block(u, at, self._weight(at)) for at in self.slices))
        each = zip(self.slices, self.weights, strict=True)
        return [self._block(u, at, weight, i) for i, (at, weight) in enumerate(each)]

    def _block(self, u: Any, at: slice, weight: Any, i: int = 0) -> Block:
        capsules = self.buffers.transpose((Slot.CAPSULES, i), u[:, at], (0, 2, 1))
        (prior,) = (p[:, None, at] for p in self.prior) if self.prior else (None,)
        return Block(at, capsules, weight, prior)

    def _weight(self, at: slice, i: int = 0) -> Any:
        n, j, d, k = self.weight[at].shape
        w = self.buffers.transpose((Slot.WEIGHT, i), self.weight[at], (1, 2, 3, 0))
        return self.buffers.ops.reshape(w, (j, d, k * n))

    def _fresh(self, _: Any) -> list[Any]:
        return [self._weight(at) * 1.0 for at in self.slices]


class _Again:
    """Blocks that are made whenever one goes through them."""

    def __init__(self, make: Callable[[], Iterator[Block]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Block]:
        return self.make()


def _even(count: int, most: int) -> list[slice]:
    """Return the fewest parts of a count, as even as can be, none of them larger than `most`."""
    size = max(1, -(-count // max(1, -(-count // most))))
    return [slice(i, min(i + size, count)) for i in range(0, max(1, count), size)]


def squash_gradient(ops: Any, s: Any, g: Any) -> Any:
    """Return the gradient of s [..., D] from that of its squash: f·g + ŝ (ŝ·g) n·f', with n = ‖s‖, f = n/(1+n²)."""
    n = ops.norm(s, -1, keepdims=True)
    m = n + 1.0
    p = n / m
    q = p * (p - 1.0) * 2.0 + 1.0  # (1+n²)/(1+n)²: as in squash, no square leaves the range of floats
    unit = s / (n + (n == 0))
    along = ops.sum(unit * g, -1, True) * (p * (p * -2.0 + 1.0) / (q * q * m))
    return g * (p / (q * m)) + unit * along


def exponential_gradient(ops: Any, s: Any, g: Any) -> Any:
    """Return the same of the exponential squash, f = (1 - e^-n)/n: n·f' = e^-n - f, and 0 where f is constant."""
    whole = ops.norm(s, -1, keepdims=True)
    n = ops.relu(whole - SHORT) + SHORT
    e = ops.exp(n * -1.0)
    f = (e * -1.0 + 1.0) / n
    unit = s / n
    return g * f + unit * (ops.sum(unit * g, -1, True) * (e - f) * (whole > SHORT))


SQUASHES = {
    "squash": Step(squash, squash_gradient),
    "exponential": Step(exponential_squash, exponential_gradient),
    "none": Step(unchanged, lambda ops, s, g: g),
}


def _add(total: Any | None, x: Any) -> Any:
    return x if total is None else total + x
