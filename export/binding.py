"""I/O binding: ONNX Runtime reads its input and writes its outputs where the arrays of a library lie."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from capscore.errors import BackendError
from capscore.ops import to_host


class Library(Protocol):
    """What binding asks of an array library."""

    place: str  # what ONNX Runtime calls the memory: "cpu" or "cuda"

    def adopt(self, x: Any, dtype: str, device: int) -> Any:
        """Return `x`, an array of any library, as this one's, contiguous and on the device; itself if it is."""

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        """Return a new array."""

    def copy(self, x: Any) -> Any:
        """Return a copy on the same device."""

    def fill(self, x: Any, values: Any) -> None:
        """Write values, an array on the same device, into `x`."""

    def pointer(self, x: Any) -> int:
        """Return the address of the first element."""

    def wait(self, device: int) -> None:
        """Wait for what the library has been asked to compute: ONNX Runtime's stream knows nothing of it."""


class _Host:
    place = "cpu"

    def adopt(self, x: Any, dtype: str, device: int) -> Any:
        return np.ascontiguousarray(to_host(x), dtype)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return np.empty(shape, dtype)

    def copy(self, x: Any) -> Any:
        return x.copy()

    def fill(self, x: Any, values: Any) -> None:
        x[...] = values

    def pointer(self, x: Any) -> int:
        return int(x.ctypes.data)

    def wait(self, device: int) -> None:
        pass


class _Cupy:
    place = "cuda"

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy

    def adopt(self, x: Any, dtype: str, device: int) -> Any:
        if getattr(x, "is_cuda", False):  # torch's: by DLPack, CuPy's stream waits for torch's
            x = self.cupy.from_dlpack(x.detach())
        elif not isinstance(x, self.cupy.ndarray):
            x = to_host(x)
        if isinstance(x, self.cupy.ndarray) and x.device.id != device:
            with x.device:  # another GPU's stream, on which the copy is made, knows nothing of this one's
                self.cupy.cuda.get_current_stream().synchronize()
            with self.cupy.cuda.Device(device):
                x = x.copy()
        with self.cupy.cuda.Device(device):
            return self.cupy.asarray(x, dtype, order="C")

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        with self.cupy.cuda.Device(device):
            return self.cupy.empty(shape, dtype)

    def copy(self, x: Any) -> Any:
        with x.device:  # the current one is where CuPy makes a copy
            return x.copy()

    def fill(self, x: Any, values: Any) -> None:
        with x.device:
            x[...] = values

    def pointer(self, x: Any) -> int:
        return int(x.data.ptr)

    def wait(self, device: int) -> None:
        with self.cupy.cuda.Device(device):
            self.cupy.cuda.get_current_stream().synchronize()


class _Torch:
    place = "cuda"

    def __init__(self) -> None:
        import torch

        self.torch = torch

    def adopt(self, x: Any, dtype: str, device: int) -> Any:
        where = self.torch.device(self.place, device)
        if not isinstance(x, self.torch.Tensor) and hasattr(x, "__cuda_array_interface__"):
            x = self.torch.utils.dlpack.from_dlpack(x)  # CuPy's: torch's stream waits for CuPy's
        return self.torch.as_tensor(x, dtype=getattr(self.torch, dtype), device=where).detach().contiguous()

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        where = self.torch.device(self.place, device)
        return self.torch.empty(shape, dtype=getattr(self.torch, dtype), device=where)

    def copy(self, x: Any) -> Any:
        return x.clone()

    def fill(self, x: Any, values: Any) -> None:
        x.copy_(values)

    def pointer(self, x: Any) -> int:
        return int(x.data_ptr())

    def wait(self, device: int) -> None:
        self.torch.cuda.current_stream(device).synchronize()


HOST = _Host()


def library_of(x: Any) -> Library:
    """Return the library of an array: CuPy or torch if it lies on a GPU, else NumPy."""
    kinds = {kind.__module__.partition(".")[0] for kind in type(x).__mro__}
    if "cupy" in kinds:
        return _Cupy()
    return _Torch() if "torch" in kinds and x.is_cuda else HOST


def gpu_library() -> Library:
    """Return a library that can hold arrays on the GPU for images that come from the host."""
    for library in (_Cupy, _Torch):
        try:
            return library()
        except ModuleNotFoundError:
            continue
    raise BackendError("CUDA graphs keep their arrays in CuPy or torch: pip install 'capscore[gpu]'")


class Bound:
    """An input array and new output arrays, bound to a session: `run` reads the one and fills the others.

    Parameters
    ----------
    session : ONNX Runtime's
    library : whose arrays they are
    name, x : the input, an array that `library.adopt` returned
    outputs : name → shape, all float32
    device : number of the GPU
    """

    def __init__(
        self, session: Any, library: Library, name: str, x: Any, outputs: Mapping[str, tuple[int, ...]], device: int
    ) -> None:
        self.library, self.x, self.device = library, x, device
        self.outputs = {name: library.empty(shape, "float32", device) for name, shape in outputs.items()}
        self._session, self._binding = session, session.io_binding()
        dtype = np.dtype(str(x.dtype).removeprefix("torch.")).type
        where = library.place, device if library.place != "cpu" else 0
        self._binding.bind_input(name, *where, dtype, tuple(x.shape), library.pointer(x))
        for name, y in self.outputs.items():
            self._binding.bind_output(name, *where, np.float32, tuple(y.shape), library.pointer(y))

    def run(self) -> dict[str, Any]:
        """Run once; ONNX Runtime returns when the outputs are there."""
        self.library.wait(self.device)
        return self.compute()

    def compute(self) -> dict[str, Any]:
        """Run once on an input that has been waited for."""
        self._session.run_with_iobinding(self._binding)
        return self.outputs


class Captured:
    """A bound run at fixed addresses, as a CUDA graph wants it: copied in, run, copied out, one call at a time.

    ONNX Runtime keeps a graph for the thread that captured it, so all runs are in one. The caller's copies and waits:
    a thread has current streams of its own.
    """

    def __init__(self, bound: Bound) -> None:
        self._bound, self._lock = bound, threading.Lock()
        self._thread = ThreadPoolExecutor(1, "cuda-graph")

    def run(self, x: Any, dtype: str) -> dict[str, Any]:
        """Run on `x`, an array of any library, and return new arrays of the one that holds the addresses."""
        bound, library = self._bound, self._bound.library
        with self._lock:
            library.fill(bound.x, library.adopt(x, dtype, bound.device))
            library.wait(bound.device)
            outputs = self._thread.submit(bound.compute).result()
            copies = {name: library.copy(y) for name, y in outputs.items()}
            library.wait(bound.device)  # before another call overwrites what is being copied
        return copies
