"""Does a model compute the same everywhere? Every backend at hand and ONNX Runtime against NumPy in float64."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import backend, backend_names
from .errors import BackendError
from .model import Output
from .modelfile import Model
from .ops import to_host

TOLERANCE = {"float64": 1e-10, "float32": 2e-6}


@dataclass(frozen=True)
class Row:
    """The largest absolute differences of one engine from the reference; None where it has no such output."""

    engine: str
    dtype: str
    lengths: float
    capsules: float
    reconstruction: float | None
    allowed: float

    @property
    def agrees(self) -> bool:
        """Whether all differences are at most the allowed one; NaN is not."""
        found = [self.lengths, self.capsules, *([] if self.reconstruction is None else [self.reconstruction])]
        return all(difference <= self.allowed for difference in found)


def available_backends() -> Iterator[tuple[str, ModuleType]]:
    """Yield the backends whose libraries are installed and work here."""
    for name in backend_names():
        try:
            module = backend(name)
            module.to_numpy(module.asarray(np.zeros(1)))
        except (BackendError, ImportError, RuntimeError):  # CuPy without a GPU is a RuntimeError
            continue
        yield name, module


def verify(model: Model, images: NDArray[Any] | None = None, seed: int = 0) -> list[Row]:
    """Run a model on every backend at hand, in both precisions, and exported on ONNX Runtime; return what differs.

    `images` [B, C, H, W] in [0, 1] are added to a black image, a white one and four of uniform noise. Allowed is the
    tolerance of the dtype, or four times what float32 costs NumPy itself where that is more (large weights).
    """
    noise = np.random.default_rng(seed).random((4, *model.spec.input))
    x = np.concatenate([np.zeros((1, *model.spec.input)), np.ones((1, *model.spec.input)), noise])
    if images is not None:
        x = np.concatenate([x, images])
    runs = {
        (name, dtype): _run(module.CapsNet(model.spec, model.params, dtype=dtype), x)
        for name, module in available_backends()
        for dtype in TOLERANCE
    }
    truth = runs["numpy", "float64"]
    cost = _row("numpy", "float32", runs["numpy", "float32"], truth, 0.0)
    costs = [cost.lengths, cost.capsules, cost.reconstruction or 0.0]
    allowed = TOLERANCE | {"float32": max(TOLERANCE["float32"], 4 * max(costs))}
    rows = [_row(name, dtype, out, truth, allowed[dtype]) for (name, dtype), out in runs.items()]
    try:
        from .export import onnx, runtime
    except BackendError:
        return rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.export(backend("numpy").CapsNet(model.spec, model.params), path, verify=False)  # the row says it
        rows.append(_row("ONNX Runtime", "float32", runtime.Session(path, "cpu")(x), truth, allowed["float32"]))
    return rows


def _run(net: Any, x: NDArray[Any]) -> Output[Any]:
    out: Output[Any] = net(x)
    if net.spec.decoder is None:
        return out
    return out._replace(reconstruction=net.reconstruct(out.capsules, to_host(out.scores).argmax(1)))


def _row(engine: str, dtype: str, out: Output[Any], truth: Output[Any], allowed: float) -> Row:
    lengths, capsules = to_host(out.lengths), to_host(out.capsules)
    drawn = None
    if truth.reconstruction is not None:
        # Rounding may choose another of two equal scores to draw: that is no error of the drawing.
        same = to_host(out.scores).argmax(1) == to_host(truth.scores).argmax(1)
        drawn = _largest(to_host(out.reconstruction)[same], truth.reconstruction[same])
    return Row(engine, dtype, _largest(lengths, truth.lengths), _largest(capsules, truth.capsules), drawn, allowed)


def _largest(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(a - b).max(initial=0.0))
