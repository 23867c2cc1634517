"""Other people's tools on exported files: OpenCV, OpenVINO, simplifiers, scripts of ONNX Runtime, and JavaScript."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import EXPORTED, FLOAT32, NUMPY, REQUIRED, close, need, random_images, random_params, small_spec

from capscore import (
    AveragePool,
    BatchNorm,
    CapsNetSpec,
    Conv,
    Decoder,
    DenseCaps,
    GroupNorm,
    InstanceNorm,
    MaxPool,
    PrimaryCaps,
    Residual,
    SelfAttention,
)

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


LAYERS = CapsNetSpec(
    input=(3, 12, 12),
    layers=(
        Conv(8, kernel=3, padding="same", activation="none"),
        BatchNorm(activation="relu"),
        MaxPool(2),
        Residual((Conv(8, kernel=3, padding="same"), InstanceNorm(), GroupNorm(2))),
        AveragePool(2),
        PrimaryCaps(types=4, dim=4, kernel=2, groups=8),
        DenseCaps(6, dim=4, routing=SelfAttention()),
        DenseCaps(3, dim=4),
    ),
    decoder=Decoder((8,)),
)


@pytest.mark.parametrize("opset", [13, 17, 23])
def test_opencv_runs_layers_of_every_kind(onnx_export: ModuleType, tmp_path: Path, opset: int) -> None:
    cv2, net = need("cv2", "opencv"), NUMPY.CapsNet(LAYERS)
    onnx_export.export(net, tmp_path / "m.onnx", batch=1, opset=opset, verify=False)
    x = random_images(LAYERS, 1, dtype="float32")
    out = net(x)
    model, names = cv2.dnn.readNetFromONNX(str(tmp_path / "m.onnx")), ["lengths", "capsules", "reconstruction"]
    model.setInput(x, "images")
    lengths, capsules, drawn = model.forward(names)
    close(lengths, out.lengths, FLOAT32)
    close(capsules, out.capsules, FLOAT32)
    close(drawn, net.reconstruct(out.capsules), FLOAT32)


@pytest.mark.parametrize("options", [{}, {"batch": 3}, {"opset": 13}, {"opset": 23}, {"precision": "fp16"},
                                     {"precision": "int8"}, {"precision": "int8-weights"}], ids=str)  # fmt: skip
@pytest.mark.parametrize("tool", ["onnxsim", "onnxslim"])
def test_what_simplifiers_leave_is_the_same_model(
    onnx_export: ModuleType, runtime: ModuleType, tmp_path: Path, tool: str, options: dict[str, Any]
) -> None:
    """With its metadata: a session opens it."""
    simplify = {"onnxsim": lambda m: need("onnxsim", "onnxsim").simplify(m)[0],
                "onnxslim": lambda m: need("onnxslim", "onnxslim").slim(m)}[tool]  # fmt: skip
    path, x = write(onnx_export, tmp_path / "m.onnx", **options), random_images(SPEC, 3, dtype="float32")
    before = onnx.load(path)
    onnx.save(simplify(onnx.load(path)), tmp_path / "s.onnx")
    assert len(onnx.load(tmp_path / "s.onnx").graph.node) <= len(before.graph.node)
    out, wanted = runtime.Session(tmp_path / "s.onnx", "cpu", 1)(x), runtime.Session(path, "cpu", 1)(x)
    for name in ("lengths", "capsules", "reconstruction"):
        close(getattr(out, name), getattr(wanted, name), FLOAT32, name)


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


WEB = Path(__file__).parent.parent / "examples" / "web"
MODULES = Path(os.environ.get("CAPSCORE_NODE", WEB)) / "node_modules"
SCRIPT = """
const [runtime, example, path, pixels] = process.argv.slice(2);
const { createRequire } = await import("node:module");
const { readFileSync } = await import("node:fs");
const ort = createRequire(runtime)(runtime);
const { Model } = await import(example);
const about = JSON.parse(readFileSync(path.replace(/onnx$/, "json")));
const session = await ort.InferenceSession.create(readFileSync(path));
const { scores, drawn } = await new Model(ort, session, about).classify(new Uint8Array(readFileSync(pixels)));
console.log(JSON.stringify({ scores: [...scores], drawn: drawn ? [...drawn] : null }));
"""


@pytest.mark.parametrize("options", [{}, {"byte_images": True}, {"batch": 1}, {"opset": 13}, {"precision": "int8"},
                                     {"precision": "int8-weights"}], ids=str)  # fmt: skip
@pytest.mark.parametrize("package", ["onnxruntime-web", "onnxruntime-node"])
def test_javascript_runs_a_model_by_its_json_file(
    onnx_export: ModuleType, tmp_path: Path, package: str, options: dict[str, Any]
) -> None:
    """The module of the web example, in Node: with WebAssembly, and with the native library."""
    if shutil.which("node") is None or not (MODULES / package).is_dir():
        if "node" in REQUIRED:
            pytest.fail("CAPSCORE_REQUIRE names node")
        pytest.skip(f"needs Node and npm install {package} in examples/web or in the folder CAPSCORE_NODE")
    path = write(onnx_export, tmp_path / "m.onnx", json=True, **options)
    pixels = np.random.default_rng(0).integers(0, 256, SPEC.input, np.uint8)
    (tmp_path / "pixels").write_bytes(pixels.tobytes())
    (tmp_path / "run.mjs").write_text(SCRIPT)
    command = ["node", tmp_path / "run.mjs", MODULES / package, (WEB / "model.js").as_uri(), path, tmp_path / "pixels"]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found, wanted = json.loads(ran.stdout), expected(pixels[None] / 255)
    tolerance = EXPORTED[options.get("precision", "fp32")]
    close(np.array(found["scores"]), wanted["lengths"][0], tolerance)
    close(np.array(found["drawn"]).reshape(SPEC.input), wanted["reconstruction"][0], max(tolerance, FLOAT32))


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"outputs": ["capsules"]}, {}, "it gives no scores: export it without --outputs"),
        ({"batch": 4}, {}, "it takes 4 images at a time: export it without --batch"),
        ({}, {"inputs": None}, "its .json file tells of no images and classes: capscore export … --json"),
        ({}, {"classes": None}, "its .json file tells of no images and classes"),
    ],
)
def test_the_page_says_why_it_does_not_take_a_model(
    onnx_export: ModuleType, tmp_path: Path, options: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    if shutil.which("node") is None:
        if "node" in REQUIRED:
            pytest.fail("CAPSCORE_REQUIRE names node")
        pytest.skip("needs Node")
    path = write(onnx_export, tmp_path / "m.onnx", json=True, **options)
    about = json.loads(path.with_suffix(".json").read_text()) | change
    module = json.dumps((WEB / "model.js").as_uri())
    code = f"import {{ Model }} from {module}; new Model(null, null, {json.dumps(about)});"
    ran = subprocess.run(["node", "--input-type=module", "-e", code], capture_output=True, text=True)
    assert message in ran.stderr
