"""Execution providers that are plugins: float32 is float32, nothing leaves the GPU unasked, errors name the cure.

WebGPU runs on a software adapter: the same kernels as on a GPU, slowly. Routings prove the same in `routing_proof`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import (
    CHROMIUM,
    EXPORTED,
    FLOAT32,
    NUMPY,
    TRANSFORMED,
    close,
    need,
    random_images,
    random_params,
    small_spec,
)

from capscore import PRESETS, CapsNetSpec, Conv, DenseCaps, PrimaryCaps, agree, modelfile, zoo
from capscore.errors import BackendError, CapscoreError
from capscore.fast import cook_toom
from capscore.modelfile import Model

SPEC = small_spec()
PARAMS = random_params(SPEC, dtype="float32")
GPU = "WebGpuExecutionProvider"
SOFTWARE = "swiftshader" in os.environ.get("VK_DRIVER_FILES", "swiftshader")  # else the driver of whoever runs this
SOME, MANY = 5_000_000, 50_000_000  # multiply-adds of an image: what a software adapter computes at once, in seconds
SLOW = ("em-small", "vb-smallnorb")  # their votes take it a minute; `routing_proof` has their routings
ZOO = zoo.list_models(pretrained=True)
TRAINED = [modelfile.read(zoo.path(name)).spec.layers for name in ZOO]  # tested with what they have learned
EXPORTS = [
    *((name, {"batch": 1}) for name, spec in PRESETS.items() if spec.multiply_adds < SOME),
    *(
        (name, {})
        for name, spec in PRESETS.items()
        if SOME <= spec.multiply_adds < MANY and name not in SLOW and spec.layers not in TRAINED
    ),
    ("mnist", {}),  # the one of the paper's size
]


@pytest.fixture(scope="module")
def providers(runtime: ModuleType) -> ModuleType:
    return need("capscore.export.providers", "onnx")


@pytest.fixture
def make(onnx_export: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """Export a network, the small one of everything if none is given."""

    def export(net: Any = None, **options: Any) -> Path:
        net = net or NUMPY.CapsNet(SPEC, PARAMS)
        seen = random_images(net.spec, 64, seed=9, dtype="float32")
        onnx_export.export(net, tmp_path / "m.onnx", verify=False, calibration=seen, **options)
        return tmp_path / "m.onnx"

    return export


def stays_on_the_gpu(session: Any, net: Any, images: np.ndarray, tolerance: float = FLOAT32) -> None:
    """Assert that a session computes what the network does, and that no node and no copy lands on the CPU."""
    found, wanted = session(images), net(images)
    exact = NUMPY.CapsNet(net.spec, net.params, dtype="float64")(images)
    for name in ("scores", "lengths", "capsules"):
        if (said := getattr(exact, name)) is not None:
            room = max(tolerance, agree.allowed("fp32", getattr(wanted, name), said))  # EM amplifies what is rounded
            close(getattr(found, name), said, room, name)
    if found.reconstruction is not None:
        labels = wanted.scores.argmax(1)
        close(found.reconstruction, net.reconstruct(wanted.capsules, labels), tolerance, "reconstruction")
    nodes, copies = session.placement()
    assert (list(nodes), copies) == ([GPU], 0)


@pytest.mark.parametrize(("preset", "options"), EXPORTS, ids=str)
def test_presets_stay_on_the_gpu(
    webgpu: str, runtime: ModuleType, make: Callable[..., Path], preset: str, options: dict[str, Any]
) -> None:
    net = NUMPY.CapsNet(PRESETS[preset])
    stays_on_the_gpu(runtime.Session(make(net, **options), webgpu), net, random_images(net.spec, 1, dtype="float32"))


@pytest.mark.parametrize("tiles", cook_toom.TILES)
def test_fast_convolutions_stay_on_the_gpu(
    webgpu: str, runtime: ModuleType, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tiles: str
) -> None:
    onnx = need("onnx", "onnx")
    monkeypatch.setattr(cook_toom, "CHANNELS", 16)  # narrower than where it pays: no small preset is as wide as that
    net = NUMPY.CapsNet(TRANSFORMED, random_params(TRANSFORMED, dtype="float32"))
    path = make(net, fast_conv=tiles)
    assert [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"] == ["stem.0/conv"]
    images = random_images(TRANSFORMED, 9, dtype="float32")
    stays_on_the_gpu(runtime.Session(path, webgpu), net, images, EXPORTED["6x6"])


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_stays_on_the_gpu(webgpu: str, runtime: ModuleType, make: Callable[..., Path], name: str) -> None:
    net = NUMPY.load(zoo.path(name))
    stays_on_the_gpu(runtime.Session(make(net), webgpu), net, random_images(net.spec, 1, dtype="float32"))


def test_convolutions_of_any_channels(webgpu: str, runtime: ModuleType, make: Callable[..., Path]) -> None:
    """From 6 and 18 channels, and 6 and 10 out of a group: what the plugin 0.4.0 gets wrong in its own layout."""
    layers = (
        Conv(6, kernel=3), Conv(8, kernel=2), Conv(12, kernel=2, groups=2), Conv(18, kernel=2),
        Conv(20, kernel=2, groups=2), PrimaryCaps(4, dim=5, kernel=2, groups=20), DenseCaps(3, dim=4),
    )  # fmt: skip
    net = NUMPY.CapsNet(CapsNetSpec((1, 10, 10), layers))
    net = NUMPY.CapsNet(net.spec, random_params(net.spec, dtype="float32"))
    stays_on_the_gpu(runtime.Session(make(net), webgpu), net, random_images(net.spec, 1, dtype="float32"))


def test_a_session_of_the_plugin_does_what_others_do(
    webgpu: str, runtime: ModuleType, onnx_export: ModuleType, make: Callable[..., Path], tmp_path: Path
) -> None:
    """Batches, bytes, couplings, NaN, threads of the caller, and a decoder by itself."""
    net, x = NUMPY.CapsNet(SPEC, PARAMS), random_images(SPEC, 5, dtype="float32")
    session = runtime.Session(make(outputs=["lengths", "couplings"]), webgpu)
    assert session.provider == GPU
    out, wanted = session(x), net(x, couplings=True)
    for layer, expected in zip(out.couplings, wanted.couplings, strict=True):
        for c, of_net in zip(layer, expected[1:], strict=True):
            close(c, of_net, FLOAT32)
    close(session.predict(x, 2), wanted.lengths, FLOAT32)
    pixels = np.round(x * 255).astype(np.uint8)
    exact = net(pixels.astype(np.float32) / 255)
    session = runtime.Session(make(byte_images=True, batch=2), webgpu)
    close(session.predict(pixels), exact.lengths, FLOAT32)
    x[1, 0, 3, 3] = np.nan
    found = runtime.Session(make(), webgpu)(x)
    assert np.isnan(found.lengths[1]).all()
    close(found.lengths[[0, 2]], wanted.lengths[[0, 2]], FLOAT32)
    onnx_export.export_decoder(net, tmp_path / "d.onnx", verify=False)
    drawn = runtime.DecoderSession(tmp_path / "d.onnx", webgpu)(wanted.capsules)
    close(drawn, net.reconstruct(wanted.capsules), FLOAT32)


def test_where_the_nodes_of_a_session_on_the_cpu_run(runtime: ModuleType, make: Callable[..., Path]) -> None:
    onnx, path = need("onnx", "onnx"), make()
    nodes, copies = runtime.Session(path, "cpu", 1).placement()
    assert (list(nodes), copies) == (["CPUExecutionProvider"], 0)
    assert {"stem.0/conv", "capsules.1/route/2/softmax"} <= set(nodes["CPUExecutionProvider"])
    assert len(nodes["CPUExecutionProvider"]) <= len(onnx.load(path).graph.node)


def test_which_nodes_of_int8_leave_the_gpu(webgpu: str, runtime: ModuleType, make: Callable[..., Path]) -> None:
    """The plugin has no QuantizeLinear: docs/deploy.md says so, and what to take instead."""
    session = runtime.Session(make(precision="int8"), webgpu)
    x = random_images(SPEC, 3, dtype="float32")
    close(session(x).lengths, NUMPY.CapsNet(SPEC, PARAMS)(x).lengths, EXPORTED["int8"])
    nodes, copies = session.placement()
    left = nodes.pop("CPUExecutionProvider")
    kinds = {node.name: node.op_type for node in need("onnx", "onnx").load(session.path).graph.node}
    theirs = [name for name in left if name not in kinds]  # ONNX Runtime adds pairs around changes of layout
    assert {kinds[name] for name in left if name in kinds} == {"QuantizeLinear"}
    assert all(name.endswith("_q") for name in theirs)
    assert list(nodes) == [GPU]
    assert copies == 2 * len(left)  # there and back


def test_weights_in_int8_are_a_quarter_and_stay_on_the_gpu(
    webgpu: str, runtime: ModuleType, onnx_export: ModuleType, tmp_path: Path
) -> None:
    for spec, params in ((SPEC, PARAMS), (PRESETS["small"], None)):
        net, path = NUMPY.CapsNet(spec, params), tmp_path / "m.onnx"
        whole = onnx_export.export(net, path).bytes
        report = onnx_export.export(net, path, precision="int8-weights")
        assert 1e-5 < max(report.differences.values()) < EXPORTED["int8-weights"]
        x = random_images(spec, 1, dtype="float32")
        stays_on_the_gpu(runtime.Session(path, webgpu), net, x, EXPORTED["int8-weights"])
        assert runtime.Session(path, "cpu", 1).precision == "fp32"  # what it computes in
    assert report.bytes < 0.27 * whole


def test_half_precision_needs_f16(webgpu: str, runtime: ModuleType, make: Callable[..., Path]) -> None:
    """A software adapter has none; where there is one, all of the file runs."""
    net, path = NUMPY.CapsNet(SPEC, PARAMS), make(precision="fp16")
    if SOFTWARE:
        with pytest.raises(
            BackendError, match=f"{GPU} cannot run .*: this GPU has no f16, in which an fp16 file computes"
        ):
            runtime.Session(path, webgpu)
        return
    stays_on_the_gpu(runtime.Session(path, webgpu), net, random_images(SPEC, 2, dtype="float32"), EXPORTED["fp16"])


def test_verify_takes_any_provider(webgpu: str) -> None:
    rows = agree.verify(Model(SPEC, PARAMS, ()), providers=("cpu", webgpu))
    assert [row.engine for row in rows[-2:]] == ["ONNX Runtime", "ONNX Runtime webgpu"]
    assert all(row.agrees for row in rows)
    with pytest.raises(BackendError, match="has no nonsense"):
        agree.verify(Model(SPEC, PARAMS, ()), providers=("nonsense",))


def test_bench_measures_what_is_here_and_says_what_is_not(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from capscore import cli

    bench, out = need("capscore.export.bench", "onnx"), tmp_path / "bench.json"
    NUMPY.CapsNet(SPEC, PARAMS).save(tmp_path / "m.safetensors")
    engines = ["--engine", "ORT cpu", "--engine", "OpenVINO", "--engine", "tensorrt-rtx"]
    how = ["--batches", "1,3", "--rounds", "2", "--threads", "1", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["capscore", "bench", str(tmp_path / "m.safetensors"), *engines, *how])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    said, found = capsys.readouterr().out, json.loads(out.read_text())
    assert found["machine"]["cpu"] in said
    assert "not here: ORT tensorrt-rtx: there is no onnxruntime_ep_nv_tensorrt_rtx" in said
    rows = {(row["engine"], row["format"]): row for row in found["rows"]}
    assert [format for name, format in rows if name == "ORT cpu"] == ["fp32", "int8-weights", "bytes"]
    for (name, format), row in rows.items():
        if row["absent"] is None:
            tolerance = EXPORTED["int8-weights" if "bf16" in name else format.replace("bytes", "fp32")]
            assert list(row["batches"]) == ["1", "3"]
            assert all(0 < each["ms"] <= each["p99_ms"] for each in row["batches"].values())
            assert row["difference"] < tolerance
            assert row["start_s"] > row["load_s"] > 0
            assert row["bytes"] > 0
    assert rows["ORT cpu", "fp32"]["difference"] < FLOAT32
    assert list(rows["ORT cpu", "fp32"]["nodes"]) == ["CPUExecutionProvider"]
    found = bench.bench(make(batch=2, byte_images=True), engines=["ORT cpu"], rounds=1)  # a fixed batch is the only
    assert [(row["format"], list(row["batches"])) for row in found["rows"]] == [("bytes", [2])]
    (row,) = bench.bench(make(), engines=["ORT cpu"], batches=(1, 10**9), rounds=1)["rows"]
    assert list(row["batches"]) == [1]  # the other would take longer than it may
    with pytest.raises(CapscoreError, match="there is no engine abacus; choose of ORT cpu, "):
        bench.bench(make(), engines=["abacus"])


def test_bench_tells_of_a_process_that_ended(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    bench = need("capscore.export.bench", "onnx")
    monkeypatch.setattr(bench.sys, "executable", "/bin/false")
    (row,) = bench.bench(make(), engines=["ORT cpu"], rounds=1)["rows"]
    assert row["absent"] == "it ended with 1"


# Devices, options, errors


def test_devices_are_chosen_by_number_or_name(webgpu: str, runtime: ModuleType, make: Callable[..., Path]) -> None:
    path, x = make(), random_images(SPEC, 1, dtype="float32")
    expected = NUMPY.CapsNet(SPEC, PARAMS)(x).lengths
    for device in (0, "cpu" if SOFTWARE else "gpu"):
        close(runtime.Session(path, webgpu, device=device)(x).lengths, expected, FLOAT32)
    for device in (7, "Radeon of another machine"):
        with pytest.raises(BackendError, match=rf"{GPU} has no device '?{device}'?; it has 0 \((CPU|GPU) .*\)"):
            runtime.Session(path, webgpu, device=device)


def test_options_reach_the_provider(webgpu: str, runtime: ModuleType, make: Callable[..., Path]) -> None:
    path = make()
    assert runtime.Session(path, webgpu)._session.get_provider_options()[GPU]["preferredLayout"] == "NCHW"
    session = runtime.Session(path, webgpu, options={"preferredLayout": "NHWC"})
    assert session._session.get_provider_options()[GPU]["preferredLayout"] == "NHWC"
    with pytest.raises(BackendError, match=r"cannot start it: .*Invalid preferred layout: nonsense$"):
        runtime.Session(path, webgpu, options={"preferredLayout": "nonsense"})


def test_a_plugin_that_is_not_installed(
    runtime: ModuleType, providers: ModuleType, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, row in providers.PROVIDERS.items():
        if row.module is not None:
            monkeypatch.setattr(providers, "_offered", lambda row: [])
            monkeypatch.setitem(sys.modules, row.module, None)
            with pytest.raises(BackendError, match=rf"there is no {row.module} for .*pip install 'capscore\[{name}\]'"):
                runtime.Session(make(), name)
    monkeypatch.delattr(providers.onnxruntime, "register_execution_provider_library")
    with pytest.raises(
        BackendError, match=r"plugins need ONNX Runtime 1\.24, and this is .*pip install -U onnxruntime"
    ):
        runtime.Session(make(), "webgpu")


def test_a_plugin_that_finds_no_device(webgpu: str, make: Callable[..., Path]) -> None:
    """In a process of its own: what is registered stays. It is asked again, so that the cure cures."""
    code = (
        "import os, sys; from capscore.export.runtime import Session; from capscore.errors import BackendError\n"
        "try: Session(sys.argv[1], 'webgpu')\n"
        "except BackendError as error: print(error)\n"
        "os.environ['ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER'] = '1'\n"
        "print(Session(sys.argv[1], 'webgpu').provider)\n"
    )
    there = {name: value for name, value in os.environ.items() if name != "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"}
    if SOFTWARE:  # the fixture loads it into its own process
        there["LD_LIBRARY_PATH"] = str(CHROMIUM)
    command = [sys.executable, "-c", code, str(make())]
    said = subprocess.run(command, env=there, capture_output=True, text=True, check=True).stdout
    if SOFTWARE:
        wanted = f"{GPU} finds no device here; it takes a GPU, or with ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1 in the"
        assert said.startswith(wanted)
    assert said.endswith(f"{GPU}\n")


def test_a_gpu_without_a_driver(webgpu: str, make: Callable[..., Path], tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("VK_DRIVER_FILES", "VK_ICD_FILENAMES"), str(tmp_path / "none.json"))
    command = [sys.executable, "-c", "import sys; from capscore.export.runtime import Session; "
               "Session(sys.argv[1], 'webgpu')", str(make())]  # fmt: skip
    said = subprocess.run(command, env=os.environ | nowhere, capture_output=True, text=True).stderr
    assert "BackendError" in said
    assert "the GPU has no driver that WebGPU can use: on Linux, install the Vulkan loader" in said


def test_what_a_built_in_provider_does_not_take(
    runtime: ModuleType, providers: ModuleType, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(
        CapscoreError, match=r"CUDAExecutionProvider takes the number of a GPU as its device, not 'RTX'"
    ):
        runtime.Session(make(), "cuda", device="RTX")
    with pytest.raises(
        CapscoreError, match=r"a cache is for tensorrt-rtx and openvino; CUDAExec.* compiles nothing to"
    ):
        runtime.Session(make(), "cuda", cache="folder")


def test_what_is_compiled_is_kept(
    runtime: ModuleType,
    providers: ModuleType,
    make: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """On a row of its own, the CPU as a plugin: it compiles nothing, which ONNX Runtime can be asked to bear."""
    row = providers.Provider("CPUExecutionProvider", module="none", compiles=True)
    monkeypatch.setitem(providers.PROVIDERS, "own", row)
    if not hasattr(providers.onnxruntime, "ModelCompiler"):
        pytest.skip("ONNX Runtime compiles from 1.23 on")
    with pytest.raises(
        BackendError, match=r"CPUExecutionProvider compiles nothing to keep: leave the cache out \(.*compil"
    ):
        runtime.Session(make(), "own", cache=tmp_path / "cache")
    flags = providers.onnxruntime.OrtCompileApiFlags
    monkeypatch.setattr(
        providers.onnxruntime, "OrtCompileApiFlags", type("Flags", (), {"ERROR_IF_NO_NODES_COMPILED": flags.NONE})
    )
    x = random_images(SPEC, 2, dtype="float32")
    expected = NUMPY.CapsNet(SPEC, PARAMS)(x).lengths
    close(runtime.Session(make(), "own", cache=tmp_path / "cache")(x).lengths, expected, FLOAT32)
    (kept,) = (tmp_path / "cache").iterdir()
    written = kept.stat().st_mtime_ns
    close(runtime.Session(make(), "own", cache=tmp_path / "cache")(x).lengths, expected, FLOAT32)
    assert [kept] == list((tmp_path / "cache").iterdir())
    assert kept.stat().st_mtime_ns == written
    runtime.Session(make(batch=1), "own", cache=tmp_path / "cache")  # another file, another place
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_openvino_computes_in_float32(
    runtime: ModuleType, providers: ModuleType, make: Callable[..., Path], tmp_path: Path
) -> None:
    """On Intel's processors; elsewhere the plugin finds no device, and says what else there is."""
    need("onnxruntime_ep_openvino", "openvino-plugin")
    net, x = NUMPY.CapsNet(SPEC, PARAMS), random_images(SPEC, 3, dtype="float32")
    row = providers.PROVIDERS["openvino"]
    try:
        providers.devices(row)
    except BackendError:
        with pytest.raises(BackendError, match=f"{row.name} finds no device here; it takes Intel's processors"):
            runtime.Session(make(), "openvino")
        pytest.skip("the plugin takes Intel's processors alone")
    session = runtime.Session(make(), "openvino", device="CPU")
    close(session(x).capsules, net(x).capsules, FLOAT32)
    close(session(x).lengths, net(x).lengths, FLOAT32)
    assert list(session.placement().nodes) == ["OpenVINOExecutionProvider"]
    for _ in range(2):
        kept = runtime.Session(make(), "openvino", device="CPU", cache=tmp_path / "cache")
        close(kept(x).lengths, net(x).lengths, FLOAT32)
    assert len(list((tmp_path / "cache").iterdir())) == 1
