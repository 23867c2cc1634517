"""What the tests share: the tolerances of `capscore.agree`; the backends; random networks and images."""

from __future__ import annotations

import ctypes
import functools
import http.server
import importlib
import inspect
import math
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import capscore.backends.numpy
from capscore import CapsNetSpec, Conv, Decoder, DenseCaps, DynamicRouting, PrimaryCaps, agree
from capscore.errors import BackendError
from capscore.fast import buffers
from capscore.values import write

FLOAT64, FLOAT32, GRADIENT = agree.TOLERANCE["float64"], agree.TOLERANCE["float32"], agree.SHARE["gradient"]
TOLERANCE = {dtype: agree.TOLERANCE[dtype] for dtype in ("float64", "float32")}  # of backends
EXPORTED = agree.TOLERANCE | {"int8": agree.TOLERANCE["int8 as calibrated"]}  # of files, on images as they were shown

REQUIRED = {name for name in os.environ.get("CAPSCORE_REQUIRE", "").split(",") if name}  # such as "torch,onnx"

settings.register_profile("ci", deadline=None, derandomize=True, max_examples=100, print_blob=True)
settings.register_profile("long", deadline=None, max_examples=1000, print_blob=True)  # --hypothesis-profile=long
settings.load_profile("ci")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by how many they are: what gzip packs holds the second, and two workers would not agree on that."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def cuda_of_cupy() -> bool:
    """Whether there is a CuPy with a GPU."""
    try:
        import cupy

        return bool(cupy.cuda.runtime.getDeviceCount())
    except Exception:  # whatever a driver that is missing makes it raise
        return False


@functools.cache
def cuda_of_torch() -> bool:
    """Whether there is a PyTorch with a GPU."""
    try:
        importlib.import_module("capscore.backends.torch")  # which says how PyTorch is to be loaded
    except ImportError:
        return False
    return bool(sys.modules["torch"].cuda.is_available())


REAL_CUPY = cuda_of_cupy()
if not REAL_CUPY:  # the code of the cupy backend runs all the same
    sys.modules["cupy"] = importlib.import_module("fake_cupy")
    buffers.ON_A_GPU = 1  # so that the small arrays of the tests are cut into blocks there too


def need(module: str, requirement: str) -> ModuleType:
    """Import a module whose library may be absent: a reason to skip, unless CAPSCORE_REQUIRE names it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if requirement in REQUIRED:
            pytest.fail(f"CAPSCORE_REQUIRE names {requirement}: {error}")
        pytest.skip(str(error), allow_module_level=True)


USABLE = {"cupy": lambda: REAL_CUPY, "torch": cuda_of_torch}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what loads OpenVINO last; skip what wants a GPU where there is none."""
    # OpenVINO, once it is loaded, ends the process at a SIGINT: what interrupts a training comes before it.
    items.sort(key=lambda item: item.path.name in OPENVINO)
    skip_without_gpu(items)


OPENVINO = ("test_engines.py", "test_export.py", "test_promises.py", "test_tools.py")


def skip_without_gpu(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` want one that each of the libraries named there can use."""
    for item in items:
        for library in {name for mark in item.iter_markers("gpu") for name in mark.args}:
            if not {"gpu", library} <= REQUIRED and not USABLE[library]():
                item.add_marker(pytest.mark.skip(reason=f"no {library} with a GPU"))


EAGER = ["numpy", "torch", "cupy"]  # they compile nothing, and are `capscore.ops.Writable`
BACKENDS = [*EAGER, "jax"]


@pytest.fixture(scope="session", params=BACKENDS)
def caps(request: pytest.FixtureRequest) -> ModuleType:
    """Each backend in turn."""
    return backend(request.param)


@pytest.fixture(scope="session", params=EAGER)
def eager_caps(request: pytest.FixtureRequest) -> ModuleType:
    """Each backend that compiles nothing, and whose arrays can be written into."""
    return backend(request.param)


@pytest.fixture(scope="session")
def torch_caps() -> ModuleType:
    return backend("torch")


@pytest.fixture(scope="session")
def onnx_export() -> ModuleType:
    export = need("capscore.export.onnx", "onnx")
    need("capscore.export.precision", "onnx").FEW = 1  # type: ignore[attr-defined]  # small arrays are rounded here too
    return export


@pytest.fixture(scope="session")
def runtime() -> ModuleType:
    return need("capscore.export.runtime", "onnx")


CHROMIUM = Path("/usr/lib/chromium")  # Debian's: it brings a Vulkan driver that computes on the CPU, and a loader


@pytest.fixture(scope="session")
def webgpu(runtime: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The provider's name, where it can run: on the driver that VK_DRIVER_FILES names, else on Chromium's."""
    need("onnxruntime_ep_webgpu", "webgpu")
    providers, driver = need("capscore.export.providers", "onnx"), CHROMIUM / "vk_swiftshader_icd.json"
    if driver.exists():
        os.environ.setdefault("VK_DRIVER_FILES", str(driver))
        ctypes.CDLL(str(CHROMIUM / "libvulkan.so.1"), ctypes.RTLD_GLOBAL)  # a system's own is taken where it is loaded
    os.environ["ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"] = "1"
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))  # the driver asks for one
    try:
        if "VK_DRIVER_FILES" not in os.environ:
            raise BackendError(f"no Vulkan driver: apt-get install chromium brings {driver}, or set VK_DRIVER_FILES")
        providers.devices(providers.PROVIDERS["webgpu"])
    except BackendError as error:
        if "webgpu" in REQUIRED:
            pytest.fail(f"CAPSCORE_REQUIRE names webgpu: {error}")
        pytest.skip(str(error))
    return "webgpu"


def backend(name: str) -> ModuleType:
    if name == "cupy" and name in REQUIRED and not REAL_CUPY:
        pytest.fail("CAPSCORE_REQUIRE names cupy, and only its stand-in is here")
    module = need(f"capscore.backends.{name}", name)
    if name == "torch":  # the networks here are so small that a second thread only costs
        sys.modules["torch"].set_num_threads(1)
    if name == "jax":  # and for these, optimising takes longer than running
        sys.modules["jax"].config.update("jax_disable_most_optimizations", True)
    return module


COMPILED = 4  # examples on a backend that compiles every shape it meets: a network takes it half a second


def compiles(caps: ModuleType) -> bool:
    return caps.__name__.endswith("jax")


def whole(caps: ModuleType, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled at once by a backend that would compile each of its ops alone."""
    return sys.modules["jax"].jit(function) if compiles(caps) else function


def given_each(
    examples: int | None = None, /, **strategies: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Like hypothesis's `given`, for a test of the fixture `caps`: fewer examples where each is compiled."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        usual = examples or settings().max_examples
        many, few = (settings(max_examples=n)(given(**strategies)(test)) for n in (usual, COMPILED))

        def run(caps: ModuleType, **others: Any) -> None:
            (few if compiles(caps) else many)(caps=caps, **others)

        run.__signature__ = inspect.signature(many)  # type: ignore[attr-defined]  # pytest learns what `others` are
        return run

    return decorate


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of a loopback server of tmp_path/served."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path / "served"))

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


@contextmanager
def peak_below(limit: int) -> Iterator[None]:
    """Assert that what runs inside never holds more than `limit` bytes beyond what there was."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


SEEDS = st.integers(0, 2**32 - 1)
DTYPES = st.sampled_from(["float64", "float32"])


@st.composite
def specs(draw: st.DrawFn, decoder: bool | None = None, iterations: int = 5) -> CapsNetSpec:
    """A small network of any make: every setting of every layer takes part."""

    def conv(smallest: int) -> dict[str, int]:
        padding = draw(st.integers(0, 2))
        kernel = draw(st.integers(1, min(4, smallest + 2 * padding)))
        return {"kernel": kernel, "stride": draw(st.integers(1, 3)), "padding": padding}

    size = draw(st.integers(1, 3)), draw(st.integers(4, 7)), draw(st.integers(4, 7))
    stem, smallest = [], min(size[1:])
    for _ in range(draw(st.integers(0, 2))):
        how = conv(smallest)
        stem.append(Conv(draw(st.integers(1, 4)), activation=draw(st.sampled_from(["relu", "none"])), **how))
        smallest = (smallest + 2 * how["padding"] - how["kernel"]) // how["stride"] + 1
    primary = PrimaryCaps(draw(st.integers(1, 3)), draw(st.integers(1, 4)), **conv(smallest))
    layer = st.builds(
        DenseCaps,
        count=st.integers(1, 4),
        dim=st.integers(1, 5),
        routing=st.builds(DynamicRouting, iterations=st.integers(1, iterations), leaky=st.booleans()),
        bias=st.booleans(),
    )
    capsules = draw(st.lists(layer, min_size=1, max_size=3))
    hidden = draw(st.lists(st.integers(1, 8), max_size=2))
    wanted = draw(st.booleans()) if decoder is None else decoder
    return CapsNetSpec(size, (*stem, primary, *capsules), Decoder(tuple(hidden)) if wanted else None)


def small_spec(**changes: Any) -> CapsNetSpec:
    """One network with something of everything: colour, padding, stride, two capsule layers, leaky, a decoder."""
    settings: dict[str, Any] = {
        "input": (2, 7, 6),
        "stem": (Conv(4, kernel=3, padding=1),),
        "primary": PrimaryCaps(types=3, dim=4, kernel=3, stride=2),
        "capsules": (DenseCaps(4, dim=5, routing=DynamicRouting(2, leaky=True)), DenseCaps(3, dim=6, bias=False)),
        "decoder": Decoder((8, 9)),
    }
    return CapsNetSpec(**(settings | changes))


# For `fast_conv` with 16 channels as the fewest: the first layer has too few, the second and the primary one are
# transformed.
TRANSFORMED = small_spec(
    input=(2, 12, 11),
    stem=(Conv(16, kernel=3), Conv(18, kernel=3, padding=1)),
    primary=PrimaryCaps(types=3, dim=4, kernel=4, stride=2),
)


def random_params(spec: CapsNetSpec, seed: int = 0, dtype: str = "float64") -> dict[str, np.ndarray]:
    """Parameters under which every layer speaks up: fresh ones leave small networks with capsules near zero.

    Larger ones still would let a routing of five iterations amplify the rounding of float32 by itself.
    """
    rng = np.random.default_rng(seed)

    def spread(name: str, shape: tuple[int, ...]) -> float:
        if name.endswith("bias"):
            return 0.2
        if name.startswith("capsules"):
            return min(shape[1] / math.sqrt(shape[0]), 1.5) / math.sqrt(shape[2])
        return 2 / math.sqrt(math.prod(shape[1:]))

    return {name: rng.normal(0, spread(name, shape), shape).astype(dtype) for name, shape in spec.parameters.items()}


def random_images(spec: CapsNetSpec, batch: int, seed: int = 0, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(seed).random((batch, *spec.input)).astype(dtype)


def plain(spec: CapsNetSpec) -> dict[str, Any]:
    """The spec as the oracle reads it."""
    parts = {name: write(getattr(spec, name)) for name in ("stem", "primary", "capsules", "decoder")}
    return {"input": spec.input} | parts


def close(actual: Any, desired: Any, tolerance: float, what: str = "") -> None:
    """Assert equal shapes and a largest difference of at most `tolerance`, NaN in the same places."""
    assert actual.shape == desired.shape, f"{what}: {actual.shape}, wanted {desired.shape}"
    np.testing.assert_allclose(actual, desired, rtol=0, atol=tolerance, err_msg=what)


def close_gradients(
    actual: Mapping[str, Any], desired: Mapping[str, Any], tolerance: float, each: bool = False
) -> None:
    """Assert that gradients differ by at most `tolerance` of the largest entry of all parameters, or of `each`.

    In float32 the sums over a map of a single bias may cancel to less than their rounding.
    """
    assert list(actual) == list(desired)
    largest = {name: np.abs(g).max() for name, g in desired.items()}
    for name, g in desired.items():
        close(actual[name], g, tolerance * (largest[name] if each else max(largest.values())), name)


NUMPY = capscore.backends.numpy
