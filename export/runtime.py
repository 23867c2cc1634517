"""Running an exported model with ONNX Runtime, with the call signature of a model."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from capscore.data.progress import track
from capscore.errors import BackendError, CapscoreError, ModelFileError, ShapeError, check_whole, short
from capscore.export import onnxfile
from capscore.export.binding import HOST, Bound, Captured, gpu_library, library_of
from capscore.model import Output, check_images, one_hot
from capscore.ops import array, check_range, is_float, to_host

try:
    import onnxruntime
except ModuleNotFoundError as error:
    raise BackendError("running ONNX needs ONNX Runtime: pip install 'capscore[onnx]' or 'capscore[gpu]'") from error
if not hasattr(onnxruntime, "InferenceSession"):  # what is left when one of two is uninstalled
    raise BackendError(
        "ONNX Runtime is installed but empty, as when one of two builds was uninstalled: "
        "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'capscore[onnx]' or 'capscore[gpu]'"
    )

MOST_THREADS = 1024  # more than any machine has use for; ONNX Runtime would try to start a million
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
NAMES = {"cpu": (CPU,), "cuda": (CUDA,), "tensorrt": (TENSORRT, CUDA)}  # TensorRT leaves nodes it lacks to CUDA


class _Session:
    """A checked file in ONNX Runtime, and how arrays get in and out."""

    takes: ClassVar[str]

    def __init__(
        self,
        path: str | os.PathLike[str],
        provider: str | Sequence[str] = "auto",
        threads: int = 0,
        *,
        device: int = 0,
        cuda_graph: bool = False,
    ) -> None:
        self.file = onnxfile.read(path)
        takes, gives = self.file.input.name, [output.name for output in self.file.outputs]
        if takes != self.takes:
            other = "DecoderSession" if self.takes == "images" else "Session"
            raise ModelFileError(f"cannot load the ONNX model {path}: it takes {takes}; {other} opens it")
        if takes == "images" and not {"lengths", "scores"} & set(gives):
            raise ModelFileError(
                f"cannot load the ONNX model {path}: it turns ['images'] into {short(gives)}, not images into lengths"
            )
        self.path, self.spec, self.classes = self.file.path, self.file.spec, self.file.classes
        self.provenance, self.batch, self.dtype = self.file.provenance, self.file.batch, self.file.input.dtype
        self.device, self.precision = device, self.file.precision
        if not isinstance(threads, int) or not 0 <= threads <= MOST_THREADS:
            raise CapscoreError(
                f"threads must be 0 (as many as there are cores) to {MOST_THREADS}, not {short(threads)}"
            )
        wanted = _find(provider)
        if cuda_graph and (wanted[0] != CUDA or self.batch is None):
            raise CapscoreError(
                f"CUDA graphs need the provider cuda, not {wanted[0]}, and a fixed batch, "
                f"not {'any' if self.batch is None else self.batch}: `capscore export --batch N` fixes it"
            )
        of_cuda = {"device_id": str(device), "use_tf32": "0", "enable_cuda_graph": str(int(cuda_graph))}
        settings = {CUDA: of_cuda, TENSORRT: {"device_id": str(device)}}
        try:
            self._session = _start(self.path, [(name, settings.get(name, {})) for name in wanted], threads)
        except BackendError as problem:
            if provider != "auto" or cuda_graph:
                raise
            warnings.warn(f"running on the CPU: {problem}", RuntimeWarning, stacklevel=2)
            wanted = NAMES["cpu"]
            self._session = _start(self.path, [(CPU, {})], threads)
        self.provider = wanted[0]
        if TENSORRT in wanted and "NVIDIA_TF32_OVERRIDE" not in os.environ:  # ONNX Runtime has no option for it
            warnings.warn(
                "TensorRT may round the factors of float32 products to TF32, 11 bits: start Python with "
                "NVIDIA_TF32_OVERRIDE=0 in the environment to forbid it to all of NVIDIA's libraries, "
                "or with 1 to have no word of it",
                RuntimeWarning,
                stacklevel=2,
            )
        self._cuda_graph, self._lock = cuda_graph, threading.Lock()
        self._captured: Captured | None = None

    def _run(self, x: Any) -> dict[str, Any]:
        """Return the outputs by name for a checked input; arrays on a GPU stay there if the session runs there."""
        if self.batch not in (None, x.shape[0]):
            raise ShapeError(
                f"{self.path.name} takes exactly {self.batch} at a time, not {x.shape[0]}: "
                "`predict` fills up the last batch, and an export without --batch takes any"
            )
        library = library_of(x) if self.provider in (CUDA, TENSORRT) else HOST
        try:
            x = library.adopt(x, self.dtype, self.device)
            if not self._cuda_graph:
                found = self._bind(library, x).run()
            else:
                with self._lock:
                    if self._captured is None:
                        lasting = gpu_library() if library is HOST else library
                        self._captured = Captured(self._bind(lasting, x, copy=True))
                found = self._captured.run(x, self.dtype)
                found = {name: library.adopt(y, "float32", self.device) for name, y in found.items()}
            return found if self.precision != "int8" else _with_nan(x, found)
        except CapscoreError:
            raise
        except Exception as error:  # what a graph does not keep of its promises shows when it runs; so does memory
            raise ModelFileError(f"cannot run the ONNX model {self.path}: {_reason(error)}") from None

    def _bind(self, library: Any, x: Any, copy: bool = False) -> Bound:
        x = library.adopt(x, self.dtype, self.device)
        shapes = {output.name: (x.shape[0], *output.shape) for output in self.file.outputs}
        name = self.file.input.name
        return Bound(self._session, library, name, library.copy(x) if copy else x, shapes, self.device)


class Session(_Session):
    """An exported model in ONNX Runtime: called on images, it returns the same `Output` as the network.

    `spec`, `classes` and `provenance` are those of the network; `provider` is ONNX Runtime's name of where it runs,
    `batch` the number of images it takes (None for any), `dtype` that of the images and `precision` that of the graph.
    It may be called from several threads.

    Parameters
    ----------
    path : a file that `capscore export` wrote; others are refused with ModelFileError
    provider
        "cpu", "cuda" or "tensorrt", or ONNX Runtime's own name or names in order of preference. One that is absent
        or does not start is a BackendError, never a slower run. "auto" is CUDA if this ONNX Runtime has it, else the
        CPU; not TensorRT, which spends minutes on building an engine when first called.
    threads : of the CPU provider; 0 for as many as there are cores
    device : number of the GPU
    cuda_graph
        Record what a model of a fixed batch does on the GPU and replay it: for small batches, where starting
        kernels takes longer than running them. Calls then run one at a time.
    """

    takes = "images"

    def __call__(self, images: Any) -> Output[Any]:
        """Run the model on images [B, C, H, W]: floats in [0, 1], or uint8 for a model that scales them itself.

        Images of any backend will do. CuPy arrays and torch tensors on a GPU are read there without a copy if the
        session runs there too, and the outputs are arrays of the same library; else they are NumPy's. An output that
        the file lacks is None; couplings begin with the second iteration, those of the first being all equal.

        An image that holds NaN gives NaN. Images in host memory that are clearly beyond [0, 1] bring a RuntimeWarning,
        and a ShapeError where the file is fp16 or int8: the one overflows, the other cuts them off.
        """
        x = array(images)
        check_images(self.spec, x, self.dtype)
        if library_of(x) is HOST:
            check_range(to_host(x), precision=self.precision)
        found = self._run(x)
        couplings: list[list[Any]] = [[] for _ in self.spec.capsules]
        for name, coupling in found.items():  # in the order of the file: by layer, then by iteration
            if match := onnxfile.COUPLINGS.fullmatch(name):
                couplings[int(match[1])].append(coupling)
        by_layer = tuple(map(tuple, couplings)) if any(couplings) else None
        lengths = found.get("lengths")
        scores = found.get("scores", lengths)
        return Output(lengths, found.get("capsules"), found.get("reconstruction"), by_layer, scores)

    def predict(self, images: Any, batch: int = 128, progress: bool = False) -> NDArray[Any]:
        """Return the class scores [N, J] for images [N, C, H, W] as a NumPy array.

        They are run `batch` at a time, or as many as the model is fixed to; the last part is filled up and cut. With
        `progress`, a bar shows how far it is, on a terminal.
        """
        size = self.batch or batch
        check_whole("batch", size, 1)
        images = array(images)
        check_images(self.spec, images, self.dtype)
        found = []
        starts = range(0, max(1, len(images)), size)
        for start in track(starts, "batches") if progress else starts:
            part = images[start : start + size]
            count = len(part)
            if self.batch is not None and count < size:
                part = np.concatenate([to_host(part), np.zeros((size - count, *self.spec.input), self.dtype)])
            found.append(to_host(self(part).scores)[:count])
        return np.concatenate(found)


class DecoderSession(_Session):
    """An exported decoder in ONNX Runtime: called on capsules, it draws images, as `CapsNet.reconstruct` does.

    The parameters are those of `Session`.
    """

    takes = "capsules"

    def __call__(self, capsules: Any, labels: Any = None) -> Any:
        """Draw images [B, C, H, W] from class capsules [B, J, D] of any backend.

        All but one capsule are masked: the longest stays, or the one of `labels` [B] (whole numbers).
        """
        count, dim = self.spec.output.dims
        v = array(capsules)
        if tuple(v.shape[1:]) != (count, dim) or not is_float(v):
            wanted = f"floats [batch, {count}, {dim}]"
            raise ShapeError(f"capsules have shape {list(v.shape)} and dtype {v.dtype}; wanted {wanted}")
        if labels is not None:
            chosen = to_host(labels)
            if chosen.ndim != 1:
                raise ShapeError(f"labels have shape {list(chosen.shape)}; an exported decoder takes one per image")
            v = to_host(v) * one_hot(chosen, v.shape[0], count)[:, :, None]  # the graph keeps the longest
        return self._run(v)["reconstruction"]


def _with_nan(x: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Return outputs that are NaN where the input was, for a graph of whole numbers, which have none.

    It is computed where the arrays lie, in any library, and nothing waits for it.
    """
    if not is_float(x):
        return found
    nan = (x * 0.0).sum(axis=tuple(range(1, x.ndim)))  # [B], 0 where all is finite
    return {name: y + nan.reshape(-1, *[1] * (y.ndim - 1)) for name, y in found.items()}


def _pair() -> str | None:
    """Return what is wrong if both builds of ONNX Runtime have been installed over each other."""
    try:
        for name in ("onnxruntime", "onnxruntime-gpu"):
            metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
    return (
        "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: pip uninstall both, "
        "then install one: pip install 'capscore[onnx]' or 'capscore[gpu]'"
    )


def _find(provider: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of ONNX Runtime's providers that are meant, or say which is absent and what brings it."""
    there = onnxruntime.get_available_providers()
    if provider == "auto":
        if CUDA not in there and (problem := _pair()):
            warnings.warn(f"running on the CPU: {problem}", RuntimeWarning, stacklevel=3)
        return NAMES["cuda" if CUDA in there else "cpu"]
    wanted = NAMES.get(provider, (provider,)) if isinstance(provider, str) else tuple(provider)
    if not wanted:
        raise BackendError("no provider is named; choose auto, cpu, cuda, tensorrt or ONNX Runtime's own names")
    if absent := [name for name in wanted if name not in there]:
        cure = "another build of ONNX Runtime brings it"
        if absent[0] in (CUDA, TENSORRT):
            cure = "pip uninstall onnxruntime, then pip install 'capscore[gpu]'"
        raise BackendError(f"this ONNX Runtime has no {absent[0]}, only {', '.join(there)}; {_pair() or cure}")
    return wanted


def _start(path: Path, providers: list[tuple[str, dict[str, str]]], threads: int) -> Any:
    """Return ONNX Runtime's session; ModelFileError if it is the file's fault, BackendError if a provider's."""
    names = [name for name, _ in providers]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what is an error is raised; it would also be printed, with names from the file
    if CUDA in names and hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(sys.stderr):  # it prints what it cannot load
            onnxruntime.preload_dlls()
    try:
        session = onnxruntime.InferenceSession(_source(path), options, providers, enable_fallback=0)
        lost = [name for name in names if name not in session.get_providers()]
        reason = "a library or the driver is missing"
    except Exception as error:  # ONNX Runtime's errors share no base class; those of providers are plain ones
        if names == [CPU] or not isinstance(error, RuntimeError | ValueError):
            raise ModelFileError(f"cannot load the ONNX model {path}: {_reason(error)}") from None
        lost, reason = names[:1], _reason(error)
    if lost:
        cures = {CUDA: "pip install 'onnxruntime-gpu[cuda,cudnn]'", TENSORRT: "pip install tensorrt"}
        cure = f"; {cures[lost[0]]} brings the libraries" if lost[0] in cures else ""
        raise BackendError(f"this ONNX Runtime has {lost[0]} but cannot start it: {reason}{cure}")
    return session


def _source(path: Path) -> str | bytes:
    """Return the path, or the file itself where the path is not UTF-8, which ONNX Runtime cannot take."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return path.read_bytes()
    return name


def _reason(error: Exception) -> str:
    """Return the first line of an error; ONNX Runtime's go on for pages, with the reason at the line's end."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line if len(line) <= 300 else f"{line[:80]} … {line[-217:]}"
