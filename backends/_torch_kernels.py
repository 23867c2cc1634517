"""Dynamic routing on the GPU through Triton without votes in memory: the kernels and their host functions.

The method is that of `kernels.cu`: logits are b_ij = û_ij · V_j, with V_j the sum of all outputs so far, so an
iteration needs no more of the ones before it, and computes the votes û_ij = W_ij u_i in registers. It leaves partial
sums, which a second kernel adds in a fixed order and squashes. Sizes: u [B, N, K], weight [N, J, D, K], bias [J, D]
or None, capsules [B, J, D]; kept for the backward pass [2, R, B, J, D]; the weights are copied once, to [N, K, J, D].

Estimate for one H200 (4.8 TB/s, 67 TFLOP/s float32, 495 tf32), MNIST's network (N = 1152, J = 10, D = 16, K = 8) at
B = 1024; none of it was measured. As for `kernels.cu`, 3.8 GFLOP an iteration, but tiles are powers of two: J counts
as 16, which makes it 6 GFLOP, 90 μs at the float32 peak, against 8 μs for u and W at memory speed. `_gradients`
computes 19 GFLOP, 0.29 ms at the peak, and reads the capsules of all images once per input capsule, 3.8 GB, from the
L2 cache, about 0.6 ms: that bounds it.

The arithmetic is exercised on the CPU by Triton's interpreter (TRITON_INTERPRET=1), and the kernels are compiled for
an H100; none of it has run on a GPU yet, which `pytest -m gpu` does.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from capscore.errors import ShapeError, short

PRECISIONS = ("float32", "tf32", "bf16")
BLOCKS = 264  # two for each multiprocessor of an H200, one after the other; a constant: all GPUs add in one order
ROWS = 32  # partial sums that are added at a time


@triton.jit  # type: ignore[untyped-decorator]
def _product(a: tl.tensor, b: tl.tensor, PRODUCT: tl.constexpr) -> tl.tensor:
    """Matrix product [M, N] of [M, L] and [L, N]: as plain sums, or by a dot product in some precision."""
    if PRODUCT == "sum":
        return tl.sum(b[None, :, :] * a[:, :, None], 1)  # in the other order Triton 3.6 makes it a product in tf32
    elif PRODUCT == "bf16":  # noqa: RET505  Triton wants the branches of a constant as one statement
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    else:
        return tl.dot(a, b, input_precision=PRODUCT)


@triton.jit  # type: ignore[untyped-decorator]
def _inputs(
    u: tl.tensor, i: tl.tensor, b: tl.tensor, there: tl.tensor, n_in: tl.tensor, K: tl.constexpr, KP: tl.constexpr
) -> tl.tensor:
    """u_i [BATCH, KP] of the images b, zero where there are none."""
    k = tl.arange(0, KP)[None, :]
    return tl.load(u + ((b * n_in + i) * K)[:, None] + k, mask=there[:, None] & (k < K), other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _weights(
    weight: tl.tensor, i: tl.tensor, J: tl.constexpr, D: tl.constexpr, K: tl.constexpr,
    JP: tl.constexpr, DP: tl.constexpr, KP: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """W_i as a matrix [KP, JP·DP]."""
    k, j, d = tl.arange(0, KP)[:, None, None], tl.arange(0, JP)[None, :, None], tl.arange(0, DP)[None, None, :]
    inside = (k < K) & (j < J) & (d < D)
    return tl.reshape(tl.load(weight + ((i * K + k) * J + j) * D + d, mask=inside, other=0.0), (KP, JP * DP))


@triton.jit  # type: ignore[untyped-decorator]
def _votes(
    u: tl.tensor, weight: tl.tensor, i: tl.tensor, b: tl.tensor, there: tl.tensor, n_in: tl.tensor,
    J: tl.constexpr, D: tl.constexpr, K: tl.constexpr, JP: tl.constexpr, DP: tl.constexpr, KP: tl.constexpr,
    BATCH: tl.constexpr, PRODUCT: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """û_i [BATCH, JP, DP]; exactly by K multiply-adds per entry, else by tensor cores."""
    if PRODUCT == "exact":
        j, d = tl.arange(0, JP)[:, None], tl.arange(0, DP)[None, :]
        inside = (j < J) & (d < D)
        votes = tl.zeros((BATCH, JP, DP), u.dtype.element_ty)
        for k in range(K):
            x = tl.load(u + (b * n_in + i) * K + k, mask=there, other=0.0)
            w = tl.load(weight + ((i * K + k) * J + j) * D + d, mask=inside, other=0.0)
            votes += x[:, None, None] * w[None, :, :]
        return votes
    else:  # noqa: RET505
        x = _inputs(u, i, b, there, n_in, K, KP)
        w = _weights(weight, i, J, D, K, JP, DP, KP)
        return tl.reshape(_product(x, w, PRODUCT), (BATCH, JP, DP))


@triton.jit  # type: ignore[untyped-decorator]
def _couplings(votes: tl.tensor, total: tl.tensor, J: tl.constexpr, JP: tl.constexpr, LEAKY: tl.constexpr) -> tl.tensor:
    """c_ij [BATCH, JP], the softmax over output capsules of û_ij · V_j; 0 for those that only fill the tile."""
    logits = tl.where(tl.arange(0, JP)[None, :] < J, tl.sum(votes * total, 2), float("-inf"))
    largest = tl.max(logits, 1)
    if LEAKY:
        largest = tl.maximum(largest, 0.0)
    e = tl.exp(logits - largest[:, None])
    sums = tl.sum(e, 1)
    if LEAKY:
        sums += tl.exp(-largest)
    return e / sums[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def _logit_gradients(votes: tl.tensor, c: tl.tensor, gradient: tl.tensor) -> tl.tensor:
    """c (g - Σ_j c g) [BATCH, JP] for the gradient g_ij = û_ij · ∂s_j of the couplings c."""
    g = tl.sum(votes * gradient, 2)
    return c * (g - tl.sum(c * g, 1)[:, None])


@triton.jit(do_not_specialize=["images", "n_in", "per_split"])  # type: ignore[untyped-decorator]
def _route(
    u: tl.tensor, weight: tl.tensor, total: tl.tensor, gradient: tl.tensor, partial: tl.tensor,
    images: tl.tensor, n_in: tl.tensor, per_split: tl.tensor,
    J: tl.constexpr, D: tl.constexpr, K: tl.constexpr, JP: tl.constexpr, DP: tl.constexpr, KP: tl.constexpr,
    BATCH: tl.constexpr, PRODUCT: tl.constexpr, LEAKY: tl.constexpr, FIRST: tl.constexpr, BACK: tl.constexpr,
) -> None:  # fmt: skip
    """One iteration for BATCH images and a slice of input capsules: partial [splits, B, J, D] of s, Σ_i c_ij û_ij.

    FIRST: uniform couplings. BACK: the gradients of the logits in place of the couplings.
    """
    tiles = tl.cdiv(images, BATCH)
    split = tl.program_id(0) // tiles
    b = (tl.program_id(0) % tiles * BATCH + tl.arange(0, BATCH)).to(tl.int64)
    there = b < images
    j, d = tl.arange(0, JP)[None, :, None], tl.arange(0, DP)[None, None, :]
    capsules = (b[:, None, None] * J + j) * D + d
    inside = there[:, None, None] & (j < J) & (d < D)
    s = tl.zeros((BATCH, JP, DP), u.dtype.element_ty)
    if not FIRST:
        v = tl.load(total + capsules, mask=inside, other=0.0)
    if BACK:
        g = tl.load(gradient + capsules, mask=inside, other=0.0)
    for n in range(split * per_split, tl.minimum((split + 1) * per_split, n_in)):
        i = tl.full((), n, tl.int64)
        votes = _votes(u, weight, i, b, there, n_in, J, D, K, JP, DP, KP, BATCH, PRODUCT)
        if FIRST:
            s += votes
        else:
            c = _couplings(votes, v, J, JP, LEAKY)
            if BACK:
                c = _logit_gradients(votes, c, g)
            s += c[:, :, None] * votes
    if FIRST:
        s = s / (J + LEAKY)
    tl.store(partial + split.to(tl.int64) * images * J * D + capsules, s, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _add(
    partial: tl.tensor, capsule: tl.tensor, capsules: tl.tensor, splits: tl.tensor,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Σ over splits of the partial sums [DP] of one output capsule of one image."""
    d = tl.arange(0, DP)[None, :]
    total = tl.zeros((ROWS, DP), partial.dtype.element_ty)
    for start in range(0, splits, ROWS):
        n = (start + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        total += tl.load(partial + (n * capsules + capsule) * D + d, mask=(n < splits) & (d < D), other=0.0)
    return tl.sum(total, 0)


@triton.jit  # type: ignore[untyped-decorator]
def _length(s: tl.tensor) -> tl.tensor:
    """What squash takes of a vector: its length n, the largest entry divided out, and p = n / (1 + n)."""
    largest = tl.max(tl.abs(s), 0)
    scale = tl.where(largest == 0, 1.0, largest)
    n = tl.sqrt(tl.sum(s / scale * (s / scale), 0)) * scale
    return n, n / (n + 1.0)


@triton.jit(do_not_specialize=["splits"])  # type: ignore[untyped-decorator]
def _squash_sums(
    partial: tl.tensor, bias: tl.tensor, before: tl.tensor, sums: tl.tensor, totals: tl.tensor, splits: tl.tensor,
    J: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr,
    BIAS: tl.constexpr, BEFORE: tl.constexpr,
) -> None:  # fmt: skip
    """s = Σ partial + bias; total = squash(s), added to the total before where there is one."""
    capsule = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, DP)
    s = _add(partial, capsule, tl.num_programs(0).to(tl.int64), splits, D, DP, ROWS)
    if BIAS:
        s += tl.load(bias + capsule % J * D + d, mask=d < D, other=0.0)
    n, p = _length(s)
    total = s * (p / ((p * (p - 1.0) * 2.0 + 1.0) * (n + 1.0)))
    if BEFORE:
        total += tl.load(before + capsule * D + d, mask=d < D, other=0.0)
    tl.store(sums + capsule * D + d, s, mask=d < D)
    tl.store(totals + capsule * D + d, total, mask=d < D)


@triton.jit(do_not_specialize=["splits"])  # type: ignore[untyped-decorator]
def _squash_back(
    partial: tl.tensor, before: tl.tensor, sums: tl.tensor, after: tl.tensor, gradients: tl.tensor, splits: tl.tensor,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, BEFORE: tl.constexpr,
) -> None:  # fmt: skip
    """after = Σ partial (+ before), the gradient of v; gradients: what squash hands back of it, that of s."""
    capsule = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, DP)
    g = _add(partial, capsule, tl.num_programs(0).to(tl.int64), splits, D, DP, ROWS)
    if BEFORE:
        g += tl.load(before + capsule * D + d, mask=d < D, other=0.0)
    s = tl.load(sums + capsule * D + d, mask=d < D, other=0.0)
    n, p = _length(s)
    q = p * (p - 1.0) * 2.0 + 1.0
    unit = s / tl.where(n == 0, 1.0, n)
    along = tl.sum(unit * g, 0) * (1.0 - 2.0 * p) / q
    tl.store(after + capsule * D + d, g, mask=d < D)
    tl.store(gradients + capsule * D + d, p / (q * (n + 1.0)) * (g + unit * along), mask=d < D)


@triton.jit(do_not_specialize=["images", "n_in", "iterations", "splits", "per_split"])  # type: ignore[untyped-decorator]
def _gradients(
    u: tl.tensor, weight: tl.tensor, totals: tl.tensor, gradient: tl.tensor, du: tl.tensor, dweight: tl.tensor,
    images: tl.tensor, n_in: tl.tensor, iterations: tl.tensor, splits: tl.tensor, per_split: tl.tensor,
    J: tl.constexpr, D: tl.constexpr, K: tl.constexpr, JP: tl.constexpr, DP: tl.constexpr, KP: tl.constexpr,
    BATCH: tl.constexpr, PRODUCT: tl.constexpr, BACK_PRODUCT: tl.constexpr, LEAKY: tl.constexpr,
) -> None:  # fmt: skip
    """du and dweight [splits, N, K, J, D] of one input capsule, for the images of one split.

    totals [R, B, J, D]: V of the next iteration at each but the last; gradient [R, B, J, D]: those of all s.
    """
    i = (tl.program_id(0) // splits).to(tl.int64)
    split = tl.program_id(0) % splits
    k, j, d = tl.arange(0, KP)[None, :], tl.arange(0, JP)[None, :, None], tl.arange(0, DP)[None, None, :]
    w = _weights(weight, i, J, D, K, JP, DP, KP)
    dw = tl.zeros((KP, JP * DP), u.dtype.element_ty)
    layer = images.to(tl.int64) * J * D
    end = tl.minimum((split + 1) * per_split, images)
    for image in range(split * per_split, end, BATCH):
        b = (image + tl.arange(0, BATCH)).to(tl.int64)
        there = b < end
        capsules = (b[:, None, None] * J + j) * D + d
        inside = there[:, None, None] & (j < J) & (d < D)
        votes = _votes(u, weight, i, b, there, n_in, J, D, K, JP, DP, KP, BATCH, PRODUCT)
        dvotes = tl.load(gradient + capsules, mask=inside, other=0.0) / (J + LEAKY)
        for r in range(1, iterations):
            v = tl.load(totals + (r - 1) * layer + capsules, mask=inside, other=0.0)
            g = tl.load(gradient + r * layer + capsules, mask=inside, other=0.0)
            c = _couplings(votes, v, J, JP, LEAKY)
            dvotes += c[:, :, None] * g + _logit_gradients(votes, c, g)[:, :, None] * v
        flat = tl.reshape(dvotes, (BATCH, JP * DP))
        dx = _product(flat, tl.trans(w), BACK_PRODUCT)
        tl.store(du + ((b * n_in + i) * K)[:, None] + k, dx, mask=there[:, None] & (k < K))
        dw += _product(tl.trans(_inputs(u, i, b, there, n_in, K, KP)), flat, BACK_PRODUCT)
    kk = tl.arange(0, KP)[:, None, None]
    to = dweight + (((split * n_in.to(tl.int64) + i) * K + kk) * J + j) * D + d
    tl.store(to, tl.reshape(dw, (KP, JP, DP)), mask=(kk < K) & (j < J) & (d < D))


@dataclass(frozen=True)
class Plan:
    """How the work is cut: images per program and how products are made, in an iteration and in `_gradients`."""

    product: str
    batch: int
    warps: int
    back_product: str
    back_batch: int
    back_warps: int
    shape: dict[str, int]
    back_shape: dict[str, int]


@functools.cache
def plan(n_out: int, d_out: int, d_in: int, double: bool, precision: str) -> Plan | None:
    """Return how to cut the work for these sizes, or None if W_i, which `_gradients` holds, is more than 64 KiB.

    A program holds a handful of tiles [images, J, D], 16 numbers per thread where J · D is not small; dot products
    want 16 images.
    """
    jp, dp, kp = (1 << (n - 1).bit_length() for n in (n_out, d_out, d_in))
    tile = jp * dp
    if tile * kp * (8 if double else 4) > 65536:
        return None
    dots = not double and 16 <= tile <= 512 and tile * kp <= 8192
    batch = min(max((4096 if double else 8192) // tile, 1), 32)
    back_batch = 16 if dots else min(max(8192 // (tile * kp), 1), 16)
    sizes = {"J": n_out, "D": d_out, "K": d_in, "JP": jp, "DP": dp}
    return Plan(
        product=precision if dots and precision != "float32" else "exact",
        batch=batch,
        warps=min(max(batch * tile // 512, 4), 16),
        back_product=("ieee" if precision == "float32" else "tf32") if dots else "sum",
        back_batch=back_batch,
        back_warps=16 if dots and tile * kp > 4096 else 8,
        shape=sizes | {"KP": max(kp, 16)},
        back_shape=sizes | {"KP": max(kp, 16) if dots else kp},
    )


def supports(u: Tensor, weight: Tensor) -> bool:
    """Whether the kernels take these tensors; else the generic routing does.

    They take float32 and float64, at least one image, and W_i [J, D, K] of at most 64 KiB, J, D and K each rounded up
    to a power of 2.
    """
    known = u.dtype == weight.dtype and u.dtype in (torch.float32, torch.float64)
    return known and u.numel() > 0 and weight.numel() > 0 and _plan(u, weight, "float32") is not None


def forward(
    u: Tensor, weight: Tensor, bias: Tensor | None, iterations: int, leaky: bool, precision: str = "float32"
) -> tuple[Tensor, Tensor]:
    """Route u [B, N, K] by agreement over votes W u; see `capscore.routing.dynamic_routing`.

    Parameters
    ----------
    u, weight, bias : [B, N, K], [N, J, D, K] and [J, D] or None, as `supports` takes them
    iterations, leaky : as in `dynamic_routing`
    precision : "float32" is exact; "tf32" and "bf16" allow votes of float32 tensors to be computed on tensor cores
        from factors rounded so; where the shape does not suit these (or the dtype is float64), votes are exact

    Returns
    -------
    output capsules v [B, J, D], and what `backward` needs of all iterations, [2, R, B, J, D]
    """
    run = _Run(u, weight, leaky, precision)
    kept = run.empty(2, iterations, *run.capsules)
    sums, totals = kept[0], kept[1]
    bias = None if bias is None else bias.to(u.dtype).contiguous()
    for r in range(iterations):
        partial = run.route(totals[r - 1] if r else None)
        run.squash_sums(partial, bias, totals[r - 1] if 0 < r < iterations - 1 else None, sums[r], totals[r])
    return totals[iterations - 1], kept  # the last total is v itself


def backward(
    gradient: Tensor,
    kept: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    iterations: int,
    leaky: bool,
    precision: str = "float32",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of u, weight and bias (None without one) for that of v, [B, J, D].

    Through all iterations; `kept` is what `forward` returned beside v for the same arguments. With reduced precision,
    votes are as in `forward` and the last products, which give the gradients of u and weight, may be in tf32.
    """
    run = _Run(u, weight, leaky, precision)
    sums, totals = kept[0], kept[1]
    grads = torch.empty_like(sums)  # of s, by iteration
    after = run.empty(2, *run.capsules)  # of v: the running sum of the logits' shares, in turns
    partial, before = gradient.to(u.dtype).contiguous()[None], None
    for r in reversed(range(iterations)):
        now = after[r % 2]
        run.squash_back(partial, before, sums[r], now, grads[r])
        before = now if r < iterations - 1 else None  # the gradient of v itself is of the last iteration only
        if r:
            partial = run.route(totals[r - 1], grads[r])
    du, dweight = run.gradients(totals, grads)
    return du, dweight, None if bias is None else grads.sum((0, 1))


class _Run:
    """The launches for one u and weight."""

    def __init__(self, u: Tensor, weight: Tensor, leaky: bool, precision: str) -> None:
        if precision not in PRECISIONS:
            raise ShapeError(f"precision must be one of {', '.join(PRECISIONS)}, not {short(precision)}")
        chosen = _plan(u, weight, precision)
        if chosen is None or not supports(u, weight):
            raise ShapeError(
                f"the Triton routing kernels do not take {u.dtype} inputs {tuple(u.shape)} and {weight.dtype} weights "
                f"{tuple(weight.shape)}: use the generic routing"
            )
        self.plan, self.leaky = chosen, int(leaky)
        self.u, self.weight = u.contiguous(), weight.permute(0, 3, 1, 2).contiguous()  # [N, K, J, D]
        self.batch, self.n_in, _ = u.shape
        self.capsules = (self.batch, *weight.shape[1:3])

    def empty(self, *shape: int) -> Tensor:
        """Return memory on the device of u."""
        return torch.empty(shape, dtype=self.u.dtype, device=self.u.device)

    def route(self, total: Tensor | None = None, gradient: Tensor | None = None) -> Tensor:
        """Return the partial sums [splits, B, J, D] of one iteration: the first, a later one, or one backward."""
        tiles = -(-self.batch // self.plan.batch)
        per_split = -(-self.n_in // -(-BLOCKS // tiles))
        splits = -(-self.n_in // per_split)
        partial = self.empty(splits, *self.capsules)
        self._launch(
            _route, tiles * splits, self.plan.warps, self.u, self.weight, partial if total is None else total,
            partial if gradient is None else gradient, partial, self.batch, self.n_in, per_split, **self.plan.shape,
            BATCH=self.plan.batch, PRODUCT=self.plan.product, LEAKY=self.leaky,
            FIRST=total is None, BACK=gradient is not None,
        )  # fmt: skip
        return partial

    def squash_sums(
        self, partial: Tensor, bias: Tensor | None, before: Tensor | None, s: Tensor, total: Tensor
    ) -> None:
        """Add partial sums to s and squash them to the total."""
        self._add(_squash_sums, partial, s if bias is None else bias, s if before is None else before, s, total,
                  J=self.plan.shape["J"], BIAS=bias is not None, BEFORE=before is not None)  # fmt: skip

    def squash_back(self, partial: Tensor, before: Tensor | None, s: Tensor, after: Tensor, gradient: Tensor) -> None:
        """Add partial sums to the gradient of v and go back through squash to that of s."""
        self._add(_squash_back, partial, s if before is None else before, s, after, gradient,
                  BEFORE=before is not None)  # fmt: skip

    def gradients(self, totals: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return those of u and weight, given those of all s."""
        wanted, batch = max(BLOCKS // self.n_in, 1), self.plan.back_batch
        per_split = -(-self.batch // (wanted * batch)) * batch
        splits = -(-self.batch // per_split)
        du, dweight = torch.empty_like(self.u), self.empty(splits, *self.weight.shape)
        self._launch(
            _gradients, self.n_in * splits, self.plan.back_warps, self.u, self.weight, totals, grads, du, dweight,
            self.batch, self.n_in, len(grads), splits, per_split, **self.plan.back_shape,
            BATCH=batch, PRODUCT=self.plan.product, BACK_PRODUCT=self.plan.back_product, LEAKY=self.leaky,
        )  # fmt: skip
        dweight = dweight[0] if splits == 1 else dweight.sum(0)
        return du, dweight.permute(0, 2, 3, 1).contiguous()

    def _add(self, kernel: Any, partial: Tensor, *tensors: Tensor, **constants: int) -> None:
        d_out, dp = self.plan.shape["D"], self.plan.shape["DP"]
        capsules = self.capsules[0] * self.capsules[1]
        self._launch(kernel, capsules, 4, partial, *tensors, len(partial), D=d_out, DP=dp, ROWS=ROWS, **constants)

    def _launch(self, kernel: Any, programs: int, warps: int, *arguments: Tensor | int, **constants: int | str) -> None:
        with torch.cuda.device_of(self.u):  # type: ignore[no-untyped-call]
            kernel[(programs,)](*arguments, **constants, num_warps=warps)


def _plan(u: Tensor, weight: Tensor, precision: str) -> Plan | None:
    n_out, d_out, d_in = weight.shape[1:]
    return plan(n_out, d_out, d_in, u.dtype == torch.float64, precision)
