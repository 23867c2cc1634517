"""Dynamic routing on the GPU through CuPy without votes in memory: `kernels.cu`, compiled and launched.

Sizes: u [B, N, K], weight [N, J, D, K], bias [J, D] or None, capsules [B, J, D]. What is kept of a forward pass for
the backward one is [2, R, B, J, D]; partial sums add [splits, B, J, D] for a time. Votes, [B, N, J, D], and coupling
coefficients are computed again wherever they are wanted.

Estimate for one H200 (4.8 TB/s, 67 TFLOP/s float32, 495 tf32), MNIST's network (N = 1152, J = 10, D = 16, K = 8) at
B = 1024; none of it was measured. An iteration reads u, 38 MB, and W, 5.9 MB, once for every 64 images, 94 MB, from
the L2 cache: 8 μs at memory speed. It computes 3.0 MFLOP of votes and 0.7 of products with them per image, 3.8 GFLOP:
57 μs at the float32 peak, of which shared-memory loads (one per eight multiply-adds) leave perhaps two thirds. Three
iterations are bound by arithmetic: 0.16 ms at the peak. Votes on tensor cores leave 12 μs of products with them.
Backward, with what forward kept, is two such iterations of 4.5 GFLOP and the gradients' 12 GFLOP: 0.32 ms at the
peak; `gradients` reads the capsules of all images once per four input capsules, 0.9 GB, from the L2 cache.

The arithmetic of every kernel, tensor cores' layouts included, is exercised on the CPU (tests/cuda_on_cpu.h) and nvcc
compiles the source; none of it has run on a GPU yet, which `pytest -m gpu` does.
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import math
from dataclasses import dataclass
from typing import Any

import cupy
import numpy as np

from capscore.errors import ShapeError, short

PRECISIONS = {"float32": 0, "tf32": 1, "bf16": 2}  # → how votes are multiplied
BLOCKS = 264  # two for each multiprocessor of an H200, one after the other; a constant: all GPUs add in one order
KERNELS = "route_first", "route_next", "route_back", "squash_sums", "squash_back", "gradients"

Array = Any  # cupy.ndarray; CuPy comes without types


@dataclass(frozen=True)
class Plan:
    """How the work is cut: the macros of kernels.cu, explained there."""

    n_out: int
    d_out: int
    d_in: int
    double: bool
    leaky: bool
    product: int
    lanes: int
    images: int = 1
    tile: int = 1
    stage: int = 1
    staged: bool = False
    back_tile: int = 1
    back_staged: bool = False

    @property
    def rows(self) -> int:
        """Chunks of at most 16 dimensions, of all output capsules."""
        return self.n_out * -(-self.d_out // 16)

    @property
    def threads(self) -> int:
        """Threads of a block that routes: whole warps."""
        return -(-self.rows * self.lanes // 32) * 32

    @property
    def sum_threads(self) -> int:
        """Threads of a block that adds partial sums of one output capsule."""
        return max(128 // self.d_out, 1) * self.d_out

    @property
    def sum_shared(self) -> int:
        """Bytes of shared memory of such a block: a number per thread and two vectors."""
        return (self.sum_threads + 2 * self.d_out) * (8 if self.double else 4)

    def _shared(self, tile: int, images: int, stage: int, staged: bool, votes: bool) -> int:
        """Bytes of `Shared` in kernels.cu."""
        batch = self.lanes * images
        pitch = batch if batch < 8 else batch + 4
        weights = stage * self.n_out * self.d_out * self.d_in if staged else 0
        columns = -(-self.n_out * self.d_out // 8) * 8
        elements = -(-weights // 4) * 4 + -(-stage * self.d_in * pitch // 4) * 4
        elements += tile * columns * pitch if votes else 0
        elements += 2 * tile * (self.rows + self.n_out) * pitch
        return elements * (8 if self.double else 4)

    @property
    def shared(self) -> int:
        """Bytes of shared memory of an iteration."""
        return self._shared(self.tile, self.images, self.stage, self.staged, self.product > 0)

    @property
    def back_shared(self) -> int:
        """Bytes of shared memory of the kernel `gradients`."""
        return self._shared(self.back_tile, 1, self.back_tile, self.back_staged, True)

    @property
    def options(self) -> tuple[str, ...]:
        """The macros, as options of the compiler."""
        names = {"n_out": "J", "d_out": "D", "d_in": "K"}
        return ("-std=c++17", *(f"-D{names.get(name, name.upper())}={int(x)}" for name, x in vars(self).items()))


@functools.cache
def plan(sizes: tuple[int, int, int], double: bool, leaky: bool, product: int, many: bool, memory: int) -> Plan | None:
    """Return how to cut the work for sizes (J, D, K) in `memory` bytes of shared memory a block, or None.

    The first of the choices that fits: few lanes only if they must be, weights in shared memory if they can be.
    `many` is whether there are more images than lanes.
    """
    rows = sizes[0] * -(-sizes[1] // 16)
    for lanes in (32, 16, 8, 4, 2, 1):
        if rows * lanes > (512 if lanes > 1 else 1024) or sizes[1] > 1024:
            continue
        # tensor cores take 16 images at a time
        base = Plan(*sizes, double, leaky, 0 if double or lanes < 16 else product, lanes)
        two = (2, 1) if many and not double else (1,)
        routes = (
            Plan(**(vars(base) | {"images": images, "tile": tile, "stage": tile * more, "staged": staged}))
            for staged, images, tile, more in itertools.product((True, False), two, (2, 1), (4, 2, 1))
        )
        back = (
            Plan(**(vars(base) | {"back_tile": tile, "back_staged": staged}))
            for staged, tile in itertools.product((True, False), (2, 1) if double else (4, 2, 1))
        )
        one, other = next((p for p in routes if p.shared <= memory), None), None
        if one is not None:
            other = next((p for p in back if p.back_shared <= memory), None)
        if one is not None and other is not None:
            return Plan(**(vars(one) | {"back_tile": other.back_tile, "back_staged": other.back_staged}))
    return None


@functools.cache
def compiled(device: int, plan: Plan) -> dict[str, Any]:
    """Return the kernels for a plan on one GPU, by name; CuPy compiles them and keeps the result on disk."""
    source = importlib.resources.files("capscore.backends").joinpath("kernels.cu").read_text("utf-8")
    module = cupy.RawModule(code=source, options=plan.options)
    kernels = {name: module.get_function(name) for name in KERNELS}
    for name, kernel in kernels.items():
        if name.startswith("route"):
            kernel.max_dynamic_shared_size_bytes = plan.shared
    kernels["gradients"].max_dynamic_shared_size_bytes = plan.back_shared
    return kernels


def supports(u: Array, weight: Array) -> bool:
    """Whether the kernels take these arrays; else the generic routing does.

    They take float32 and float64, at least one image, and what fits a block: J · ceil(D / 16) ≤ 1024 threads, and
    about J · (D + 4) numbers of shared memory.
    """
    return bool(u.dtype == weight.dtype and u.dtype in (np.float32, np.float64) and u.size and weight.size) and (
        plan(weight.shape[1:], u.dtype == np.float64, False, 0, u.shape[0] > 32, _memory(u)) is not None
    )


def forward(
    u: Array, weight: Array, bias: Array | None, iterations: int, leaky: bool, precision: str = "float32"
) -> tuple[Array, Array]:
    """Route u [B, N, K] by agreement over votes W u; see `capscore.routing.dynamic_routing`.

    Parameters
    ----------
    u, weight, bias : [B, N, K], [N, J, D, K] and [J, D] or None, as `supports` takes them
    iterations, leaky : as in `dynamic_routing`
    precision : "float32" is exact; "tf32" and "bf16" allow votes of float32 arrays to be computed on tensor cores
        from factors rounded so; where the shape does not suit these (or the dtype is float64), votes are exact

    Returns
    -------
    output capsules v [B, J, D], and what `backward` needs of all iterations, [2, R, B, J, D]
    """
    with u.device:  # the current one is where CuPy allocates, compiles and launches
        run = _Run(u, weight, leaky, precision)
        kept = cupy.empty((2, iterations, run.batch, *run.capsule), u.dtype)
        sums, totals = kept[0], kept[1]
        bias = None if bias is None else _ready(bias, u.dtype)
        for r in range(iterations):
            partial = run.route("route_next", totals[r - 1]) if r else run.route("route_first")
            before = totals[r - 1] if 0 < r < iterations - 1 else None  # the last total is v itself
            run.add("squash_sums", partial, bias, before, sums[r], totals[r])
        return totals[iterations - 1], kept


def backward(
    gradient: Array,
    kept: Array,
    u: Array,
    weight: Array,
    bias: Array | None,
    iterations: int,
    leaky: bool,
    precision: str = "float32",
) -> tuple[Array, Array, Array | None]:
    """Return the gradients of u, weight and bias (None without one) for that of v, [B, J, D].

    Through all iterations; `kept` is what `forward` returned beside v for the same arguments. With reduced precision,
    votes are as in `forward`, all other products exact.
    """
    with u.device:
        run = _Run(u, weight, leaky, precision)
        sums, totals = kept[0], kept[1]
        grads = cupy.empty(sums.shape, u.dtype)  # of s, by iteration
        after = cupy.empty((2, *gradient.shape), u.dtype)  # of v: the running sum of the logits' shares, in turns
        partial, before = _ready(gradient, u.dtype)[None], None
        for r in reversed(range(iterations)):
            now = after[r % 2]
            run.add("squash_back", partial, before, sums[r], now, grads[r])
            before = now if r < iterations - 1 else None  # the gradient of v itself is of the last iteration only
            if r:
                partial = run.route("route_back", totals[r - 1], grads[r])
        du, dweight = run.gradients(totals, grads)
        return du, dweight, None if bias is None else grads.sum(axis=(0, 1))


class _Run:
    """The launches for one u and weight."""

    def __init__(self, u: Array, weight: Array, leaky: bool, precision: str) -> None:
        if precision not in PRECISIONS:
            raise ShapeError(f"precision must be one of {', '.join(PRECISIONS)}, not {short(precision)}")
        self.dtype, (self.batch, self.n_in, _), self.capsule = u.dtype, u.shape, weight.shape[1:3]
        double, product = u.dtype == np.float64, PRECISIONS[precision]
        chosen = plan(weight.shape[1:], double, leaky, product, self.batch > 32, _memory(u))
        if chosen is None or not supports(u, weight):
            raise ShapeError(
                f"the CUDA routing kernels do not take {u.dtype} inputs {u.shape} and {weight.dtype} weights "
                f"{weight.shape}: use the generic routing"
            )
        self.plan, self.u, self.weight = chosen, _ready(u, u.dtype), _ready(weight, u.dtype)
        self.kernels = compiled(u.device.id, chosen)

    def route(self, kernel: str, *capsules: Array) -> Array:
        """Return the partial sums [splits, B, J, D] of one iteration."""
        tiles = -(-self.batch // (self.plan.lanes * self.plan.images))
        per_split = _share(self.n_in, -(-BLOCKS // tiles), self.plan.tile)
        splits = -(-self.n_in // per_split)
        partial = cupy.empty((splits, self.batch, *self.capsule), self.dtype)
        sizes = map(np.int32, (self.batch, self.n_in, per_split))
        arguments = (self.u, self.weight, *capsules, partial, *sizes)
        self.kernels[kernel]((tiles * splits,), (self.plan.threads,), arguments, shared_mem=self.plan.shared)
        return partial

    def add(self, kernel: str, partial: Array, *arrays: Array | None) -> None:
        """Add partial sums and go through squash; an array that is None becomes a null pointer."""
        pointers = (np.uintp(0) if x is None else x for x in arrays)
        arguments = (partial, *pointers, np.int32(self.batch), np.int32(len(partial)))
        grid, block = (self.batch * self.capsule[0],), (self.plan.sum_threads,)
        self.kernels[kernel](grid, block, arguments, shared_mem=self.plan.sum_shared)

    def gradients(self, totals: Array, grads: Array) -> tuple[Array, Array]:
        """Return those of u and weight, given those of all s."""
        blocks = -(-self.n_in // self.plan.back_tile)
        per_split = _share(self.batch, BLOCKS // blocks, self.plan.lanes)
        splits = -(-self.batch // per_split)
        du = cupy.empty(self.u.shape, self.dtype)
        dweight = cupy.empty((splits, *self.weight.shape), self.dtype)
        sizes = map(np.int32, (self.batch, self.n_in, len(grads), splits, per_split))
        arguments = (self.u, self.weight, totals, grads, du, dweight, *sizes)
        grid, block = (blocks * splits,), (self.plan.threads,)
        self.kernels["gradients"](grid, block, arguments, shared_mem=self.plan.back_shared)
        return du, dweight[0] if splits == 1 else dweight.sum(axis=0)


def _share(n: int, wanted: int, step: int) -> int:
    """Return how many of n each split takes, a multiple of `step`, for about `wanted` splits."""
    return math.ceil(n / max(wanted, 1) / step) * step


def _memory(u: Array) -> int:
    """Bytes of shared memory that a block may have on the GPU where u lies."""
    return int(u.device.attributes["MaxSharedMemoryPerBlockOptin"])


def _ready(x: Array, dtype: Any) -> Array:
    """Return x with its elements in row-major order from an address of which 16 bytes can be loaded at once."""
    x = cupy.ascontiguousarray(x, dtype=dtype)
    return x.copy() if x.data.ptr % 16 else x
