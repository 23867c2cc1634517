"""Proof of an export: the graph in ONNX Runtime against the network in NumPy with float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from capscore.backends import numpy as reference
from capscore.errors import BackendError, ModelFileError
from capscore.ops import to_host

try:
    import onnxruntime
except ModuleNotFoundError as error:
    raise BackendError(
        "verifying an export needs ONNX Runtime: pip install 'capscore[onnx]', or export with verify=False"
    ) from error

# The largest absolute difference of lengths, capsules, couplings and pixels that an export may show on any input;
# those of the reduced precisions allow for saturated noise, which is harder than real images. Where float32 costs
# NumPy itself more on the same images (large weights, many iterations), four times that is allowed. Pixels may differ
# by as much more as the difference of the capsules changes them: trained decoders amplify it twentyfold.
TOLERANCE = {"fp32": 2e-6, "fp16": 5e-3, "int8": 0.2}
LARGE_TILES = 2e-5  # of fp32 with 6×6 tiles, whose transforms round more: see `capscore.fast.cook_toom`
BATCHES = (1, 2, 7)


def hard_images(shape: tuple[int, ...], batch: int, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """Yield batches [batch, *shape] of bytes / 255: black, white, noise, and noise of black and white alone."""
    rng = np.random.default_rng(seed)
    size = (batch, *shape)
    yield np.zeros(size)
    yield np.ones(size)
    yield rng.integers(0, 256, size) / 255
    yield rng.integers(0, 2, size).astype(np.float64)


def check(
    net: Any,
    model: onnx.ModelProto,
    plain: onnx.ModelProto,
    precision: str,
    examples: Any = None,
    fast_conv: str | None = None,
) -> dict[str, float]:
    """Return the largest difference of every output, or raise ModelFileError naming the first node that differs.

    `plain` is the same graph in float32, whose nodes say what each value should be. `examples` [N, C, H, W] in
    [0, 1] are real images that are tried beside the made ones.
    """
    truth, single = (reference.CapsNet(net.spec, net.params, dtype=dtype) for dtype in ("float64", "float32"))
    session = _session(model, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    (taken,) = model.graph.input
    fixed = taken.type.tensor_type.shape.dim[0].dim_value
    names = [output.name for output in model.graph.output]
    tolerance = LARGE_TILES if fast_conv == "6x6" else TOLERANCE[precision]
    found: dict[str, float] = {}
    for batch in (fixed,) if fixed else BATCHES:
        real = [] if examples is None or len(examples) < batch else [np.round(to_host(examples[:batch]) * 255) / 255]
        for images in (*hard_images(net.spec.input, batch), *real):
            expected, rounded = _expected(truth, images), _expected(single, images)
            feed = _feed(taken, expected if taken.name == "capsules" else {"images": images})
            actual = dict(zip(names, session.run(names, feed), strict=True))
            for name in names:
                room = 0.0
                if name == "reconstruction":
                    # Rounding may choose another of two equally long capsules to draw.
                    chosen = actual.get("scores", actual.get("lengths", expected["scores"])).argmax(1)
                    wanted = truth.reconstruct(expected["capsules"], chosen)
                    near = single.reconstruct(rounded["capsules"], chosen)
                    if taken.name == "images":
                        capsules = _capsules(actual, expected, tolerance)
                        room = float(np.abs(truth.reconstruct(capsules, chosen) - wanted).max())
                else:
                    wanted, near = expected[name], rounded[name]
                difference = float(np.abs(actual[name] - wanted).max())
                found[name] = max(found.get(name, 0.0), difference)
                allowed = max(tolerance, 4 * float(np.abs(near - wanted).max())) + room
                if not difference <= allowed:
                    where = first_difference(model, plain, feed, precision)
                    raise ModelFileError(
                        f"the graph's {name} differs from the network's by {difference:.1e} (allowed: "
                        f"{allowed:.1g}); the first node that differs is {where}; nothing was written"
                    )
    return found


def first_difference(model: onnx.ModelProto, plain: onnx.ModelProto, feed: dict[str, Any], precision: str) -> str:
    """Return the name of the first node whose value in ONNX Runtime is not that of `plain` in float64."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    wide = _widened(plain)
    names = [name for node in plain.graph.node for name in node.output]
    there = {name for node in model.graph.node for name in node.output}
    compared = [name for name in names if name in there]
    del shown.graph.output[:]
    del wide.graph.output[:]
    for name in compared:
        shown.graph.output.append(onnx.ValueInfoProto(name=name))
        wide.graph.output.append(onnx.ValueInfoProto(name=name))
    actual = _session(shown, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL).run(compared, feed)
    exact = {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in feed.items()}
    expected = ReferenceEvaluator(wide).run(None, exact)
    relative = {"fp32": 1e-4, "fp16": 3e-2, "int8": 0.3}[precision]
    for name, a, b in zip(compared, actual, expected, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if not np.abs(a - b).max(initial=0) <= relative * max(1e-6, np.abs(b).max(initial=0)):
            return str(name)
    return "none by itself: an optimisation of ONNX Runtime changes the result"


def _expected(truth: Any, images: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    out = truth(images, couplings=True)
    expected = {"lengths": out.lengths, "capsules": out.capsules, "scores": out.scores}
    layers = enumerate(out.couplings or ())
    return expected | {f"couplings.{i}.{r}": c for i, layer in layers for r, c in enumerate(layer)}


def _capsules(actual: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]], tolerance: float) -> NDArray[Any]:
    """Return the graph's capsules; of one that keeps them to itself, such as differ by no more than fp32 allows."""
    if "capsules" in actual:
        return actual["capsules"]
    capsules = expected["capsules"]
    moved: NDArray[Any] = capsules + min(tolerance, LARGE_TILES) * np.random.default_rng(0).choice(
        (-1, 1), capsules.shape
    )
    return moved


def _feed(taken: onnx.ValueInfoProto, values: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    x = values[taken.name]
    if taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
        return {taken.name: np.round(x * 255).astype(np.uint8)}
    return {taken.name: np.ascontiguousarray(to_host(x), dtype=np.float32)}


def _session(model: onnx.ModelProto, level: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with its float32 constants as float64, for an evaluator that takes what it is given."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for tensor in wide.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for node in wide.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.DOUBLE
    return wide
