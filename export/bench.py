"""Engines side by side on one model: parity, latency, memory, file size, start, and where the nodes run.

Every contender has a process of its own, which is told a batch and answers with times. A round asks each of them once;
between two, all processes sleep. `python -m capscore.export.bench` is such a process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore import backend, modelfile
from capscore.agree import Truth, hard_images, largest
from capscore.errors import BackendError, CapscoreError
from capscore.export import onnx, onnxfile
from capscore.export.machine import about, peak_mb
from capscore.ops import to_host

SAMPLE = 0.2  # seconds that a contender runs at a time, warm as in a loop of a user's
PAUSE = 0.1  # seconds: the threads of the one before still spin, waiting for work
PACKAGES = (
    "onnx", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-webgpu", "onnxruntime-ep-openvino",
    "onnxruntime-ep-nv-tensorrt-rtx", "openvino", "torch",
)  # fmt: skip
FORMATS: dict[str, dict[str, Any]] = {
    "fp32": {}, "fp16": {"precision": "fp16"}, "int8": {"precision": "int8"},
    "int8-weights": {"precision": "int8-weights"}, "bytes": {"byte_images": True},
}  # fmt: skip

Run = Callable[[NDArray[Any]], Any]  # images [B, C, H, W] → an `Output`, or arrays by name


@dataclass(frozen=True)
class Engine:
    """What runs a model: how it opens a file, and the formats that make sense there. Without one it takes the model."""

    open: Callable[..., Run]
    formats: tuple[str, ...]
    how: str


def _session(path: str, provider: str, threads: int) -> Any:
    from capscore.export.runtime import Session

    return Session(path, provider, threads)


def _openvino(path: str, hint: str, threads: int) -> Run:
    try:
        import openvino
    except ModuleNotFoundError:
        raise BackendError("there is no openvino: pip install openvino") from None
    settings = {"INFERENCE_PRECISION_HINT": hint} | ({"INFERENCE_NUM_THREADS": str(threads)} if threads else {})
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda x: {output.get_any_name(): np.array(y) for output, y in compiled([x]).items()}


def _torch(path: str, how: str, threads: int) -> Run:
    net = backend("torch").load(path)
    import torch

    if threads:
        torch.set_num_threads(threads)
    run = torch.compile(net) if how == "compiled" else net

    def call(x: NDArray[Any]) -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=how == "bf16"):
            return run(torch.from_numpy(x))

    return call


ENGINES = {
    "ORT cpu": Engine(_session, ("fp32", "int8", "int8-weights", "bytes"), "cpu"),
    "ORT cuda": Engine(_session, ("fp32", "fp16"), "cuda"),
    "ORT tensorrt": Engine(_session, ("fp32", "fp16"), "tensorrt"),
    "ORT tensorrt-rtx": Engine(_session, ("fp32", "fp16"), "tensorrt-rtx"),
    "ORT openvino": Engine(_session, ("fp32", "int8"), "openvino"),
    "ORT webgpu": Engine(_session, ("fp32", "fp16"), "webgpu"),
    "OpenVINO": Engine(_openvino, ("fp32", "int8"), "f32"),
    "OpenVINO bf16": Engine(_openvino, ("fp32",), "bf16"),
    "torch": Engine(_torch, (), "eager"),
    "torch compiled": Engine(_torch, (), "compiled"),
    "torch bf16": Engine(_torch, (), "bf16"),
}


@dataclass
class Row:
    """One contender: what it is, and what was measured. `batches` holds milliseconds; `absent` says why it is not here.

    `difference` is the largest of scores, lengths and capsules from NumPy in float64, or of an .onnx file from ONNX
    Runtime on the CPU. `start_s` goes from nothing to the first answer, imports of Python included; `load_s` is the
    opening of the file alone. `nodes` counts by provider.
    """

    engine: str
    format: str
    bytes: int
    start_s: float = 0.0
    load_s: float = 0.0
    difference: float | None = None
    peak_mb: float | None = None
    nodes: dict[str, int] | None = None
    copies: int | None = None
    batches: dict[int, dict[str, float]] = field(default_factory=dict)
    absent: str | None = None


def bench(
    path: Path,
    *,
    engines: Sequence[str] = (),
    batches: Sequence[int] = (1, 32, 128),
    rounds: int = 10,
    threads: int = 0,
    longest: float = 10.0,
    calibration: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Measure engines on a model, a .safetensors file or an export, and return machine, versions and rows.

    Parameters
    ----------
    engines : names of `ENGINES`, or parts of them; all when empty
    batches, rounds : how many images at a time, and how often each contender is asked
    threads : of each engine on the CPU; 0 for as many as it likes
    longest : seconds that a batch may take, by what one image took: larger ones are left out
    calibration : images [N, C, H, W] of the kind that the model will see; without them there is no int8
    """
    chosen = {name: ENGINES[name] for name in ENGINES if not engines or any(part in name for part in engines)}
    if not chosen:
        raise CapscoreError(f"there is no engine {', '.join(engines)}; choose of {', '.join(ENGINES)}")
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as folder:
        files, shape, fixed, wanted = _files(path, Path(folder), chosen, calibration)
        np.save(Path(folder) / "images.npy", _images(shape))
        try:
            for engine, format in _contenders(chosen, files):
                workers.append(Worker(engine, format, files[format], f"{folder}/images.npy", threads, fixed))
            _measure(workers, (fixed,) if fixed else batches, rounds, longest)
        finally:
            for worker in workers:
                worker.close()
    wanted = wanted or next((worker.said for worker in workers if worker.said), {})
    for worker in workers:
        apart = [largest(said, wanted[name]) for name, said in worker.said.items() if name in wanted]
        worker.row.difference = max(apart, default=None)
    rows = [asdict(worker.row) for worker in workers]
    return {"model": path.name, "machine": about(*PACKAGES), "threads": threads, "rounds": rounds, "rows": rows}


class Worker:
    """A process that holds one contender; the row of what is known of it, and what it `said` of some images."""

    def __init__(self, engine: str, format: str, file: Path, images: str, threads: int, fixed: int | None) -> None:
        self.row, self.said = Row(engine, format, file.stat().st_size), dict[str, Any]()
        task = {"engine": engine, "file": str(file), "images": images, "threads": threads, "batch": fixed or 1,
                "bytes": format == "bytes"}  # fmt: skip
        command = [sys.executable, "-m", "capscore.export.bench", json.dumps(task)]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - `close` does
        begun = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        if found := self._listen():
            self.row.start_s, self.row.load_s = time.perf_counter() - begun, found["load_s"]
            self.said = self.ask("outputs")

    def ask(self, question: str) -> dict[str, Any]:
        """Return the answer, {} if the process has ended."""
        if self.row.absent is None:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(f"{question}\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                pass
        return self._listen()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _listen(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while self.row.absent is None:
            line = self._process.stdout.readline()
            if line.startswith('{"'):
                found: dict[str, Any] = json.loads(line)
                self.row.absent = found.get("absent")
                return {} if self.row.absent else found
            if not line:
                self._process.wait()
                self._errors.seek(0)
                said = self._errors.read().strip().splitlines() or [f"it ended with {self._process.returncode}"]
                self.row.absent = said[-1]
        return {}


def _images(shape: tuple[int, ...]) -> NDArray[Any]:
    return np.concatenate(list(hard_images(shape, 2))).astype(np.float32)


def _files(
    path: Path, folder: Path, chosen: dict[str, Engine], calibration: NDArray[Any] | None
) -> tuple[dict[str, Path], tuple[int, ...], int | None, dict[str, NDArray[Any]]]:
    """Return the file of every format, an image's shape, the batch if it is fixed, and the truth if it is known."""
    if path.suffix.lower() == ".onnx":
        file = onnxfile.read(path)
        if file.input.name != "images":
            raise CapscoreError(f"{path} takes {file.input.name}: bench measures whole networks")
        format = "bytes" if file.input.dtype == "uint8" else file.precision
        return {format: path}, file.spec.input, file.batch, {}
    model = modelfile.read(path)
    net = backend("numpy").CapsNet(model.spec, model.params, dtype="float32")
    files = {"": path}
    for name in dict.fromkeys(name for engine in chosen.values() for name in engine.formats):
        if name != "int8" or calibration is not None:
            files[name] = folder / f"{name}.onnx"
            onnx.export(net, files[name], verify=False, calibration=calibration, **FORMATS[name])
    return files, model.spec.input, None, Truth(model.spec, model.params).expect(_images(model.spec.input)).exact


def _contenders(chosen: dict[str, Engine], files: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """Yield engine and format: those that make sense; of an export that is given, all engines that open files."""
    for name, engine in chosen.items():
        formats = engine.formats or ("",)
        if "" not in files and engine.formats:
            formats = tuple(files)
        yield from ((name, format) for format in formats if format in files)


def _measure(workers: Sequence[Worker], batches: Sequence[int], rounds: int, longest: float) -> None:
    one: dict[int, float] = {}  # seconds that one image takes
    for batch in batches:
        times: dict[int, list[float]] = {}
        for i, worker in enumerate(workers):  # once to warm up, which is no measurement
            if worker.row.absent is None and batch * one.get(i, 0.0) <= longest and (found := worker.ask(str(batch))):
                one.setdefault(i, found["s"][-1] / batch)
                times[i] = []
        for _ in range(rounds):
            for i in times:
                time.sleep(PAUSE)
                times[i] += workers[i].ask(str(batch)).get("s", [])
        for i, seconds in times.items():
            if seconds:
                low, middle, high = np.percentile(seconds, [25, 50, 99]).tolist()
                found = {"ms": middle * 1e3, "quartile_ms": low * 1e3, "p99_ms": high * 1e3, "images_s": batch / middle}
                workers[i].row.batches[batch] = found | {"runs": len(seconds)}
    for worker in workers:
        found = worker.ask("end")
        worker.row.peak_mb, worker.row.nodes, worker.row.copies = (found.get(k) for k in ("peak_mb", "nodes", "copies"))


def serve(task: dict[str, Any]) -> None:
    """Be a worker: open the file, answer once, then run for every batch on standard input."""
    engine, images = ENGINES[task["engine"]], np.load(task["images"])
    if task["bytes"]:
        images = np.round(images * 255).astype(np.uint8)
    begun = time.perf_counter()
    try:
        run = engine.open(task["file"], engine.how, task["threads"])
        load = time.perf_counter() - begun
        images = np.resize(images, (max(len(images), task["batch"]), *images.shape[1:]))
        run(images[: task["batch"]])
    except CapscoreError as error:
        print(json.dumps({"absent": str(error)}), flush=True)
        return
    print(json.dumps({"load_s": load}), flush=True)
    for line in sys.stdin:
        if line == "end\n":
            break
        if line == "outputs\n":
            print(json.dumps(_outputs(run(images if task["batch"] == 1 else images[: task["batch"]]))), flush=True)
            continue
        batch, seconds = np.resize(images, (int(line), *images.shape[1:])), list[float]()
        while sum(seconds) < SAMPLE:
            begun = time.perf_counter()
            run(batch)
            seconds.append(time.perf_counter() - begun)
        print(json.dumps({"s": seconds}), flush=True)
    found: dict[str, Any] = {"peak_mb": peak_mb()}
    if hasattr(run, "placement"):
        nodes, copies = run.placement()
        found |= {"nodes": {name: len(those) for name, those in nodes.items()}, "copies": copies}
    print(json.dumps(found), flush=True)


def _outputs(found: Any) -> dict[str, Any]:
    """Return an engine's answer as lists, by name."""
    names = ("scores", "lengths", "capsules")
    arrays = found if isinstance(found, dict) else {name: getattr(found, name) for name in names}
    return {name: to_host(arrays[name]).tolist() for name in names if arrays.get(name) is not None}


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
