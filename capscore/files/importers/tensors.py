"""The arrays of a checkpoint by name, whatever the format of the file."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore.data.archive import File, read_array
from capscore.data.memory import Budget
from capscore.data.stream import read_up_to
from capscore.errors import CapscoreError, ModelFileError
from capscore.modelfile import as_path

from . import hdf5, pickled

Tensors = dict[str, NDArray[Any]]

FORMATS = "a Keras .h5 or .keras, a PyTorch .pt or .pth, a .safetensors or an .npz"
HDF5 = b"\x89HDF\r\n\x1a\n"
KERAS = "model.weights.h5"  # within a .keras file
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile unpacks others without a bound on memory
COUNTER = "num_batches_tracked"  # of PyTorch's batch normalisation: no inference asks for it
WRAPPERS = ("module.", "_orig_mod.")  # before all names, where PyTorch trained in parallel or compiled


def read_tensors(path: str | os.PathLike[str], memory: int | str | None = None) -> Tensors:
    """Return the arrays of a checkpoint by name, in the order of the file. Nothing in the file is run.

    Parameters
    ----------
    path : a .h5, .keras, .pt, .pth, .safetensors or .npz file; its first bytes decide which of them it is
    memory : how much the arrays may take, as for `capscore.data.load`: 4 GiB unless CAPSCORE_MEMORY says otherwise

    Raises
    ------
    ModelFileError
        The file is missing, damaged, of another kind, too large for the memory, holds more than arrays, or an array
        holds NaN.
    """
    path = as_path(path)
    try:
        if not path.is_file():
            raise ModelFileError("it is a folder" if path.is_dir() else "there is no such file")
        tensors = {name: a for name, a in _read(path, Budget(memory)).items() if COUNTER not in name}
        if not tensors:
            raise ModelFileError("it holds no arrays; give the file with the weights")
        for name, array in tensors.items():
            if not array.size:
                raise ModelFileError(f"{name:.60} of shape {array.shape} is empty; leave it out of the file")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ModelFileError(
                    f"{name:.60} holds NaN or infinity: that training had failed; take an earlier file"
                )
        return _unwrapped(tensors)
    except (CapscoreError, OSError) as error:
        raise ModelFileError(f"cannot read {path}: {error}") from None


def _read(path: Path, memory: Budget) -> Tensors:
    """Read a file by what it begins with."""
    with open(path, "rb") as file:
        start = file.read(len(HDF5) + 1)
    if start.startswith(HDF5):
        return hdf5.read(path, memory)
    if start.startswith(b"PK"):
        return _read_zip(path, memory)
    if start.endswith(b"{"):
        return _read_safetensors(path, memory)
    if start.startswith(b"\x80"):  # a pickle, as PyTorch wrote before version 1.6
        return pickled.read(path, memory)
    raise ModelFileError(f"it begins with {start!r}, as none of {FORMATS} does; give one of them")


def _read_zip(path: Path, memory: Budget) -> Tensors:
    try:
        with File(path) as file, zipfile.ZipFile(file) as archive:
            members = {member.filename: member for member in archive.infolist()}
            memory.check(sum(member.file_size for member in members.values()), "the archive, which declares as much,")
            if any(member.compress_type not in PACKED for member in members.values()):
                raise ModelFileError("its zip archive is packed in an unusual way; pack it with the usual one, deflate")
            if KERAS in members:
                with archive.open(KERAS) as stream:
                    content = read_up_to(stream, members[KERAS].file_size, memory, KERAS)
                return hdf5.read(io.BytesIO(content), memory)
            if not any(name.endswith("/data.pkl") for name in members):
                arrays = [name for name in members if name.endswith(".npy")]
                return {name.removesuffix(".npy"): read_array(archive, members[name], memory) for name in arrays}
    except CapscoreError:
        raise
    except Exception as error:  # zipfile and numpy's header parser raise nearly anything on a damaged file
        raise ModelFileError(f"it is damaged ({error!s:.100}); take another copy of it") from None
    return pickled.read(path, memory)


def _read_safetensors(path: Path, memory: Budget) -> Tensors:
    from safetensors import SafetensorError, safe_open

    memory.take(path.stat().st_size, "the file")  # of which every array is a part: safetensors sees to that
    try:
        with safe_open(path, framework="numpy") as file:
            if "capscore" in (file.metadata() or {}):
                raise ModelFileError("it is a model of capscore's already; every command takes it as it is")
            for name in file.keys():  # noqa: SIM118 - no mapping
                if (kind := file.get_slice(name).get_dtype()) in ("BF16", "F8_E4M3", "F8_E5M2"):
                    raise ModelFileError(f"{name:.60} is stored as {kind}, which NumPy lacks: save it as float32")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError, KeyError) as error:
        raise ModelFileError(f"it is damaged ({error!s:.100}); take another copy of it") from None


def _unwrapped(tensors: Tensors) -> Tensors:
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): array for name, array in tensors.items()}
    return tensors
