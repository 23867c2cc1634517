"""An exported graph in int8: static quantisation by ONNX Runtime's own tools, or the weights' storage alone."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from capscore.errors import BackendError, CapscoreError, ShapeError
from capscore.layer import Row
from capscore.net import CapsNetSpec
from capscore.ops import check_range

try:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
except ModuleNotFoundError as error:
    raise BackendError("int8 needs ONNX Runtime: pip install 'capscore[onnx]'") from error

CALIBRATION_BATCH = 32
MULTIPLY = "Conv", "MatMul"
PASS = "Relu", "MaxPool"  # of rounded numbers, they make rounded ones
FIRST = 0.1  # of all products: what the first layers in float32 may take
FEW = 8192  # numbers of an array that is stored as int8, at least: fewer save 24 kB, and matter most


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images as ONNX Runtime asks for them: a feed at a time, None at the end."""

    def __init__(self, images: NDArray[Any], batch: int) -> None:
        self.feeds: Iterator[dict[str, Any]] = iter(
            [{"images": images[i : i + batch]} for i in range(0, len(images) - batch + 1, batch)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def quantize(spec: CapsNetSpec, model: onnx.ModelProto, images: NDArray[Any], byte_images: bool) -> onnx.ModelProto:
    """Return the graph with int8 convolutions and products where the layers allow it.

    Activations are uint8, weights int8 per channel. What is multiplied in other layers, such as those that route, stays
    float32; their weights are stored as int8 too, and widened when the model is loaded. The first convolutions
    stay float32, too, where that costs little: see `_later`.

    What a convolution makes is rounded behind its ReLU, whose range is a part of it, and maxima are of rounded numbers.
    With the first convolution in float32, `efficient-multimnist` loses 0.2 points so instead of 6.8, and
    `efficient-mnist` is 1.2 times as fast. With the first two, `efficient-multimnist` loses nothing.
    """
    feeds = _calibration(model, images, byte_images)
    rows = [*spec.rows, *spec.decoder_rows]
    places = tuple(f"{row.name}/" for row in rows if row.layer.quantises)
    nodes = [node for node in model.graph.node if node.name.startswith(places)]
    multiply = [node for node in nodes if node.op_type in MULTIPLY]
    if not multiply:  # none at all would mean every node to what quantises
        raise CapscoreError(
            "int8 is for convolutions and the decoder, of which this network has none: export it as int8-weights"
        )
    with tempfile.TemporaryDirectory() as folder:
        plain, quantised = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        inferred = onnx.shape_inference.infer_shapes(model)
        helper.set_model_props(inferred, {"onnx.quant.pre_process": "onnxruntime.quant"})  # it is flat already
        onnx.save(inferred, plain)
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore", RuntimeWarning)  # of scales that overflow: an assertion follows
                quantize_static(
                    str(plain),
                    str(quantised),
                    feeds,
                    quant_format=QuantFormat.QDQ,
                    # Named, or every array of the graph is watched; its tools take the square of their number in time.
                    op_types_to_quantize=[*MULTIPLY, *PASS],
                    nodes_to_quantize=[
                        *(node.name for node in _later(rows, multiply)),
                        *(node.name for node in nodes if node.op_type in PASS),
                    ],
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    # The mean over batches of what is least and most in each: a single outlier makes no scale coarse.
                    extra_options={"CalibMovingAverage": True},
                )
        except (AssertionError, ValueError) as error:
            largest = {tensor.name: _largest(tensor) for tensor in model.graph.initializer}
            name = max(largest, key=lambda name: largest[name])
            raise ShapeError(
                f"ONNX Runtime finds no int8 scales ({str(error).splitlines()[0]:.80}); the largest value is "
                f"{largest[name]:.1e}, in {name}: export it as fp32"
            ) from None
        smaller = onnx.load(quantised)
    kept = tuple(f"{row.name}.weight" for row in rows if not row.layer.quantises)
    return _narrowed(
        smaller, [tensor.name for tensor in smaller.graph.initializer if kept and tensor.name.startswith(kept)]
    )


def _later(rows: Sequence[Row], multiply: Sequence[onnx.NodeProto]) -> Sequence[onnx.NodeProto]:
    """Return the nodes to quantise: all but the first, as many as make a tenth of all products, and one at least.

    The first kernels answer to small differences of large sums, and later layers spread what they lose.
    """
    rows = [row for row in rows if any(node.name.startswith(f"{row.name}/") for node in multiply)]
    made = list(accumulate(row.plan.multiply_adds for row in rows))
    cheap = tuple(f"{row.name}/" for row, total in zip(rows, made, strict=True) if total <= FIRST * made[-1])
    first = sum(node.name.startswith(cheap) for node in multiply)
    return multiply[max(first, 1) :] or multiply  # a network may have one convolution alone


def _calibration(model: onnx.ModelProto, images: NDArray[Any], byte_images: bool) -> _Images:
    """Return calibration images as the graph takes them, or say what they lack."""
    (taken,) = model.graph.input
    batch = taken.type.tensor_type.shape.dim[0].dim_value or max(1, min(CALIBRATION_BATCH, len(images)))
    if len(images) < batch:
        raise ShapeError(f"{len(images)} calibration images are too few: wanted at least {batch}")
    if not np.isfinite(images).all() or images.min() == images.max():
        raise ShapeError("calibration images hold NaN or infinity, or nothing but one value: they show int8 no range")
    check_range(images, "calibration images", "int8")
    images = np.round(images * 255).astype(np.uint8) if byte_images else images.astype(np.float32)
    return _Images(images, batch)


def narrow(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with its weights stored as int8, which computes in float32: for a GPU, and for a download.

    Weights of few numbers, as of a first layer, save nothing and matter most.
    """
    smaller = onnx.ModelProto()
    smaller.CopyFrom(model)
    weights = [x.name for x in model.graph.initializer if x.data_type == TensorProto.FLOAT and math.prod(x.dims) >= FEW]
    return _narrowed(smaller, weights)


def _largest(tensor: TensorProto) -> float:
    array = numpy_helper.to_array(tensor)
    return float(np.abs(array).max(initial=0)) if array.dtype.kind == "f" else 0.0


def _narrowed(model: onnx.ModelProto, weights: Collection[str]) -> onnx.ModelProto:
    """Store these weights as int8, a scale for each row or kernel of an output, with a Cast and a Mul behind them.

    Those that are long along one axis alone stay as they are, such as a number for each channel [1, C, 1, 1]: one scale
    for all of them would make the small ones zero.
    They hang on constants alone, so a runtime computes them when it loads: what is multiplied then is float32.
    """
    before, scales = [], []
    for tensor in model.graph.initializer:
        if tensor.name in weights and sum(dim > 1 for dim in tensor.dims) > 1:
            name, array = tensor.name, numpy_helper.to_array(tensor)
            together = (1, 2, 3) if array.ndim == 4 else -1
            scale = np.maximum(np.abs(array).max(axis=together, keepdims=True) / 127, np.finfo(np.float32).tiny)
            tensor.CopyFrom(numpy_helper.from_array(np.round(array / scale).astype(np.int8), f"{name}_quantized"))
            scales.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"))
            wide = f"{name}.cast"
            before.append(helper.make_node("Cast", [f"{name}_quantized"], [wide], wide, to=TensorProto.FLOAT))
            before.append(helper.make_node("Mul", [wide, f"{name}_scale"], [name], f"{name}.mul"))
    model.graph.initializer.extend(scales)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(before + nodes)
    onnx.checker.check_model(model, full_check=True)
    return model
