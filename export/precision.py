"""Static int8 quantisation of an exported graph, by ONNX Runtime's own tools."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from capscore.errors import BackendError, ShapeError

try:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
except ModuleNotFoundError as error:
    raise BackendError("int8 needs ONNX Runtime: pip install 'capscore[onnx]'") from error

CALIBRATION_BATCH = 32


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images as ONNX Runtime asks for them: a feed at a time, None at the end."""

    def __init__(self, images: NDArray[Any], batch: int) -> None:
        self.feeds: Iterator[dict[str, Any]] = iter(
            [{"images": images[i : i + batch]} for i in range(0, len(images) - batch + 1, batch)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def quantize(model: onnx.ModelProto, images: NDArray[Any], byte_images: bool) -> onnx.ModelProto:
    """Return the graph with int8 convolutions and decoder; activations uint8, weights int8 per channel.

    Routing stays in float32. Its weights are stored as float16, and cast when the model is loaded.
    """
    (taken,) = model.graph.input
    shape = tuple(d.dim_value for d in taken.type.tensor_type.shape.dim)
    if images.ndim != 4 or images.shape[1:] != shape[1:]:
        raise ShapeError(f"calibration images have shape {list(images.shape)}; wanted [N, {str(list(shape[1:]))[1:]}")
    batch = shape[0] or min(CALIBRATION_BATCH, len(images))
    if len(images) < batch or not batch:
        raise ShapeError(f"{len(images)} calibration images are fewer than the fixed batch of {batch}")
    images = np.round(images * 255).astype(np.uint8) if byte_images else images.astype(np.float32)
    chosen = [node.name for node in model.graph.node if node.op_type == "Conv" or _in_decoder(node)]
    with tempfile.TemporaryDirectory() as folder:
        plain, quantised = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        inferred = onnx.shape_inference.infer_shapes(model)
        helper.set_model_props(inferred, {"onnx.quant.pre_process": "onnxruntime.quant"})  # it is flat already
        onnx.save(inferred, plain)
        quantize_static(
            str(plain),
            str(quantised),
            _Images(images, batch),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=chosen,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        smaller = onnx.load(quantised)
    _halve_routing_weights(smaller)
    onnx.checker.check_model(smaller, full_check=True)
    return smaller


def _in_decoder(node: onnx.NodeProto) -> bool:
    return bool(node.op_type == "MatMul" and node.name.startswith("decoder/"))


def _halve_routing_weights(model: onnx.ModelProto) -> None:
    """Store the weights of the votes as float16 with a Cast behind them, which runtimes compute when they load."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name.startswith("capsules.") and ".weight" in tensor.name:
            name, array = tensor.name, numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{name}.fp16"))
            casts.append(helper.make_node("Cast", [f"{name}.fp16"], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(casts + nodes)
