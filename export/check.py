"""Proof of an export: the graph in ONNX Runtime against the network in NumPy with float64."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from capscore.agree import SHARE, Truth, arrays, hard_images, largest, layers, parts
from capscore.errors import BackendError, ModelFileError
from capscore.layer import Run
from capscore.ops import to_host

try:
    import onnxruntime
except ModuleNotFoundError as error:
    raise BackendError(
        "verifying an export needs ONNX Runtime: pip install 'capscore[onnx]'; or go without: verify=False, --no-verify"
    ) from error

BATCHES = (1, 2, 7)
CURES = {  # what may help where numbers of few digits are the reason
    "fp16": ": fp32 has more digits",
    "int8": ": calibrate on more images of the kind that it will see, as eight bits tell few numbers apart, or export "
    "it as fp16",
    "int8-weights": ": weights of eight bits are too coarse for it: export it as fp16",
}


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
    truth = Truth(net.spec, net.params)
    session = _session(model, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    (taken,) = model.graph.input
    fixed = taken.type.tensor_type.shape.dim[0].dim_value
    names = [output.name for output in model.graph.output]
    allowed_as = "6x6" if fast_conv == "6x6" else precision
    found: dict[str, float] = {}
    for batch in (fixed,) if fixed else BATCHES:
        real = [] if examples is None or len(examples) < batch else [np.round(to_host(examples[:batch]) * 255) / 255]
        for images in (*hard_images(net.spec.input, batch), *real):
            expected = truth.expect(images)
            feed = _feed(taken, images if taken.name == "images" else expected.capsules)
            actual = dict(zip(names, session.run(names, feed), strict=True))
            for difference in expected.differences(actual, allowed_as, taken.name):
                name, size, allowed = difference
                found[name] = max(found.get(name, 0.0), size)
                if not difference.fits:
                    node = first_node(model, plain, feed, precision)
                    where = f"the first node that differs is {node}" if node else first_layer(net, images, fast_conv)
                    cure = CURES.get(precision, "")
                    raise ModelFileError(
                        f"the graph's {name} differs from the network's by {size:.1e} (allowed: "
                        f"{allowed:.1g}); {where}; nothing was written{cure}"
                    )
    return found


def first_node(model: onnx.ModelProto, plain: onnx.ModelProto, feed: dict[str, Any], precision: str) -> str | None:
    """Return the name of the first node whose value in ONNX Runtime is not that of `plain` in float64, if any is."""
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
    for name, a, b in zip(compared, actual, expected, strict=True):
        if not _close(a, b, SHARE[precision]):
            return str(name)
    return None


def first_layer(net: Any, images: NDArray[Any], fast_conv: str | None = None) -> str:
    """Say which layer is the first that is written into a graph as something else than it computes in NumPy.

    For graphs of which ONNX Runtime computes every node as it should.
    """
    from capscore.export.onnx import Recorder, recorded  # which imports this module

    recorder = Recorder()
    spec, params = recorded(recorder, net)
    written = SimpleNamespace(ops=recorder, spec=spec, params=params, fast_conv=fast_conv)
    folded = Truth(spec, {name: value.constant for name, value in params.items()})
    chosen = folded.expect(images).exact["scores"].argmax(1)
    names = {"images": "images"}  # of values, in the graph; a layer may pass on what it was given
    outputs: dict[str, Any] = {}
    made = {name: parts(x) for name, x in layers(written, recorder.input("images", spec.input), chosen)}
    for row in (*spec.rows, *spec.decoder_rows):
        for value, shape in zip(made[row.name], (row.output.dims, row.output.dims[:1]), strict=False):
            if value.name not in names:
                names[value.name] = output = f"{row.name}.{len(outputs)}"
                outputs[output] = value, shape
    model = recorder.model({"images": spec.input}, outputs)
    feed = _feed(model.graph.input[0], images)
    found = _session(model, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL).run(list(outputs), feed)
    computed = feed | dict(zip(outputs, found, strict=True))
    for name, x in layers(folded.exact, images, chosen, Run(trace=[])):
        for value, wanted in zip(made[name], arrays(x), strict=True):
            if not _close(computed[names[value.name]], wanted, SHARE["fp32"]):
                return f"the first layer that the graph computes otherwise is {name}"
    return "every node and layer by itself agrees: an optimisation of ONNX Runtime changes the result"


def _close(found: NDArray[Any], wanted: NDArray[Any], share: float) -> bool:
    return found.shape == wanted.shape and largest(found, wanted) <= share * max(1e-6, largest(wanted, 0))


def where_it_differs(path: Path, net: Any, images: NDArray[Any]) -> str:
    """Say which node of an fp32 file, or else which layer of the network in it, is the first that differs."""
    model = onnx.load(path)
    return first_node(model, model, _feed(model.graph.input[0], images), "fp32") or first_layer(net, images)


def _feed(taken: onnx.ValueInfoProto, x: NDArray[Any]) -> dict[str, NDArray[Any]]:
    if taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
        return {taken.name: np.round(x * 255).astype(np.uint8)}
    return {taken.name: np.ascontiguousarray(to_host(x), dtype=np.float32)}


def _session(model: onnx.ModelProto, level: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise ModelFileError(
            f"ONNX Runtime {onnxruntime.__version__} does not run opset {model.opset_import[0].version} here "
            f"({str(error).splitlines()[0]:.160}); nothing was written: export it with the default opset, 17"
        ) from None


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
