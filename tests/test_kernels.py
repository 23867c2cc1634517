"""Fused routing kernels against the generic routing: CUDA C++ on the CPU, Triton interpreted, and both on a GPU.

Triton decides when it is imported whether it interprets, so its tests run in a pytest of their own.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cuda_on_cpu
import numpy as np
import pytest
from conftest import DTYPES, FLOAT64, GRADIENT, NUMPY, SEEDS, TOLERANCE, close, close_gradients, need
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from capscore.agree import SHARE
from capscore.errors import ShapeError
from capscore.grad import value_and_gradients
from capscore.routing import LinearVotes, dynamic_routing

BITS = {"tf32": 11, "bf16": 8}  # of the factors of votes in reduced precision
REDUCED = {precision: SHARE[precision] for precision in ("tf32", "bf16")}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),  # a default of the next Triton
    pytest.mark.filterwarnings("ignore:All-NaN slice", "ignore:invalid value encountered"),  # from its interpreter
]

on_a_gpu = [
    pytest.param("cupy", marks=pytest.mark.gpu("cupy")),
    pytest.param("triton", marks=pytest.mark.gpu("torch")),
]
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="the interpreter is here for its own tests")


class Library(NamedTuple):
    """One of the two modules of kernels, and how arrays get to its device and back."""

    kernels: ModuleType
    put: Callable[[np.ndarray], Any]
    get: Callable[[Any], np.ndarray]


@pytest.fixture(scope="module", params=["interpreter"] if INTERPRETED else ["cuda_on_cpu", *on_a_gpu])
def library(request: pytest.FixtureRequest) -> Iterator[Library]:
    if request.param == "cuda_on_cpu":
        if shutil.which("g++") is None:
            pytest.skip("no g++")
        kernels = importlib.import_module("capscore.backends._cupy_kernels")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "cupy", cuda_on_cpu)
            patch.setattr(cuda_on_cpu.cuda.Device, "attributes", cuda_on_cpu.ATTRIBUTES)
            patch.setattr(kernels, "compiled", functools.cache(kernels.compiled.__wrapped__))
            yield Library(kernels, cuda_on_cpu.asarray, lambda x: x.get())
    elif request.param == "cupy":
        cupy = need("cupy", "cupy")
        yield Library(importlib.import_module("capscore.backends._cupy_kernels"), cupy.asarray, cupy.asnumpy)
    else:
        torch = need("torch", "torch")
        need("triton", "torch")
        device = "cpu" if INTERPRETED else "cuda"
        kernels = importlib.import_module("capscore.backends._torch_kernels")
        yield Library(kernels, lambda x: torch.from_numpy(x).to(device), lambda x: x.cpu().numpy())


class Case(NamedTuple):
    """What is routed, on the host: u [B, N, K], weight [N, J, D, K], bias [J, D] or None, a gradient [B, J, D]."""

    u: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    gradient: np.ndarray
    iterations: int = 3
    leaky: bool = False
    blocks: int = 264  # that the kernels are to be cut into


def case(
    sizes: tuple[int, int, int, int, int],
    bias: bool = True,
    dtype: str = "float64",
    seed: int = 0,
    iterations: int = 3,
    leaky: bool = False,
    blocks: int = 264,
) -> Case:
    """Random arrays for B images, N → J capsules of K → D dimensions, with votes that make couplings differ."""
    b, n, j, d, k = sizes
    rng = np.random.default_rng(seed)
    spread = min(j / n**0.5, 1.5) / d**0.5
    shapes = [((b, n, k), 1.0), ((n, j, d, k), spread), ((j, d), 0.2), ((b, j, d), 1.0)]
    u, weight, offset, gradient = (rng.normal(0, size, shape).astype(dtype) for shape, size in shapes)
    return Case(u, weight, offset if bias else None, gradient, iterations, leaky, blocks)


def generic(x: Case) -> dict[str, np.ndarray]:
    """The capsules, and the gradients of Σ gradient · v, by the generic routing on the tape in float64."""
    arrays = {"u": x.u, "weight": x.weight} | ({} if x.bias is None else {"bias": x.bias})
    found = {}

    def loss(ops: Any, p: dict[str, Any]) -> Any:
        votes = LinearVotes(ops, p["u"], p["weight"], p.get("bias"), x.weight.shape)
        v = dynamic_routing(ops, votes, x.iterations, x.leaky)
        found["v"] = v.value
        return ops.sum(v * ops.asarray(x.gradient.astype("float64")), (0, 1, 2))

    _, gradients = value_and_gradients(NUMPY, loss, {name: a.astype("float64") for name, a in arrays.items()})
    return found | gradients


def fused(library: Library, x: Case, precision: str = "float32") -> dict[str, np.ndarray]:
    """The same by the kernels."""
    kernels, put, get = library
    u, weight, gradient = map(put, (x.u, x.weight, x.gradient))
    bias = None if x.bias is None else put(x.bias)
    assert kernels.supports(u, weight)
    how = (u, weight, bias, x.iterations, x.leaky, precision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "BLOCKS", x.blocks)
        v, kept = kernels.forward(*how)
        gradients = kernels.backward(gradient, kept, *how)
    assert (gradients[2] is None) == (bias is None)
    names = ("v", "u", "weight", "bias")
    return {name: get(a) for name, a in zip(names, (v, *gradients), strict=True) if a is not None}


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Assert equal bits."""
    assert list(found) == list(wanted)
    for name, a in wanted.items():
        np.testing.assert_array_equal(found[name], a, err_msg=name)


def agrees(library: Library, x: Case) -> None:
    """Assert that the kernels do what the generic routing does, whatever order threads run in."""
    found, wanted = fused(library, x), generic(x)
    assert all(a.dtype == x.u.dtype for a in found.values())
    if library.put is cuda_on_cpu.asarray:
        cuda_on_cpu.backwards = True
        try:
            same(fused(library, x), found)
        finally:
            cuda_on_cpu.backwards = False
            cuda_on_cpu.allocated.clear()
    close(found.pop("v"), wanted.pop("v"), TOLERANCE[x.u.dtype.name], "v")
    close_gradients(found, wanted, FLOAT64 if x.u.dtype == "float64" else GRADIENT, each=True)


SIZES = st.tuples(
    st.sampled_from([1, 2, 3, 17 if INTERPRETED else 33]),
    st.integers(1, 9),
    st.integers(1, 5),
    st.sampled_from([1, 3, 4, 18]),
    st.integers(1, 9),
)


@settings(max_examples=3 if INTERPRETED else 8, phases=[Phase.generate])  # shrinking would take minutes
@given(
    sizes=SIZES,
    bias=st.booleans(),
    dtype=DTYPES,
    seed=SEEDS,
    iterations=st.sampled_from([1, 2, 3, 5]),
    leaky=st.booleans(),
    blocks=st.sampled_from([1, 4, 264]),
)
def test_kernels_are_the_generic_routing(library: Library, **settings: Any) -> None:
    agrees(library, case(**settings))


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(case((1, 1, 1, 1, 1)), id="one of all"),
        pytest.param(case((1, 21, 2, 3, 2), blocks=2), id="more capsules than are loaded at once"),
        pytest.param(case((35, 2, 4, 5, 4), dtype="float32", leaky=True), id="more images than a tile"),
        pytest.param(case((2, 3, 33, 4, 12), dtype="float32"), id="more output capsules than a warp"),
        pytest.param(case((3, 2, 3, 33, 7), leaky=True, bias=False), id="dimensions in unequal chunks"),
    ],
)
def test_at_the_edges_of_tiles(library: Library, x: Case) -> None:
    agrees(library, x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [0, 1e-20, 1e20])
def test_inputs_of_any_size(library: Library, dtype: str, size: float) -> None:
    x = case((2, 5, 3, 4, 3), dtype=dtype, leaky=True, bias=False)
    x = x._replace(u=x.u * np.asarray(size, dtype))
    found, wanted = fused(library, x), generic(x)
    for name, g in wanted.items():
        tolerance = TOLERANCE[dtype] if name == "v" else (FLOAT64 if dtype == "float64" else GRADIENT)
        close(found[name], g, tolerance * max(1, np.abs(g).max()), name)


@pytest.mark.parametrize("leaky", [False, True])
def test_an_image_of_nan_stays_alone(library: Library, leaky: bool) -> None:
    x = case((4, 5, 3, 4, 3), leaky=leaky)
    wanted = fused(library, x)
    x.u[1, 2, 0] = np.nan
    found = fused(library, x)
    for name in ("v", "u"):
        assert np.isnan(found[name][1]).all()
        np.testing.assert_array_equal(np.delete(found[name], 1, 0), np.delete(wanted[name], 1, 0))


def rounded(a: np.ndarray, bits: int) -> np.ndarray:
    """The nearest numbers of so many significant bits."""
    mantissa, exponent = np.frexp(a)
    return np.ldexp(np.sign(mantissa) * np.floor(np.abs(mantissa) * 2**bits + 0.5), exponent - bits).astype(a.dtype)


@pytest.mark.parametrize("precision", BITS)
def test_reduced_precision(library: Library, precision: str) -> None:
    if INTERPRETED and precision == "bf16":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 as integers")
    batch, n_in = (2, 3) if INTERPRETED else (34, 21)  # more capsules than are loaded at once, and than make a tile
    x = case((batch, n_in, 3, 5, 11), dtype="float32", leaky=True, blocks=1)  # 11 is more than a tensor core's depth
    factors = {name: rounded(getattr(x, name), BITS[precision]) for name in ("u", "weight")}
    found, wanted = fused(library, x, precision), generic(x if INTERPRETED else x._replace(**factors))
    for name, a in wanted.items():
        close(found[name], a, REDUCED[precision] * np.abs(a).max(), name)
    if hasattr(library.kernels, "cupy"):  # how Triton rounds is its own affair
        close(found["v"], wanted["v"], TOLERANCE["float32"], "v")
    double = x._replace(**{name: getattr(x, name).astype("float64") for name in ("u", "weight", "bias", "gradient")})
    same(fused(library, double, precision), fused(library, double))


def test_what_the_kernels_do_not_take(library: Library) -> None:
    kernels, put, _ = library
    u, weight = put(np.ones((2, 1, 3))), put(np.ones((1, 2, 4, 3)))
    with pytest.raises(ShapeError, match=r"precision must be one of float32, tf32, bf16, not 'fp8'"):
        kernels.forward(u, weight, None, 1, False, "fp8")
    for other, w in (
        (put(np.ones((2, 1, 3), "float32")), weight),
        (put(np.ones((2, 1, 3), "int64")), put(np.ones((1, 2, 4, 3), "int64"))),
        (put(np.ones((0, 1, 3))), weight),
        (put(np.ones((2, 1, 3))), put(np.ones((1, 2000, 20, 3)))),
    ):
        assert not kernels.supports(other, w)
        with pytest.raises(ShapeError, match="use the generic routing"):
            kernels.forward(other, w, None, 1, False)


@not_interpreted
def test_the_cupy_backend_routes_in_the_precision_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from capscore.routing import DynamicRouting

    caps = importlib.import_module("capscore.backends.cupy")
    kernels, told = importlib.import_module("capscore.backends._cupy_kernels"), []
    monkeypatch.setattr(kernels, "supports", lambda *_: True)
    for name, at in (("forward", 5), ("backward", 7)):
        monkeypatch.setattr(kernels, name, lambda *args, at=at: told.append(args[at]) or (None, None))
    route, routing = caps.FUSED[DynamicRouting], DynamicRouting(3)
    for precision in ("float32", "bf16"):
        monkeypatch.setattr(route, "precision", precision)
        route(routing, None, None, None)
        route.forward(routing, None, None, None)
        route.backward(routing, None, None, None, None, None)
    assert told == ["float32"] * 3 + ["bf16"] * 3


def test_arrays_in_another_order_or_at_an_odd_address(library: Library) -> None:
    kernels, put, get = library
    x = case((2, 3, 4, 4, 4), dtype="float32")
    flat = put(np.concatenate([np.zeros(1, "float32"), x.u.ravel()]))
    turned = put(np.ascontiguousarray(x.weight.T))
    weight = turned.transpose((3, 2, 1, 0)) if hasattr(turned, "get") else turned.permute(3, 2, 1, 0)
    found, _ = kernels.forward(flat[1:].reshape(x.u.shape), weight, put(x.bias), 3, False)
    np.testing.assert_array_equal(get(found), fused(library, x)["v"])


@not_interpreted
def test_arrays_on_another_gpu_than_the_current_one(library: Library) -> None:
    kernels, put, _ = library
    if not hasattr(kernels, "cupy"):
        pytest.skip("PyTorch's tensors know where they are")
    if library.put is not cuda_on_cpu.asarray and kernels.cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU")
    here, x = kernels.cupy.cuda.Device(), case((3, 5, 4, 4, 4), dtype="float32")
    with kernels.cupy.cuda.Device(1) as there:
        u, weight, bias, gradient = map(put, (x.u, x.weight, x.bias, x.gradient))
    how = (u, weight, bias, x.iterations, x.leaky)
    v, kept = kernels.forward(*how)
    found = (v, *kernels.backward(gradient, kept, *how))
    assert here == kernels.cupy.cuda.Device() != there
    for name, array in zip(("v", "u", "weight", "bias"), found, strict=True):
        assert array.device == there, name
        np.testing.assert_array_equal(array.get(), fused(library, x)[name], err_msg=name)


@pytest.mark.skipif(INTERPRETED, reason="of CUDA C++")
@pytest.mark.parametrize("sizes", [(10, 16, 8), (128, 64, 64), (1, 1, 1), (128, 16, 8), (32, 48, 13), (3, 500, 2)])
@pytest.mark.parametrize("memory", [64 * 1024, 232448])
def test_plans_of_cuda_fit_the_device(sizes: tuple[int, int, int], memory: int) -> None:
    kernels = importlib.import_module("capscore.backends._cupy_kernels")
    for double in (False, True):
        plan = kernels.plan(sizes, double, False, 1, True, memory)
        if plan is None:
            assert (memory, double) == (64 * 1024, True) or sizes == (128, 64, 64)
            continue
        assert max(plan.shared, plan.back_shared, plan.sum_shared) <= memory
        assert plan.sum_shared <= 48 * 1024  # what a kernel may have without asking
        assert plan.threads <= 1024
        assert plan.sum_threads <= 1024
        assert not plan.product or plan.lanes >= 16


@not_interpreted
def test_the_compiler_may_not_move_what_a_warp_does_together() -> None:
    source = Path(importlib.import_module("capscore.backends._cupy_kernels").__file__).with_name("kernels.cu")
    statements = re.findall(r'\basm\b([^"]*)"(\S+)', source.read_text())
    together = [how for how, instruction in statements if ".sync" in instruction]
    assert len(together) == 2
    assert all("volatile" in how for how in together)


@not_interpreted
@pytest.mark.parametrize(("double", "product"), [(False, 0), (False, 1), (False, 2), (True, 0)])
def test_nvcc_compiles_the_source_without_a_warning(double: bool, product: int, tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    kernels = importlib.import_module("capscore.backends._cupy_kernels")
    options = kernels.plan((10, 16, 8), double, True, product, True, 232448).options
    source = Path(kernels.__file__).with_name("kernels.cu")
    command = ["nvcc", "-arch=sm_90", "--cubin", "-Werror", "all-warnings", *options, "-o", tmp_path / "a", source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@not_interpreted
@pytest.mark.parametrize(
    ("sizes", "double", "precision"),
    [
        ((10, 16, 8), False, "float32"),
        ((10, 16, 8), False, "bf16"),
        ((10, 16, 8), True, "float32"),
        ((64, 16, 16), False, "float32"),
    ],
)
def test_triton_compiles_its_kernels_for_hopper(
    sizes: tuple[int, int, int], double: bool, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("torch", "torch")
    triton = need("triton", "triton")
    backends, compiler = need("triton.backends.compiler", "triton"), need("triton.compiler", "triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = importlib.import_module("capscore.backends._torch_kernels")
    plan = kernels.plan(*sizes, double, precision)
    common = {"BATCH": plan.batch, "PRODUCT": plan.product, "LEAKY": 1}
    back = {"BATCH": plan.back_batch, "PRODUCT": plan.product, "BACK_PRODUCT": plan.back_product, "LEAKY": 1}
    vectors = {"D": sizes[1], "DP": plan.shape["DP"], "ROWS": kernels.ROWS, "BEFORE": True}
    kernels_of = [
        (kernels._route, plan.shape | common | {"FIRST": False, "BACK": True}, plan.warps),
        (kernels._gradients, plan.back_shape | back, plan.back_warps),
    ]
    if double:
        kernels_of += [
            (kernels._route, plan.shape | common | {"FIRST": True, "BACK": False}, plan.warps),
            (kernels._squash_sums, vectors | {"J": sizes[0], "BIAS": True}, 4),
            (kernels._squash_back, vectors, 4),
        ]
    for kernel, constants, warps in kernels_of:
        numbers = dict.fromkeys(("images", "n_in", "per_split", "splits", "iterations"), "i32")
        kinds = numbers | dict.fromkeys(constants, "constexpr")
        signature = {name: kinds.get(name, "*fp64" if double else "*fp32") for name in kernel.arg_names}
        values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        target = backends.GPUTarget("cuda", 90, 32)
        made = triton.compile(compiler.ASTSource(kernel, signature, values), target, {"num_warps": warps})
        assert made.asm["cubin"]
        assert made.metadata.shared <= 101376  # of the smallest of today's GPUs
        if precision == "float32":
            assert "tf32" not in made.asm["ptx"]  # as some versions make of sums of products, unasked
        if kernel is kernels._route:
            assert ("mma.sync" in made.asm["ptx"]) == (precision != "float32")


@not_interpreted
def test_kernels_in_tritons_interpreter() -> None:
    need("triton", "triton")
    if need("torch", "torch").cuda.is_available():
        pytest.skip("a GPU runs them")  # and an interpreter may not go with every NumPy
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- Only on a GPU


MNIST = (1024, 1152, 10, 16, 8)


@functools.cache
def large(leaky: bool) -> tuple[Case, dict[str, np.ndarray]]:
    x = case(MNIST, dtype="float32", leaky=leaky)
    return x, generic(x)


@not_interpreted
@pytest.mark.gpu
@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_mnists_network_at_batch_1024(library: Library, precision: str, leaky: bool) -> None:
    if library.put is cuda_on_cpu.asarray:
        pytest.skip("the stand-in would take an hour")
    x, wanted = large(leaky)
    found = fused(library, x, precision)
    for name, a in wanted.items():
        close(found[name], a, REDUCED.get(precision, GRADIENT) * np.abs(a).max(), name)
    same(fused(library, x, precision), found)  # the same bits, run after run


@not_interpreted
@pytest.mark.gpu("torch")
def test_a_cuda_graph_captures_forward_and_backward() -> None:
    torch = need("torch", "torch")
    need("triton", "triton")
    kernels = importlib.import_module("capscore.backends._torch_kernels")
    x, y = (case((8, 40, 5, 6, 8), dtype="float32", seed=seed) for seed in (0, 1))
    u, weight, bias, gradient = (torch.from_numpy(a).cuda() for a in (x.u, x.weight, x.bias, x.gradient))

    def run() -> Any:
        v, kept = kernels.forward(u, weight, bias, 3, False)
        return v, *kernels.backward(gradient, kept, u, weight, bias, 3, False)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    u.copy_(torch.from_numpy(y.u))
    graph.replay()
    for found, wanted in zip(captured, run(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
