"""Running an exported model with ONNX Runtime, with the call signature of a model."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capscore.data.progress import track
from capscore.errors import BackendError, CapscoreError, ModelFileError, ShapeError, check_whole, short
from capscore.export import onnxfile, providers
from capscore.export.binding import HOST, Bound, Captured, gpu_library, library_of
from capscore.export.providers import CPU, CUDA, TENSORRT
from capscore.model import Output, check_images, one_hot
from capscore.ops import array, check_range, is_float, to_host

MOST_THREADS = 1024  # more than any machine has use for; ONNX Runtime would try to start a million


class Placement(NamedTuple):
    """Where the nodes of a graph run, names of nodes by ONNX Runtime's name of a provider, and what that costs.

    `copies` is how many arrays one run copies between host and device, inputs and outputs of the whole aside.
    """

    nodes: dict[str, tuple[str, ...]]
    copies: int


class _Session:
    """A checked file in ONNX Runtime, and how arrays get in and out."""

    takes: ClassVar[str]

    def __init__(
        self,
        path: str | os.PathLike[str],
        provider: str | Sequence[str] = "auto",
        threads: int = 0,
        *,
        device: int | str = 0,
        options: Mapping[str, str] | None = None,
        cache: str | os.PathLike[str] | None = None,
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
        self._gpu = device if isinstance(device, int) else 0  # whose arrays are read where they lie
        if not isinstance(threads, int) or not 0 <= threads <= MOST_THREADS:
            raise CapscoreError(
                f"threads must be 0 (as many as there are cores) to {MOST_THREADS}, not {short(threads)}"
            )
        wanted, self._threads = providers.find(provider), threads
        if cuda_graph and (wanted[0].name != CUDA or self.batch is None):
            raise CapscoreError(
                f"CUDA graphs need the provider cuda, not {wanted[0].name}, and a fixed batch, "
                f"not {'any' if self.batch is None else self.batch}: `capscore export --batch N` fixes it"
            )
        self._options = ({"enable_cuda_graph": "1"} if cuda_graph else {}) | dict(options or {})
        if provider == "auto" and wanted[0].name == CPU:  # the options are CUDA's
            self._options = {}
        self._cache = None if cache is None else Path(cache)
        try:
            self._session = self._start(wanted)
        except BackendError as problem:
            if provider != "auto" or cuda_graph:
                raise
            warnings.warn(f"running on the CPU: {problem}", RuntimeWarning, stacklevel=2)
            wanted, self._options = providers.find("cpu"), {}
            self._session = self._start(wanted)
        self._wanted, self.provider = wanted, wanted[0].name
        providers.warn_of_tf32(wanted)
        self._cuda_graph, self._lock = cuda_graph, threading.Lock()
        self._captured: Captured | None = None

    def _start(self, wanted: Sequence[providers.Provider], profile: str | None = None) -> Any:
        return providers.start(self.path, wanted, self.device, self._options, self._threads, self._cache, profile)

    def placement(self) -> Placement:
        """Return which nodes run where, and how many copies between host and device there are.

        A second session is started for it, and runs once, on zeros. Nodes that ONNX Runtime computes in advance run
        nowhere. BackendError if ONNX Runtime is older than 1.24, which keeps no account of it.
        """
        if not hasattr(self._session, "get_provider_graph_assignment_info"):
            raise BackendError("placement needs ONNX Runtime 1.24 or later: pip install -U onnxruntime")
        zeros = np.zeros((self.batch or 1, *self.file.input.shape), self.dtype)
        with tempfile.TemporaryDirectory() as folder:
            session = self._start(self._wanted, str(Path(folder) / "profile"))
            try:
                session.run(None, {self.file.input.name: zeros})
            except Exception as error:  # as in `_run`
                raise self._problem(error) from None
            finally:
                written = Path(session.end_profiling())
            events = json.loads(written.read_text())
        nodes: dict[str, list[str]] = defaultdict(list)
        for graph in session.get_provider_graph_assignment_info():
            nodes[graph.ep_name] += [node.name for node in graph.get_nodes()]
        ran = [event["args"].get("op_name", "") for event in events if event["name"].endswith("_kernel_time")]
        copies = sum(name.startswith("Memcpy") for name in ran)
        return Placement({name: tuple(those) for name, those in nodes.items()}, copies)

    def _problem(self, error: Exception) -> CapscoreError:
        """Return what to raise for an error of ONNX Runtime's while a graph runs."""
        if cure := self._wanted[0].cure(error):
            return BackendError(f"{self.provider} cannot run {self.path}: {cure}")
        return ModelFileError(f"cannot run the ONNX model {self.path}: {providers.reason(error)}")

    def _run(self, x: Any) -> dict[str, Any]:
        """Return the outputs by name for a checked input; arrays on a GPU stay there if the session runs there."""
        if self.batch not in (None, x.shape[0]):
            raise ShapeError(
                f"{self.path.name} takes exactly {self.batch} at a time, not {x.shape[0]}: "
                "`predict` fills up the last batch, and an export without --batch takes any"
            )
        library = library_of(x) if self.provider in (CUDA, TENSORRT) else HOST
        try:
            x = library.adopt(x, self.dtype, self._gpu)
            if not self._cuda_graph:
                found = self._bind(library, x).run()
            else:
                with self._lock:
                    if self._captured is None:
                        lasting = gpu_library() if library is HOST else library
                        self._captured = Captured(self._bind(lasting, x, copy=True))
                found = self._captured.run(x, self.dtype)
                found = {name: library.adopt(y, "float32", self._gpu) for name, y in found.items()}
            plain = self.precision != "int8" and self._wanted[0].module is None
            return found if plain else _with_nan(x, found)
        except CapscoreError:
            raise
        except Exception as error:  # what a graph does not keep of its promises shows when it runs; so does memory
            raise self._problem(error) from None

    def _bind(self, library: Any, x: Any, copy: bool = False) -> Bound:
        x = library.adopt(x, self.dtype, self._gpu)
        shapes = {output.name: (x.shape[0], *output.shape) for output in self.file.outputs}
        name = self.file.input.name
        return Bound(self._session, library, name, library.copy(x) if copy else x, shapes, self._gpu)


class Session(_Session):
    """An exported model in ONNX Runtime: called on images, it returns the same `Output` as the network.

    `spec`, `classes` and `provenance` are those of the network; `provider` is ONNX Runtime's name of where it runs,
    `batch` the number of images it takes (None for any), `dtype` that of the images and `precision` that of the graph.
    It may be called from several threads.

    Parameters
    ----------
    path : a file that `capscore export` wrote; others are refused with ModelFileError
    provider
        A name of `capscore.export.providers.PROVIDERS` (cpu, cuda, tensorrt, tensorrt-rtx, openvino, webgpu), or ONNX
        Runtime's own name or names in order of preference. One that is absent or does not start is a BackendError,
        never a slower run. "auto" is CUDA if this ONNX Runtime has it, else the CPU; not TensorRT, which spends
        minutes on building an engine when first called.
    threads : of the CPU provider; 0 for as many as there are cores
    device : number of the GPU; of a plugin's devices the number, or a part of the name ("GPU", "NPU", "Intel")
    options
        The provider's own, as text. Float32 is computed as float32 unless they say otherwise (such as OpenVINO's
        ``load_config``). The CPU takes none; those given beside "auto" are CUDA's.
    cache
        A folder for what a plugin compiles from the graph: the next start with the same file, device and versions
        takes it from there. Only for providers that compile (OpenVINO, TensorRT RTX). Others' code in it would run.
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
        found = self.named(images)
        couplings: dict[str, list[Any]] = {name.removeprefix("capsules."): [] for name in self.spec.routed}
        for name, coupling in found.items():  # in the order of the file: of a layer, by iteration
            if match := onnxfile.COUPLINGS.fullmatch(name):
                couplings[match[1]].append(coupling)
        by_layer = tuple(map(tuple, couplings.values())) if any(couplings.values()) else None
        lengths = found.get("lengths")
        scores = found.get("scores", None if self.spec.own_scores else lengths)
        return Output(lengths, found.get("capsules"), found.get("reconstruction"), by_layer, scores)

    def named(self, images: Any) -> dict[str, Any]:
        """Return the outputs by their names in the file, those of a call otherwise."""
        x = array(images)
        check_images(self.spec, x, self.dtype)
        if library_of(x) is HOST:
            check_range(to_host(x), precision=self.precision)
        return self._run(x)

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
            if (scores := self(part).scores) is None:
                raise ModelFileError(
                    f"{self.path} gives no scores, which of this network are not the lengths: "
                    "export it with scores among its outputs"
                )
            found.append(to_host(scores)[:count])
        return np.concatenate(found)


class DecoderSession(_Session):
    """An exported decoder in ONNX Runtime: called on capsules, it draws images, as `CapsNet.reconstruct` does.

    The parameters are those of `Session`.
    """

    takes = "capsules"

    def __call__(self, capsules: Any, labels: Any = None) -> Any:
        """Draw images [B, C, H, W] from class capsules [B, J, D] of any backend.

        All but one capsule are masked: the longest stays, or the one of `labels` [B] (whole numbers). Where a network
        has scores of its own, lengths tell nothing: ShapeError asks for the labels.
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
        elif self.spec.own_scores:
            raise ShapeError(
                "these capsules lack the scores that tell which of them is drawn: give labels, out.scores.argmax(1) of "
                "what the network said"
            )
        return self._run(v)["reconstruction"]


def _with_nan(x: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Return outputs that are NaN where the input was: whole numbers have none, and plugins make 0 of it.

    It is computed where the arrays lie, in any library, and nothing waits for it.
    """
    if not is_float(x):
        return found
    nan = (x * 0.0).sum(axis=tuple(range(1, x.ndim)))  # [B], 0 where all is finite
    return {name: y + nan.reshape(-1, *[1] * (y.ndim - 1)) for name, y in found.items()}
