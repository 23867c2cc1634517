"""A stand-in for CuPy whose RawModule compiles CUDA C++ with g++ and runs it on the CPU; see cuda_on_cpu.h."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fake_cupy
import numpy as np

GUARD = 16  # elements of NaN around an array that the device allocates

folder = tempfile.TemporaryDirectory(prefix="cuda_on_cpu")  # of what g++ built, for as long as the process lives
allocated: list[np.ndarray] = []
backwards = False  # whether blocks, and threads between two barriers, run last first


ATTRIBUTES = {"MaxSharedMemoryPerBlockOptin": 232448}  # of an H200


class RawModule:
    def __init__(self, code: str, options: Sequence[str]) -> None:
        self.device = fake_cupy.cuda.Device()
        source, built = (Path(tempfile.mktemp(suffix, dir=folder.name)) for suffix in (".cu", ".so"))
        source.write_text(code)
        shim = Path(__file__).with_name("cuda_on_cpu.h")
        command = ["g++", "-O1", "-fPIC", "-shared", *options, "-include", shim, "-x", "c++", source, "-o", built]
        subprocess.run([str(part) for part in command], check=True)
        self.library = ctypes.CDLL(str(built))

    def get_function(self, name: str) -> Kernel:
        return Kernel(self.library, name, self.device)


class Kernel:
    max_dynamic_shared_size_bytes = 48 * 1024

    def __init__(self, library: ctypes.CDLL, name: str, device: fake_cupy.cuda.Device) -> None:
        self.library, self.name, self.device = library, name, device

    def __call__(self, grid: tuple[int], block: tuple[int], args: tuple[Any, ...], *, shared_mem: int = 0) -> None:
        assert shared_mem <= min(self.max_dynamic_shared_size_bytes, 232448)
        assert 0 < block[0] <= 1024
        assert all(isinstance(x, fake_cupy.ndarray | np.int32 | np.uintp) for x in args)
        for x in args:
            assert not isinstance(x, fake_cupy.ndarray) or x.held.flags.c_contiguous
            where = x.device if isinstance(x, fake_cupy.ndarray) else self.device
            assert where == self.device == fake_cupy.cuda.Device(), f"{self.name} of {self.device} got {where}"
        pointers = [x.held.ctypes.data if isinstance(x, fake_cupy.ndarray) else int(x) for x in args]
        arguments = (ctypes.c_int64 * 12)(*pointers)
        kernel = ctypes.cast(self.library[self.name], ctypes.c_void_p)
        self.library.launch(kernel, grid[0], block[0], shared_mem, arguments, int(backwards))
        for memory in allocated:
            assert np.isnan(memory[:GUARD]).all(), f"{self.name} wrote before the start of an array"
            assert np.isnan(memory[-GUARD:]).all(), f"{self.name} wrote past the end of an array"


def empty(shape: tuple[int, ...], dtype: Any) -> fake_cupy.ndarray:
    """Memory of NaN, in the midst of more of it."""
    size = int(np.prod(shape))
    memory = np.full(size + 2 * GUARD, np.nan, dtype)
    offset = GUARD - memory.ctypes.data % 16 // memory.itemsize  # what a GPU gives is aligned
    allocated.append(memory)
    return fake_cupy.ndarray(memory[offset : offset + size].reshape(shape))


def ascontiguousarray(a: fake_cupy.ndarray, dtype: Any = None) -> fake_cupy.ndarray:
    assert isinstance(a, fake_cupy.ndarray)
    made = empty(a.shape, a.dtype if dtype is None else dtype)
    made[...] = a
    return made


cuda = fake_cupy.cuda


def asarray(a: np.ndarray) -> fake_cupy.ndarray:
    return fake_cupy.asarray(a)
