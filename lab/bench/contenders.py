"""Who is timed at what: `contenders(device)[what][name](settings)` prepares, and returns what is timed.

A contender is prepared in a process of its own, and imports only what it needs: the textbook network runs in plain
PyTorch, under its default allocator.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

N, J, D, K = 1152, 10, 16, 8  # the paper's routing layer


@dataclass(frozen=True)
class Settings:
    """The sizes of one comparison."""

    batch: int = 128
    preset: str = "mnist"
    threads: int = 2
    device: str = "cpu"
    inputs: int = N  # input capsules of the routing layer
    iterations: int = 3


Run = Callable[[], Any]
Make = Callable[[Settings], Run]


def images(s: Settings) -> Any:
    return np.random.default_rng(0).random((s.batch, 1, 28, 28), np.float32)


def _torch(s: Settings, precision: str = "float32") -> Any:
    """Import PyTorch, after capscore where that is wanted, which forbids tf32; PyTorch itself allows it in places."""
    import torch

    torch.set_num_threads(s.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    return torch


def _done(torch: Any, s: Settings, run: Run, precision: str = "float32") -> Run:
    """On a GPU, run under autocast if that is the precision, and wait."""
    if s.device == "cpu":
        return run

    def timed() -> None:
        with torch.autocast(s.device, torch.bfloat16, enabled=precision == "bf16"):
            run()
        torch.cuda.synchronize()

    return timed


def _cupy_done(run: Run) -> Run:
    import cupy

    def timed() -> None:
        run()
        cupy.cuda.Device().synchronize()

    return timed


def _textbook(s: Settings) -> Any:
    from capscore import PRESETS
    from lab.bench.textbook import CapsNet

    spec: Any = PRESETS[s.preset]
    stem, hidden = spec.stem[0], spec.decoder.hidden if spec.decoder else ()
    return CapsNet(stem.channels, spec.primary.types, stem.kernel, stem.stride, hidden).to(s.device)


# ---------------------------------------------------------------------------------------------------- inference


def textbook_inference(s: Settings, compile: bool = False, precision: str = "float32") -> Run:
    torch = _torch(s, precision)
    net, x = _textbook(s).eval(), torch.from_numpy(images(s)).to(s.device)
    net = torch.compile(net) if compile else net

    def run() -> None:
        with torch.inference_mode():
            net(x)

    return _done(torch, s, run, precision)


def torch_inference(s: Settings, fast_conv: str | None = None, precision: str = "float32") -> Run:
    from capscore import PRESETS
    from capscore.backends import torch as caps

    torch = _torch(s, precision)
    net = caps.CapsNet(PRESETS[s.preset], fast_conv=fast_conv).to(s.device)
    x = torch.from_numpy(images(s)).to(s.device)

    def run() -> None:
        with torch.inference_mode():
            net(x)

    return _done(torch, s, run, precision)


def numpy_inference(s: Settings, fast_conv: str | None = None) -> Run:
    from capscore import PRESETS
    from capscore.backends import numpy as caps

    net, x = caps.CapsNet(PRESETS[s.preset], fast_conv=fast_conv), images(s)
    return lambda: net(x)


def cupy_inference(s: Settings) -> Run:
    import cupy

    from capscore import PRESETS
    from capscore.backends import cupy as caps

    net, x = caps.CapsNet(PRESETS[s.preset]), cupy.asarray(images(s))
    return _cupy_done(lambda: net(x))


def _session(path: Path, s: Settings) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = s.threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def textbook_onnx(s: Settings) -> Run:
    torch = _torch(s)
    x = images(s)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "textbook.onnx"
        torch.onnx.export(_textbook(s).eval(), (torch.from_numpy(x),), path, dynamo=False, input_names=["x"])
        session = _session(path, s)
    return lambda: session.run(None, {"x": x})


def onnx_inference(s: Settings, precision: str = "fp32", fast_conv: str | None = None) -> Run:
    from capscore import PRESETS
    from capscore.backends import numpy as caps
    from capscore.export import onnx

    x = images(s)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        net, outputs = caps.CapsNet(PRESETS[s.preset]), ["lengths", "capsules"]
        shown = np.random.default_rng(1).random((max(32, s.batch), 1, 28, 28)) if precision == "int8" else None
        options: dict[str, Any] = {"precision": precision, "calibration": shown, "fast_conv": fast_conv}
        onnx.export(net, path, outputs=outputs, batch=s.batch, verify=False, **options)
        session = _session(path, s)
    return lambda: session.run(None, {"images": x})


def convolutions_alone(s: Settings, engine: str = "torch", precision: str = "float32") -> Run:
    """The network's two convolutions with their ReLU, nothing else: the limit of a direct convolution."""
    torch = _torch(s, precision)
    net, x = _textbook(s).eval(), torch.from_numpy(images(s)).to(s.device)
    convolutions = torch.nn.Sequential(net.conv, torch.nn.ReLU(), net.primary)
    if engine == "onnx":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "two.onnx"
            torch.onnx.export(convolutions, (x,), path, dynamo=False, input_names=["x"])
            session = _session(path, s)
        return lambda: session.run(None, {"x": x.numpy()})

    def run() -> None:
        with torch.inference_mode():
            convolutions(x)

    return _done(torch, s, run, precision)


# ----------------------------------------------------------------------------------------------------- training


def textbook_training(s: Settings, precision: str = "float32") -> Run:
    torch = _torch(s, precision)
    net, x = _textbook(s), torch.from_numpy(images(s)).to(s.device)
    labels = (torch.arange(s.batch) % 10).to(s.device)
    adam = torch.optim.Adam(net.parameters())

    def run() -> None:
        adam.zero_grad()
        net.loss(x, labels).backward()
        adam.step()

    return _done(torch, s, run, precision)


def training(s: Settings, backend: str = "torch", fast_conv: str | None = None, precision: str = "float32") -> Run:
    import importlib

    from capscore import PRESETS

    caps = importlib.import_module(f"capscore.backends.{backend}")
    options: dict[str, Any] = {}
    if backend == "torch":
        _torch(s, precision)
        options = {"device": s.device, "amp": precision == "bf16"}
    learner = caps.Learner(caps.CapsNet(PRESETS[s.preset], fast_conv=fast_conv), **options)
    x, t = images(s), np.eye(10)[np.arange(s.batch) % 10]
    if s.device != "cpu":
        x = caps.asarray(x, next(iter(learner.net.params.values())))  # as `Learner.to_device` keeps them
    return lambda: float(learner.step(x, t, 1e-3)[0])  # read, for a GPU to have done it


# ---------------------------------------------------------------------------------------------- the routing layer


def _layer(s: Settings) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    u = rng.standard_normal((s.batch, s.inputs, K)).astype(np.float32) * 0.2
    weight = rng.standard_normal((s.inputs, J, D, K)).astype(np.float32) * 0.1
    return u, weight, rng.standard_normal((s.batch, J, D)).astype(np.float32)


def textbook_routing(s: Settings, backward: bool = False, compile: bool = False) -> Run:
    torch = _torch(s)
    from lab.bench.textbook import Routing

    u, _, g = (torch.from_numpy(x).to(s.device) for x in _layer(s))
    layer = Routing(s.inputs, iterations=s.iterations).to(s.device)
    layer = torch.compile(layer) if compile else layer

    def forward() -> None:
        with torch.no_grad():
            layer(u)

    def forward_and_backward() -> None:
        layer(u.clone().requires_grad_()).backward(g)

    return _done(torch, s, forward_and_backward if backward else forward)


def einsum_routing(s: Settings, library: str = "numpy") -> Run:
    """Votes in memory, every product an einsum."""
    xp: Any = np if library == "numpy" else _torch(s)
    u, weight, _ = (x if library == "numpy" else xp.from_numpy(x).to(s.device) for x in _layer(s))

    def softmax(b: Any) -> Any:
        e = xp.exp(b - b.max(2, keepdims=True) if library == "numpy" else b - b.amax(2, True))
        return e / e.sum(2)[:, :, None]

    def run() -> None:
        u_hat = xp.einsum("bnk,njdk->bnjd", u, weight)
        b = xp.zeros(u_hat.shape[:3], dtype=u.dtype)
        for i in range(s.iterations):
            x = xp.einsum("bnj,bnjd->bjd", softmax(b), u_hat)
            n2 = (x * x).sum(-1)[:, :, None]
            v = n2 / (1 + n2) * x / (n2**0.5 + 1e-8)
            if i + 1 < s.iterations:
                b = b + xp.einsum("bnjd,bjd->bnj", u_hat, v)

    return run if library == "numpy" else _done(xp, s, run)


def routing(s: Settings, backend: str = "torch", backward: bool = False, precision: str = "float32") -> Run:
    import importlib

    from capscore.routing import DynamicRouting

    caps: Any = importlib.import_module(f"capscore.backends.{backend}")
    how = DynamicRouting(s.iterations)
    route = caps.FUSED[DynamicRouting]
    if backend == "torch":
        torch = _torch(s, precision)
        u, weight, g = (torch.from_numpy(x).to(s.device) for x in _layer(s))
        leaf = weight.requires_grad_()

        def forward() -> None:
            with torch.no_grad():
                route(how, u, weight, None)

        def forward_and_backward() -> None:
            leaf.grad = None
            route(how, u.clone().requires_grad_(), weight, None).backward(g)

        return _done(torch, s, forward_and_backward if backward else forward, precision)
    u, weight, g = (caps.asarray(x) for x in _layer(s))

    def own_gradient() -> None:
        _, kept = route.forward(how, u, weight, None)
        route.backward(how, g, kept, u, weight, None)

    run = own_gradient if backward else lambda: route(how, u, weight, None)
    return _cupy_done(run) if backend == "cupy" else run


# ------------------------------------------------------------------------------------ convolution, and the machine


def convolution(s: Settings, backend: str = "torch", fast_conv: str | None = None, backward: bool = False) -> Run:
    """The primary convolution, 9×9 stride 2 on [B, 256, 20, 20]."""
    import importlib

    from capscore.fast.conv import with_tiles

    caps: Any = importlib.import_module(f"capscore.backends.{backend}")
    rng = np.random.default_rng(0)
    x = rng.random((s.batch, 20, 20, 256), np.float32).transpose(0, 3, 1, 2)
    w, b = rng.standard_normal((256, 256, 9, 9)).astype(np.float32) * 0.02, np.zeros(256, np.float32)
    x, w, b = caps.asarray(x), caps.asarray(w), caps.asarray(b)
    ops = with_tiles(caps, fast_conv)
    if not backward:
        return lambda: ops.conv2d(x, w, b, (2, 2), (0, 0))
    torch = _torch(s)
    w.requires_grad_()

    def forward_and_backward() -> None:
        w.grad = None
        ops.conv2d(x.clone().requires_grad_(), w, b, (2, 2), (0, 0)).sum().backward()

    return _done(torch, s, forward_and_backward)


def gemm(s: Settings, library: str = "torch", precision: str = "float32") -> Run:
    """What the primary convolution multiplies, as one matrix product."""
    rng = np.random.default_rng(0)
    a, b = rng.random((s.batch * 36, 20736), np.float32), rng.random((20736, 256), np.float32)
    if library == "numpy":
        return lambda: a @ b
    torch = _torch(s, precision)
    ta, tb = torch.from_numpy(a).to(s.device), torch.from_numpy(b).to(s.device)
    return _done(torch, s, lambda: ta @ tb, precision)


def copy(s: Settings) -> Run:
    """128 MB to another place."""
    torch = _torch(s)
    a = torch.zeros(32 << 20, device=s.device)
    b = torch.zeros_like(a)
    return _done(torch, s, lambda: b.copy_(a))


TILES: dict[str, dict[str, Any]] = {"": {}, " 3x3": {"fast_conv": "3x3"}, " 6x6": {"fast_conv": "6x6"}}
CONTENDERS: dict[str, dict[str, Make]] = {
    "inference": {
        "textbook, PyTorch": textbook_inference,
        "textbook, ONNX Runtime": textbook_onnx,
        "convolutions alone, PyTorch": convolutions_alone,
        "convolutions alone, ONNX Runtime": partial(convolutions_alone, engine="onnx"),
        **{f"torch{name}": partial(torch_inference, **how) for name, how in TILES.items()},
        **{f"numpy{name}": partial(numpy_inference, **how) for name, how in TILES.items()},
        **{f"ONNX Runtime{name}": partial(onnx_inference, **how) for name, how in TILES.items()},
        "ONNX Runtime int8": partial(onnx_inference, precision="int8"),
    },
    "training": {
        "textbook, PyTorch": textbook_training,
        **{f"torch{name}": partial(training, **how) for name, how in TILES.items()},
        **{f"numpy{name}": partial(training, backend="numpy", **how) for name, how in TILES.items()},
    },
    "routing": {
        "textbook, PyTorch": textbook_routing,
        "einsum, PyTorch": partial(einsum_routing, library="torch"),
        "einsum, NumPy": einsum_routing,
        "torch": routing,
        "numpy": partial(routing, backend="numpy"),
    },
    "routing and gradient": {
        "textbook, PyTorch": partial(textbook_routing, backward=True),
        "torch": partial(routing, backward=True),
        "numpy": partial(routing, backend="numpy", backward=True),
    },
    "convolution": {
        **{f"torch{name}": partial(convolution, **how) for name, how in TILES.items()},
        **{f"numpy{name}": partial(convolution, backend="numpy", **how) for name, how in TILES.items()},
    },
    "convolution and gradient": {
        f"torch{name}": partial(convolution, backward=True, **how) for name, how in TILES.items()
    },
    "machine": {"matrix product, PyTorch": gemm, "matrix product, NumPy": partial(gemm, library="numpy"), "copy": copy},
}
PRECISIONS: dict[str, dict[str, Any]] = {"": {}, ", tf32": {"precision": "tf32"}, ", bf16": {"precision": "bf16"}}
ON_A_GPU: dict[str, dict[str, Make]] = {
    "inference": {
        **{f"textbook, PyTorch{name}": partial(textbook_inference, **how) for name, how in PRECISIONS.items()},
        "textbook, compiled": partial(textbook_inference, compile=True),
        **{f"convolutions alone{name}": partial(convolutions_alone, **how) for name, how in PRECISIONS.items()},
        **{f"torch{name}": partial(torch_inference, **how) for name, how in PRECISIONS.items()},
        "cupy": cupy_inference,
    },
    "training": {
        **{f"textbook, PyTorch{name}": partial(textbook_training, **how) for name, how in PRECISIONS.items()},
        **{f"torch{name}": partial(training, **how) for name, how in PRECISIONS.items()},
        "cupy": partial(training, backend="cupy"),
    },
    "routing": {
        "textbook, PyTorch": textbook_routing,
        "textbook, compiled": partial(textbook_routing, compile=True),
        **{f"torch{name}": partial(routing, **how) for name, how in PRECISIONS.items()},
        "cupy": partial(routing, backend="cupy"),
    },
    "routing and gradient": {
        "textbook, PyTorch": partial(textbook_routing, backward=True),
        "textbook, compiled": partial(textbook_routing, backward=True, compile=True),
        **{f"torch{name}": partial(routing, backward=True, **how) for name, how in PRECISIONS.items()},
        "cupy": partial(routing, backend="cupy", backward=True),
    },
    "machine": {**{f"matrix product{name}": partial(gemm, **how) for name, how in PRECISIONS.items()}, "copy": copy},
}


def contenders(device: str) -> dict[str, dict[str, Make]]:
    """Return who is timed on a device, at what."""
    return CONTENDERS if device == "cpu" else ON_A_GPU
