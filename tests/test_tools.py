"""Other people's tools on exported files: what docs/deploy.md says of OpenCV, OpenVINO and scripts of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import EXPORTED, FLOAT32, NUMPY, close, need, random_images, random_params, small_spec

onnx = need("onnx", "onnx")
ort = need("onnxruntime", "onnx")
SPEC = small_spec()
PARAMS = random_params(SPEC, dtype="float32")


def write(onnx_export: ModuleType, path: Path, **options: Any) -> Path:
    seen = random_images(SPEC, 64, seed=9, dtype="float32")
    report = onnx_export.export(NUMPY.CapsNet(SPEC, PARAMS), path, verify=False, calibration=seen, **options)
    return report.path  # type: ignore[no-any-return]


def expected(images: np.ndarray) -> dict[str, np.ndarray]:
    net = NUMPY.CapsNet(SPEC, PARAMS, dtype="float64")
    out = net(images)
    return {"lengths": out.lengths, "capsules": out.capsules, "reconstruction": net.reconstruct(out.capsules)}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_optional_attributes_of_convolutions_are_written(
    onnx_export: ModuleType, tmp_path: Path, precision: str
) -> None:
    """OpenCV 4 refuses a convolution without `kernel_shape`, and others take no defaults."""
    graph = onnx.load(write(onnx_export, tmp_path / "m.onnx", precision=precision)).graph
    found = [
        {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        for node in graph.node
        if node.op_type == "Conv"
    ]
    plain = {"dilations": [1, 1], "group": 1, "kernel_shape": [3, 3]}
    assert found == [
        plain | {"strides": [1, 1], "pads": [1, 1, 1, 1]},
        plain | {"strides": [2, 2], "pads": [0, 0, 0, 0]},
    ]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("opset", [17, 18])
def test_opencv_runs_a_file_of_a_fixed_batch(
    onnx_export: ModuleType, tmp_path: Path, precision: str, opset: int
) -> None:
    cv2 = need("cv2", "opencv")
    names = ["lengths", "capsules", "reconstruction"]
    for batch in (1, 3):
        path = write(onnx_export, tmp_path / f"{batch}.onnx", batch=batch, precision=precision, opset=opset)
        net, x = cv2.dnn.readNetFromONNX(str(path)), random_images(SPEC, batch, dtype="float32")
        net.setInput(x, "images")
        for name, found in zip(names, net.forward(names), strict=True):
            close(found, expected(x)[name], EXPORTED[precision], name)


@pytest.mark.parametrize("opset", [None, 18])
@pytest.mark.parametrize("batch", [None, 3])
def test_the_scripts_of_onnx_runtime(
    onnx_export: ModuleType, tmp_path: Path, batch: int | None, opset: int | None
) -> None:
    """They take the default opset; from 18 on theirs does not know the shapes of sums without a switch."""
    shapes = need("onnxruntime.quantization.shape_inference", "onnx")
    symbolic = need("onnxruntime.tools.symbolic_shape_infer", "sympy").SymbolicShapeInference
    path = write(onnx_export, tmp_path / "m.onnx", batch=batch, **({} if opset is None else {"opset": opset}))
    if opset is None:
        inferred = symbolic.infer_shapes(onnx.load(path), auto_merge=True)
        known = {value.name for value in inferred.graph.value_info} | {value.name for value in inferred.graph.output}
        assert {name for node in inferred.graph.node for name in node.output} <= known
    shapes.quant_pre_process(str(path), str(tmp_path / "ready.onnx"), skip_symbolic_shape=opset is not None)
    session = ort.InferenceSession(tmp_path / "ready.onnx", providers=["CPUExecutionProvider"])
    x = random_images(SPEC, 3, dtype="float32")
    names = [output.name for output in session.get_outputs()]
    for name, found in zip(names, session.run(names, {"images": x}), strict=True):
        close(found, expected(x)[name], FLOAT32, name)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_openvino_is_exact_when_asked_for_float32(onnx_export: ModuleType, tmp_path: Path, precision: str) -> None:
    """Without the hint it rounds to bfloat16 or float16 where the processor is faster so."""
    openvino = need("openvino", "openvino")
    path, x = write(onnx_export, tmp_path / "m.onnx", precision=precision), random_images(SPEC, 5, dtype="float32")
    for hint, tolerance in (({"INFERENCE_PRECISION_HINT": "f32"}, EXPORTED[precision]), ({}, EXPORTED["int8"])):
        compiled = openvino.Core().compile_model(str(path), "CPU", hint)
        for output, found in compiled([x]).items():
            close(found, expected(x)[output.get_any_name()], tolerance, output.get_any_name())


def test_user_quantised_files_are_int8_to_a_session(
    onnx_export: ModuleType, runtime: ModuleType, tmp_path: Path
) -> None:
    """What a graph computes in is read off its nodes: metadata that travels along still says fp32."""
    quantization = need("onnxruntime.quantization", "onnx")
    path = write(onnx_export, tmp_path / "m.onnx")
    quantization.quantize_dynamic(str(path), str(tmp_path / "q.onnx"))
    assert runtime.Session(path, "cpu", 1).precision == "fp32"
    assert runtime.Session(tmp_path / "q.onnx", "cpu", 1).precision == "int8"
