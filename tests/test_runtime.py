"""Sessions: providers, fixed batches, bytes, decoders, I/O binding, threads, and files that are refused."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import FLOAT32, NUMPY, backend, close, need, random_images, random_params, small_spec

from capscore import PRESETS
from capscore.errors import BackendError, CapscoreError, ModelFileError, ShapeError

SPEC = small_spec()


@pytest.fixture(scope="module")
def net() -> Any:
    return NUMPY.CapsNet(SPEC, random_params(SPEC, dtype="float32"), classes=["ant", "bee", "cat"])


@pytest.fixture(scope="module")
def make(onnx_export: ModuleType, net: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Export the network; each set of options once."""
    folder, made = tmp_path_factory.mktemp("exports"), dict[str, Path]()

    def export(**options: Any) -> Path:
        name = json.dumps(options)
        if name not in made:
            made[name] = folder / f"{len(made)}.onnx"
            write = onnx_export.export_decoder if options.pop("decoder", False) else onnx_export.export
            write(net, made[name], verify=False, **options)
        return made[name]

    return export


@pytest.fixture
def providers(runtime: ModuleType) -> ModuleType:
    """The table of providers."""
    return need("capscore.export.providers", "onnx")


def test_a_session_knows_its_network(runtime: ModuleType, make: Callable[..., Path], net: Any) -> None:
    session = runtime.Session(make(), "cpu", threads=1)
    assert (session.spec, session.classes, session.provider) == (SPEC, net.classes, "CPUExecutionProvider")
    assert (session.batch, session.dtype) == (None, "float32")
    assert runtime.Session(make(), "CPUExecutionProvider", 1).provider == "CPUExecutionProvider"
    assert runtime.Session(make(), ["CPUExecutionProvider"], 1).provider == "CPUExecutionProvider"
    assert session(random_images(SPEC, 0)).capsules.shape == (0, 3, 6)


def test_a_fixed_batch(runtime: ModuleType, make: Callable[..., Path], net: Any) -> None:
    session, images = runtime.Session(make(batch=4), "cpu", 1), random_images(SPEC, 10, dtype="float32")
    assert session.batch == 4
    close(session(images[:4]).lengths, net(images[:4]).lengths, FLOAT32)
    with pytest.raises(ShapeError, match=r"takes exactly 4 at a time, not 3: `predict` fills up the last batch"):
        session(images[:3])
    for count in (10, 8, 1, 0):
        close(session.predict(images[:count]), net(images[:count]).lengths, FLOAT32)
    with pytest.raises(ShapeError, match="images have shape"):
        session.predict(images[:3, 0])


def test_predict_goes_in_parts(runtime: ModuleType, make: Callable[..., Path], net: Any) -> None:
    session, images = runtime.Session(make(), "cpu", 1), random_images(SPEC, 7)
    for batch in (1, 3, 7, 100):
        close(session.predict(images, batch), net(images).lengths.astype(np.float32), FLOAT32)
    with pytest.raises(ShapeError, match="batch must be a whole number of at least 1, not 0"):
        session.predict(images, 0)


def test_the_bar_is_for_terminals(
    runtime: ModuleType, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, images = runtime.Session(make(), "cpu", 1), random_images(SPEC, 3)

    def printed(terminal: bool, progress: bool) -> str:
        stream = io.StringIO()
        stream.isatty = lambda: terminal  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        session.predict(images, 1, progress=progress)
        return stream.getvalue()

    assert "batches" in printed(True, True)
    assert printed(False, True) == printed(True, False) == ""


def test_bytes(runtime: ModuleType, make: Callable[..., Path], net: Any) -> None:
    session = runtime.Session(make(byte_images=True, batch=4), "cpu", 1)
    pixels = np.random.default_rng(0).integers(0, 256, (5, *SPEC.input), np.uint8)
    assert session.dtype == "uint8"
    close(session.predict(pixels), net(pixels.astype(np.float32) / 255).lengths, FLOAT32)
    with pytest.raises(ShapeError, match="dtype float32; this model takes uint8, 0 to 255, and scales them itself"):
        session(pixels[:4].astype(np.float32))
    with pytest.raises(ShapeError, match="images have shape"):
        session(pixels[:, :1])


def test_outputs_that_are_not_there(runtime: ModuleType, make: Callable[..., Path], net: Any) -> None:
    images = random_images(SPEC, 2, dtype="float32")
    out = runtime.Session(make(outputs=["lengths"]), "cpu", 1)(images)
    assert out[1:4] == (None, None, None)
    assert out.scores is out.lengths
    close(out.lengths, net(images).lengths, FLOAT32)
    with pytest.raises(ModelFileError, match=r"it turns \['images'\] into \['capsules'\], not images into lengths"):
        runtime.Session(make(outputs=["capsules"]))


def test_lengths_are_not_taken_for_scores_that_a_network_has_of_its_own(runtime: ModuleType, tmp_path: Path) -> None:
    from capscore.export.onnx import export

    net, images = NUMPY.CapsNet(PRESETS["small-inverted"]), random_images(PRESETS["small-inverted"], 2)
    images = images.astype(np.float32)
    export(net, tmp_path / "lengths.onnx", outputs=["lengths"])
    session = runtime.Session(tmp_path / "lengths.onnx", "cpu", 1)
    assert session(images).scores is None
    with pytest.raises(ModelFileError, match=r"lengths\.onnx gives no scores, .* export it with scores among its"):
        session.predict(images)
    export(net, tmp_path / "scores.onnx", outputs=["scores"])
    close(runtime.Session(tmp_path / "scores.onnx", "cpu", 1).predict(images), net(images).scores, FLOAT32)


def test_couplings_come_by_layer(runtime: ModuleType, make: Callable[..., Path], net: Any) -> None:
    images = random_images(SPEC, 2, dtype="float32")
    out, expected = runtime.Session(make(outputs=["lengths", "couplings"]), "cpu", 1)(images), net(images, True)
    assert [len(layer) for layer in out.couplings] == [1, 2]
    for layer, wanted in zip(out.couplings, expected.couplings, strict=True):
        for c, of_net in zip(layer, wanted[1:], strict=True):
            close(c, of_net, FLOAT32)


def test_a_decoder(runtime: ModuleType, make: Callable[..., Path], net: Any) -> None:
    session, v = runtime.DecoderSession(make(decoder=True), threads=1), net(random_images(SPEC, 4)).capsules
    close(session(v), net.reconstruct(v), FLOAT32)
    labels = np.array([2, 0, 1, 1])
    close(session(v, labels), net.reconstruct(v, labels), FLOAT32)
    close(session(v.tolist(), [2, 0, 1, 1]), net.reconstruct(v, labels), FLOAT32)
    with pytest.raises(ShapeError, match=r"capsules have shape \[4, 3\] and dtype float32; wanted floats \[batch, 3, "):
        session(v[..., 0])
    with pytest.raises(ShapeError, match="labels go from 0 to 3; wanted 0 to 2"):
        session(v, [0, 1, 2, 3])
    with pytest.raises(ShapeError, match=r"labels have shape \[4, 3\]; an exported decoder takes one per image"):
        session(v, np.ones((4, 3)))
    with pytest.raises(ModelFileError, match="it takes capsules; DecoderSession opens it"):
        runtime.Session(make(decoder=True))
    with pytest.raises(ModelFileError, match="it takes images; Session opens it"):
        runtime.DecoderSession(make())


def test_a_decoder_of_a_network_whose_lengths_tell_nothing(
    runtime: ModuleType, onnx_export: ModuleType, tmp_path: Path
) -> None:
    """Inverted attention normalises poses: all are of one length, but for rounding."""
    net = NUMPY.CapsNet(PRESETS["small-inverted"])
    onnx_export.export_decoder(net, tmp_path / "d.onnx")  # which compares
    session, said = runtime.DecoderSession(tmp_path / "d.onnx", "cpu", 1), net(random_images(net.spec, 4))
    assert np.ptp(said.lengths) < 1e-3
    close(session(said.capsules, said.scores.argmax(1)), net.reconstruct(said), FLOAT32)
    with pytest.raises(ShapeError, match=r"give labels, out.scores.argmax\(1\) of what the network said"):
        session(said.capsules)


def test_threads_share_a_session(runtime: ModuleType, make: Callable[..., Path]) -> None:
    session, images = runtime.Session(make(), "cpu", 1), random_images(SPEC, 64)
    serial = session.predict(images, 4)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: session.predict(images, 4), range(16)):
            np.testing.assert_array_equal(found, serial)
    for threads in (-1, 1025, 1.5, "2"):
        with pytest.raises(CapscoreError, match=rf"threads must be 0 .* to 1024, not '?{threads}"):
            runtime.Session(make(), threads=threads)
    for batch in (0, 2.5, "4"):
        with pytest.raises(ShapeError, match="batch must be a whole number of at least 1"):
            session.predict(images, batch)


# Providers


def test_a_provider_that_is_absent_is_no_slower_run(
    runtime: ModuleType, providers: ModuleType, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(providers, "_pair", lambda: None)
    for name in ("cuda", "CUDAExecutionProvider", "tensorrt", ["CUDAExecutionProvider", "CPUExecutionProvider"]):
        with pytest.raises(BackendError, match=r"no (CUDA|Tensorrt)ExecutionProvider, only CPU.*capscore\[gpu\]"):
            runtime.Session(make(), name)
    with pytest.raises(
        BackendError, match=r"has no NoSuchProvider, only CPUExecutionProvider and .*webgpu; another build"
    ):
        runtime.Session(make(), "NoSuchProvider")
    for none in ([], 5, [5]):
        with pytest.raises(BackendError, match="no provider is named"):
            runtime.Session(make(), none)


def test_two_builds_in_one_folder_explain_themselves(
    runtime: ModuleType, providers: ModuleType, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(providers.metadata, "version", lambda name: "1.0")
    problem = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: pip uninstall both"
    with pytest.raises(BackendError, match=problem):
        runtime.Session(make(), "cuda")
    with pytest.warns(RuntimeWarning, match=f"running on the CPU: {problem}") as told:
        runtime.Session(make())
    assert told[0].filename == __file__


def test_options_are_never_lost(runtime: ModuleType, make: Callable[..., Path]) -> None:
    with pytest.raises(CapscoreError, match=r"CPUExecutionProvider takes no options: leave .*arena"):
        runtime.Session(make(), "cpu", options={"arena": "off"})


class Dropped:
    """ONNX Runtime's session where the libraries of a provider do not load: it says so on stderr and goes on."""

    def __init__(self, path: str, options: Any, providers: list[tuple[str, dict[str, str]]], **_: Any) -> None:
        self.asked = providers

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_a_provider_that_does_not_start(
    runtime: ModuleType, providers: ModuleType, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(providers.onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(providers.onnxruntime, "preload_dlls", lambda: print("Failed to load libcublas"), raising=False)
    monkeypatch.setattr(providers.onnxruntime, "InferenceSession", Dropped)
    with pytest.raises(BackendError, match=r"has CUDAExecutionProvider but cannot start it: a library or the driver"):
        runtime.Session(make(), "cuda")
    with pytest.warns(RuntimeWarning, match=r"running on the CPU: .*onnxruntime-gpu\[cuda,cudnn\]") as told:
        session = runtime.Session(make(), options={"gpu_mem_limit": "1"})
    assert session.provider == "CPUExecutionProvider"
    assert session._session.asked == [("CPUExecutionProvider", {})]
    assert told[0].filename == __file__

    def refuse(*args: Any, **options: Any) -> None:
        raise RuntimeError("Please install TensorRT libraries\nand more")

    monkeypatch.setattr(providers.onnxruntime, "InferenceSession", refuse)
    with pytest.raises(BackendError, match=r"cannot start it: Please install TensorRT libraries; pip install tensorrt"):
        runtime.Session(make(), "tensorrt")


class Started(Dropped):
    """ONNX Runtime's session where every provider starts."""

    def get_providers(self) -> list[str]:
        return [name for name, _ in self.asked]


def test_float32_is_float32_or_a_word_is_said(
    runtime: ModuleType, providers: ModuleType, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CUDA provider has an option for TF32, TensorRT's listens to the environment alone."""
    there = ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    monkeypatch.setattr(providers.onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(providers.onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(providers.onnxruntime, "InferenceSession", Started)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    assert dict(runtime.Session(make(), "cuda")._session.asked)["CUDAExecutionProvider"]["use_tf32"] == "0"
    with pytest.warns(RuntimeWarning, match="TensorRT may round .* NVIDIA_TF32_OVERRIDE=0") as told:
        session = runtime.Session(make(), "tensorrt")
    assert told[0].filename == __file__
    assert dict(session._session.asked)["CUDAExecutionProvider"]["use_tf32"] == "0"  # for the nodes left to it
    for value in "01":
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", value)
        runtime.Session(make(), "tensorrt")  # warnings are errors


def test_cuda_graphs_need_a_gpu_and_a_fixed_batch(runtime: ModuleType, make: Callable[..., Path]) -> None:
    with pytest.raises(CapscoreError, match="need the provider cuda, not CPUExecutionProvider, and a fixed batch"):
        runtime.Session(make(batch=4), "cpu", cuda_graph=True)


def test_an_onnxruntime_with_nothing_in_it(monkeypatch: pytest.MonkeyPatch, runtime: ModuleType) -> None:
    """What remains when one of two runtimes is uninstalled."""
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    for name in ("runtime", "providers"):
        monkeypatch.delitem(sys.modules, f"capscore.export.{name}")
    with pytest.raises(
        BackendError, match="is installed but empty, as when one of two builds was uninstalled: pip uninstall"
    ):
        __import__("capscore.export.runtime")


# I/O binding: the code for GPUs, run over memory of the host


class FakeGpu:
    """torch where its GPU is the host: the adapter's own code but for the name of the memory and the stream."""

    def __init__(self) -> None:
        from capscore.export.binding import _Torch

        self.real, self.place, self.waits, self.allocated = _Torch(), "cpu", 0, 0
        self.real.place = "cpu"
        self.copy, self.fill, self.pointer = self.real.copy, self.real.fill, self.real.pointer

    def adopt(self, x: Any, dtype: str, device: int) -> Any:
        return self.real.adopt(x, dtype, None)  # type: ignore[arg-type]  # to torch, "cpu:0" is another than "cpu"

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        self.allocated += 1
        return self.real.empty(shape, dtype, device)

    def wait(self, device: int) -> None:
        self.waits += 1


@pytest.fixture
def gpu(runtime: ModuleType, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Sessions take the CPU for CUDA, and torch tensors for ones on the GPU."""
    torch, gpu = need("torch", "torch"), FakeGpu()
    monkeypatch.setattr(runtime, "CUDA", "CPUExecutionProvider")
    host = runtime.HOST
    monkeypatch.setattr(runtime, "library_of", lambda x: gpu if isinstance(x, torch.Tensor) else host)
    monkeypatch.setattr(runtime, "gpu_library", lambda: gpu)
    return gpu


def test_tensors_are_read_where_they_lie(
    runtime: ModuleType, make: Callable[..., Path], net: Any, gpu: FakeGpu
) -> None:
    torch = need("torch", "torch")
    session, images = runtime.Session(make(), "cpu", 1), random_images(SPEC, 3, dtype="float32")
    x = torch.from_numpy(images)
    assert gpu.adopt(x, "float32", 0).data_ptr() == x.data_ptr()
    out, expected = session(x), net(images)
    assert (gpu.waits, gpu.allocated) == (1, 3)  # for what torch had still to do; one array per output
    for found, wanted in ((out.lengths, expected.lengths), (out.capsules, expected.capsules)):
        assert isinstance(found, torch.Tensor)
        close(found.numpy(), wanted, FLOAT32)
    # Any layout and float dtype is made what the graph takes.
    for other in (x.double(), x.transpose(2, 3).contiguous().transpose(2, 3), x.clone().requires_grad_()):
        close(session(other).lengths.numpy(), expected.lengths, FLOAT32)
    close(session.predict(x, 2), expected.lengths, FLOAT32)  # always NumPy's
    with pytest.raises(ShapeError, match="images have shape"):
        session(x[0])


@pytest.mark.parametrize("graph", [False, True], ids=["", "cuda_graph"])
def test_nan_in_int8_is_put_back_where_the_tensors_lie(
    runtime: ModuleType, make: Callable[..., Path], gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, graph: bool
) -> None:
    torch = need("torch", "torch")
    seen = random_images(SPEC, 64, dtype="float32")
    path = make(precision="int8", batch=3, calibration=seen.tolist())
    session, images = runtime.Session(path, "cpu", 1), random_images(SPEC, 3, dtype="float32")
    session._cuda_graph = graph
    good = session(torch.from_numpy(images))
    images[1, 0, 2, 2] = np.nan
    from_host = session(images).lengths
    monkeypatch.setattr(runtime, "to_host", None)  # nothing goes there
    out = session(torch.from_numpy(images))
    for found, wanted in ((out.lengths, good.lengths), (out.capsules, good.capsules)):
        assert isinstance(found, torch.Tensor)
        assert torch.isnan(found[1]).all()
        torch.testing.assert_close(found[[0, 2]], wanted[[0, 2]], rtol=0, atol=0)
    assert np.isnan(from_host[1]).all()


def test_fixed_addresses(runtime: ModuleType, make: Callable[..., Path], net: Any, gpu: FakeGpu) -> None:
    torch = need("torch", "torch")
    session = runtime.Session(make(batch=2), "cpu", 1)
    session._cuda_graph = True
    first, second = random_images(SPEC, 2, 1, "float32"), random_images(SPEC, 2, 2, "float32")
    of_first = session(torch.from_numpy(first)).lengths
    of_second = session(second)  # from the host, and back to it
    assert isinstance(of_second.lengths, np.ndarray)
    close(of_first.numpy(), net(first).lengths, FLOAT32)  # not overwritten by the second run
    close(of_second.lengths, net(second).lengths, FLOAT32)
    assert gpu.allocated == 3  # once, however often it runs
    with ThreadPoolExecutor(4) as pool:
        batches = [random_images(SPEC, 2, seed, "float32") for seed in range(20)]
        for images, out in zip(batches, pool.map(session, batches), strict=True):
            close(out.lengths, net(images).lengths, FLOAT32)
    assert gpu.allocated == 3


def test_a_graph_belongs_to_one_thread(
    runtime: ModuleType, make: Callable[..., Path], net: Any, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime keeps a CUDA graph for each thread that runs; what is to be waited for is the caller's."""
    session = runtime.Session(make(batch=2), "cpu", 1)
    session._cuda_graph = True
    real, ran, waited = session._session.run_with_iobinding, set(), set()
    monkeypatch.setattr(
        session._session, "run_with_iobinding", lambda b: (ran.add(threading.current_thread()), real(b))
    )
    monkeypatch.setattr(gpu, "wait", lambda device: waited.add(threading.current_thread()))
    batches = [random_images(SPEC, 2, seed, "float32") for seed in range(6)]
    threads = []
    for images in batches:
        with ThreadPoolExecutor(1) as pool:
            threads.append(pool.submit(threading.current_thread).result())
            close(pool.submit(session, images).result().lengths, net(images).lengths, FLOAT32)
    assert len(ran) == 1
    assert waited == set(threads)
    monkeypatch.setattr(session._session, "run_with_iobinding", lambda b: 1 / 0)
    with pytest.raises(ModelFileError, match="cannot run the ONNX model"):  # an error in that thread is the caller's
        session(batches[0])


@pytest.mark.parametrize("options", [{}, {"batch": 3}])
def test_a_session_on_another_gpu_than_the_current_one(
    runtime: ModuleType, make: Callable[..., Path], net: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CuPy's stand-in refuses work on arrays of another device, and its copies are made on the current one."""
    import fake_cupy

    from capscore.export import binding

    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    library = binding._Cupy()
    monkeypatch.setattr(library, "place", "cpu")
    monkeypatch.setattr(runtime, "CUDA", "CPUExecutionProvider")
    monkeypatch.setattr(runtime, "library_of", lambda x: library if isinstance(x, fake_cupy.ndarray) else runtime.HOST)
    monkeypatch.setattr(fake_cupy.cuda, "synchronized", [])
    monkeypatch.setattr(fake_cupy.ndarray, "__cuda_array_interface__", {}, raising=False)
    session = runtime.Session(make(**options), "cpu", 1, device=1)
    session._cuda_graph = "batch" in options
    images = random_images(SPEC, 3)
    expected = net(images.astype(np.float32))
    there = fake_cupy.cuda.Device(1)
    with there:
        on_it = fake_cupy.asarray(images.astype(np.float32))
    for x in (fake_cupy.asarray(images), fake_cupy.asarray(np.asfortranarray(images)), on_it):
        fake_cupy.cuda.synchronized.clear()
        out = session(x)
        assert out.lengths.device == out.capsules.device == there
        close(out.lengths.get(), expected.lengths, FLOAT32)
        close(out.capsules.get(), expected.capsules, FLOAT32)
        waits = {0, 1} if x.device != there else {1}  # for who made the images, and for the copy of them
        assert set(fake_cupy.cuda.synchronized) == waits
    assert fake_cupy.cuda.Device().id == 0


class Elsewhere:
    """An array on a GPU, of a library with streams of its own, whose memory may be read once DLPack has been asked."""

    is_cuda, __cuda_array_interface__ = True, {}

    def __init__(self, held: np.ndarray) -> None:
        self.held, self.asked = held, 0
        self.dtype, self.shape, self.device = held.dtype, held.shape, types.SimpleNamespace(id=0)

    def detach(self) -> Any:
        return self

    def __dlpack_device__(self) -> Any:
        return self.held.__dlpack_device__()

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        self.asked += 1
        return self.held if stream == 1 else self.held.__dlpack__()


def test_streams_of_two_libraries_meet_by_dlpack(runtime: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address alone says nothing of what has still to be computed."""
    import fake_cupy

    from capscore.export import binding

    torch_caps = backend("torch")
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    monkeypatch.setattr(backend("cupy"), "cupy", fake_cupy)
    monkeypatch.setattr(binding._Torch, "place", "cpu")
    x = Elsewhere(np.arange(6.0))
    on_cupy = backend("cupy").asarray(x), binding._Cupy().adopt(x, "float32", 0)
    on_torch = torch_caps.asarray(x), binding._Torch().adopt(x, "float32", None)  # type: ignore[arg-type]
    assert x.asked == 4
    for found in (*on_cupy, *on_torch):
        np.testing.assert_array_equal(found.get() if hasattr(found, "get") else found.numpy(), np.arange(6.0))


class Pointer:
    ptr = 4096


def test_which_library_an_array_is_of(runtime: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from capscore.export import binding

    def kind(module: str, **attributes: Any) -> Any:
        return type("Array", (), {"__module__": module} | attributes)()

    torch = need("torch", "torch")
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace())
    assert isinstance(binding.library_of(kind("cupy._core")), binding._Cupy)
    assert isinstance(binding.library_of(kind("torch", is_cuda=True)), binding._Torch)
    assert binding.library_of(torch.zeros(1)) is binding.library_of(np.zeros(1)) is binding.HOST
    assert binding._Cupy().pointer(kind("cupy", data=Pointer)) == 4096
    assert isinstance(binding.gpu_library(), binding._Cupy)
    for name in ("cupy", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=r"CUDA graphs keep their arrays in CuPy or torch: .*capscore\[gpu\]"):
        binding.gpu_library()


@pytest.mark.parametrize("library", [pytest.param(name, marks=pytest.mark.gpu(name)) for name in ("cupy", "torch")])
@pytest.mark.parametrize("options", [{}, {"batch": 5}])
def test_zero_copy_on_a_gpu(
    runtime: ModuleType, make: Callable[..., Path], net: Any, library: str, options: dict[str, Any]
) -> None:
    if "CUDAExecutionProvider" not in need("onnxruntime", "onnx").get_available_providers():
        pytest.skip("this ONNX Runtime is for CPUs")
    images, module = random_images(SPEC, 5, dtype="float32"), need(library, library)
    session = runtime.Session(make(**options), "cuda", cuda_graph="batch" in options)
    assert session.provider == "CUDAExecutionProvider"
    expected = net(images)
    for _ in range(3):  # a CUDA graph is captured by the first call and replayed by the others
        x = module.asarray(images) if library == "cupy" else module.from_numpy(images).cuda()
        out = session(x)
        assert type(out.lengths) is type(x)
        assert out.lengths.device == x.device
        close(backend(library).to_numpy(out.lengths), expected.lengths, FLOAT32)
        close(session(images).capsules, expected.capsules, FLOAT32)


# Files that are refused


@pytest.fixture
def damaged(make: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return the path of an export after a change to its protobuf."""
    onnx = need("onnx", "onnx")

    def damage(change: Callable[[Any], Any], **options: Any) -> Path:
        model = onnx.load(make(**options))
        change(model)
        path = tmp_path / "damaged.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return damage


def outside(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    tensor.external_data.add(key="location", value="../../etc/passwd")


def constant_outside(model: Any) -> None:
    node = model.graph.node.add(op_type="Constant", name="far", output=["far"])
    node.attribute.add(name="value", type=4).t.data_location = 1


def branch(model: Any) -> None:
    node = model.graph.node.add(op_type="If", name="branch")
    node.attribute.add(name="then_branch", type=5).g.name = "inner"


def sparse(model: Any) -> None:
    node = model.graph.node.add(op_type="Constant", name="far", output=["far"])
    node.attribute.add(name="value", type=11).sparse_tensor.indices.data_location = 1


def unknown(model: Any) -> None:
    model.graph.MergeFromString(b"\xfa\x3f\x03abc")  # a field 1023 of three bytes


def undecodable(field: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        message = getattr(model.graph, field)[0]
        content = message.SerializeToString()
        at = content.index(message.name.encode())
        end = at + len(message.name)
        message.ParseFromString(content[: end - 1] + b"\xff" + content[end:])

    return change


def ways(descriptor: Any, passed: tuple[str, ...] = ()) -> Iterator[list[Any]]:
    """Yield the fields that lead from a message to a tensor, by every way that passes no kind of message twice."""
    for field in descriptor.fields:
        inner = field.message_type
        if inner is None or inner.name in passed:
            continue
        if inner.name == "TensorProto":
            yield [field]
        for way in ways(inner, (*passed, inner.name)):
            yield [field, *way]


def sizes(i: int, value: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[i].dim_value = value

    return change


def other_spec(model: Any) -> None:
    about = json.loads(model.metadata_props[0].value)
    about["spec"]["input"] = [2, 9, 9]
    model.metadata_props[0].value = json.dumps(about)


REFUSED = {
    "external data": (outside, "is in another file, which is not followed: a capscore model is one file"),
    "an external constant": (constant_outside, "is in another file"),
    "a subgraph": (
        branch,
        r"its \.graph\.node 'branch'\.attribute 'then_branch'\.g is a GraphProto: a capscore model is",
    ),
    "a function": (lambda m: m.functions.add(name="f"), r"its \.functions 'f' is a FunctionProto: .* one flat graph"),
    "training": (lambda m: m.training_info.add(), r"its \.training_info '' is a TrainingInfoProto"),
    "a sparse constant": (sparse, r"its \.graph\.node 'far'\.attribute 'value'\.sparse_tensor is a SparseTensorProto"),
    "what is unknown": (unknown, r"its \.graph says what this version of onnx does not know"),
    "a name in no encoding": (undecodable("output"), r"its \.graph\.output .*\.name is not UTF-8: b'len.*xff'"),
    "a node's name in no encoding": (undecodable("node"), r"its \.graph\.node .*\.output is not UTF-8: b'.*xff'"),
    "no metadata": (lambda m: m.ClearField("metadata_props"), "no capscore metadata"),
    "code for a device": (
        lambda m: m.graph.node.add(op_type="EPContext", name="engine", domain="com.microsoft"),
        r"its node 'engine' holds code compiled for a device",
    ),
    "metadata of another graph": (other_spec, r"its images are \[2, 7, 6\]; its spec says \[2, 9, 9\]"),
    "another output": (
        lambda m: m.graph.output.extend(m.graph.input),
        r"into \[.*'images'\], not images into lengths",
    ),
    "an unknown output": (lambda m: setattr(m.graph.output[0], "name", "lies"), "it has an output 'lies'; known are"),
    "steps of a layer that is not there": (
        lambda m: setattr(m.graph.output[0], "name", "inputs.7"),
        r"it has an output 'inputs\.7'; known are",
    ),
    "steps of another size": (
        lambda m: setattr(m.graph.output[0], "name", "inputs.0"),
        r"its inputs\.0 are \[.*\]; its spec says \[",
    ),
    "no outputs": (lambda m: m.graph.ClearField("output"), r"into \[\], not images into lengths"),
    "a huge image": (sizes(2, 2**50), r"its images are \[2, 1125899906842624, 6\]; its spec says"),
    "a negative size": (sizes(2, -7), r"'images' has the shape .*not \[batch, sizes above 0\]"),
    "a batch of none": (sizes(0, -1), r"'images' has the shape"),
    "two batches": (sizes(0, 3), r"different batches: \[3, None, None, None\]"),
    "doubles": (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 11), "neither of float32 nor of"),
    "lengths of bytes": (lambda m: setattr(m.graph.output[1].type.tensor_type, "elem_type", 2), "uint8, not float32"),
}


def test_data_elsewhere_is_refused_wherever_a_tensor_can_be(runtime: ModuleType, damaged: Callable[..., Path]) -> None:
    onnx = need("onnx", "onnx")
    found = list(ways(onnx.ModelProto.DESCRIPTOR, ("ModelProto",)))
    told = {".".join(field.name for field in way) for way in found}
    assert {"training_info.initialization.node.attribute.t", "graph.node.attribute.sparse_tensor.indices",
            "graph.node.attribute.sparse_tensors.values", "functions.node.attribute.tensors",
            "graph.sparse_initializer.values"} - told == set()  # fmt: skip

    def at(way: list[Any]) -> Callable[[Any], None]:
        def change(message: Any) -> None:
            for field in way:
                place = getattr(message, field.name)
                message = place.add() if hasattr(place, "add") else place
            message.data_location = 1
            message.external_data.add(key="location", value="/etc/passwd")

        return change

    for way in found:
        with pytest.raises(ModelFileError, match=r"in another file|is a \w+: a capscore model is one flat graph"):
            runtime.Session(damaged(at(way)))


@pytest.mark.parametrize("what", REFUSED)
def test_hostile_graphs(runtime: ModuleType, damaged: Callable[..., Path], what: str) -> None:
    change, message = REFUSED[what]
    with pytest.raises(ModelFileError, match=rf"cannot load the ONNX model .*damaged\.onnx: .*({message})"):
        runtime.Session(damaged(change))


def bomb(model: Any) -> None:
    """Let the lengths depend on the largest of 2**60 zeros."""
    model.graph.initializer.add(name="size", data_type=7, dims=[2], int64_data=[2**30, 2**30])
    model.graph.node.add(op_type="ConstantOfShape", input=["size"], output=["zeros"], name="bomb")
    model.graph.node.add(op_type="ReduceMax", input=["zeros"], output=["largest"], name="fuse")
    for node in model.graph.node:
        node.output[:] = ["found" if name == "lengths" else name for name in node.output]
        node.input[:] = ["found" if name == "lengths" else name for name in node.input]
    model.graph.node.add(op_type="Max", input=["found", "largest"], output=["lengths"], name="end")


def test_a_graph_that_would_fill_the_memory(runtime: ModuleType, damaged: Callable[..., Path]) -> None:
    def run() -> None:
        runtime.Session(damaged(bomb, outputs=["lengths"]), threads=1)(random_images(SPEC, 1))

    with pytest.raises(ModelFileError, match=r"^cannot (load|run) the ONNX model .*damaged\.onnx: .{1,300}$"):
        run()


def test_an_oversized_file_is_not_read(runtime: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with open(path, "wb") as file:
        file.truncate(2**31)  # a hole, which takes no space
    assert os.stat(path).st_blocks == 0
    with pytest.raises(ModelFileError, match=r"it has 2,147,483,648 bytes; an ONNX file has less than 2 GiB"):
        runtime.Session(path)


def test_truncated_and_foreign_files(runtime: ModuleType, make: Callable[..., Path], tmp_path: Path) -> None:
    path, whole = tmp_path / "part.onnx", make().read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:-1], b"\x89PNG", json.dumps({}).encode()):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"cannot load the ONNX model .*part\.onnx"):
            runtime.Session(path)


# The command line


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `capscore` with arguments in this process; return what it printed, or its error."""
    from capscore import cli

    def run(*args: Any, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["capscore", *map(str, args)])
        ended = 0
        try:
            cli.main()
        except SystemExit as exit:
            ended = exit.code or 0  # type: ignore[assignment]
        said = capsys.readouterr()
        assert ended == code, said
        return said.out if code == 0 else said.err

    return run


def test_the_command_line_takes_provider_and_threads(
    runtime: ModuleType, make: Callable[..., Path], net: Any, command: Callable[..., str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, *SPEC.input), np.uint8)
    images = {"train_images": pixels, "test_images": pixels}
    np.savez(tmp_path / "set.npz", **images, train_labels=np.arange(40) % 3, test_labels=np.arange(40) % 3)
    net.save(tmp_path / "model.safetensors")
    said = command("eval", tmp_path / "model.safetensors", "--data", tmp_path / "set.npz", "--backend", "numpy")
    for options in ({}, {"batch": 7, "byte_images": True}):
        data = ["--data", tmp_path / "set.npz", "--provider", "cpu", "--threads", "1"]
        assert command("eval", make(**options), *data) == said
    assert command("eval", make(), "--provider", "none", code=1).startswith("capscore: error: this ONNX Runtime has no")
    refused = command("eval", tmp_path / "model.safetensors", "--threads", "1", code=1)
    assert "--provider and --threads are for .onnx models" in refused
    told = command("export", tmp_path / "model.safetensors", tmp_path / "m.onnx", "--triton", tmp_path / "repository")
    assert f"{tmp_path / 'repository' / 'capsnet'}: serve it with" in told
    assert (tmp_path / "repository" / "capsnet" / "1" / "model.onnx").exists()


@pytest.mark.parametrize("what", ["external data", "metadata of another graph", "a subgraph"])
def test_hostile_files_are_one_line_to_the_command(
    damaged: Callable[..., Path], command: Callable[..., str], tmp_path: Path, what: str
) -> None:
    path = damaged(REFUSED[what][0])
    for args in (["inspect", path], ["eval", path], ["predict", path, tmp_path / "any.png"]):
        said = command(*args, code=1)
        assert said.startswith("capscore: error: cannot load the ONNX model")
        assert said.count("\n") == 1
