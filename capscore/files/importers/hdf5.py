"""HDF5 files of Keras: weights of versions 1 and 2 (`save_weights`, `save`), and of version 3.

HDF5 can refer to other files, to other places in the file, and to numbers that are nowhere. Only arrays that lie in the
file itself are read, and only along links that are part of the tree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

from capscore.data.memory import Budget
from capscore.errors import BackendError, CapscoreError, ModelFileError

DEEPEST = 30  # groups within groups
WHOLE = "model_weights"  # where `model.save` of Keras 2 puts what `save_weights` writes
SKIPPED = ("optimizer", "optimizer_weights")  # what only going on with a training asks for


def read(file: Path | IO[bytes], memory: Budget) -> dict[str, NDArray[Any]]:
    """Return the arrays by name, in the order in which the file names them, or sorted as by a person."""
    try:
        import h5py
    except ImportError:
        raise BackendError("Keras files need h5py: pip install 'capscore[keras]'") from None
    try:
        with h5py.File(file, "r") as root:
            top = _child(root, WHOLE) if WHOLE in root else root
            named = _listed(top, memory) if "layer_names" in top.attrs else _walk(top, "", DEEPEST)
            return {name: _array(name, found, memory) for name, found in named}
    except CapscoreError:
        raise
    except Exception as error:  # h5py raises nearly anything on a damaged file
        raise ModelFileError(f"it is a damaged HDF5 file ({error!s:.100}); take another copy of it") from None


def _listed(top: Any, memory: Budget) -> Iterator[tuple[str, Any]]:
    """Go through the arrays in the order of Keras 2's attributes."""
    for layer in _names(top, "layer_names", memory):
        group = _child(top, layer)
        for weight in _names(group, "weight_names", memory):
            found = group
            for part in weight.split("/"):
                found = _child(found, part)
            name = weight.removesuffix(":0")
            yield name if name.startswith(f"{layer}/") else f"{layer}/{name}", found


def _walk(group: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Go through all arrays below a group, 2 before 10."""
    if not depth:
        raise ModelFileError(f"{path:.60} has groups within groups beyond all need; take another copy of the file")
    for name in sorted(group, key=lambda name: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)]):
        if path or name not in SKIPPED:
            found = _child(group, name)
            where = f"{path}/{name}" if path else name
            yield from _walk(found, where, depth - 1) if hasattr(found, "keys") else [(where, found)]


def _names(group: Any, attribute: str, memory: Budget) -> list[str]:
    """Return a list of names, as Keras writes them into an attribute: strings of one length or of any."""
    about = group.attrs.get_id(attribute)
    if about.shape == (0,):
        return []
    if len(about.shape) != 1 or about.dtype.kind not in "SO":
        raise ModelFileError(f"{attribute} is {about.dtype} {about.shape}, no list of names; take another copy")
    longest = about.dtype.itemsize if about.dtype.kind == "S" else group.file.id.get_filesize()  # all may be one
    memory.check(about.shape[0] * longest, f"{attribute}, names that may be as long as the file,")
    return [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs[attribute].tolist()]


def _child(group: Any, name: str) -> Any:
    """Return a member of a group that is one in truth, not a pointer to elsewhere."""
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ModelFileError(f"{name:.60} is a link to elsewhere, not an array: save the weights in one file")
    return group[name]


def _array(name: str, found: Any, memory: Budget) -> NDArray[Any]:
    import h5py

    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "iuf" or found.shape is None:
        raise ModelFileError(f"{name:.60} is no array of numbers: give a file that Keras's save_weights wrote")
    if found.is_virtual or found.external:
        raise ModelFileError(f"{name:.60} has its numbers in another file: save the weights in one file")
    size = math.prod(found.shape) * found.dtype.itemsize
    memory.take(size, f"{name:.60} of shape {found.shape}")
    if found.chunks is None and found.id.get_storage_size() != size:
        raise ModelFileError(f"{name:.60} declares {size:,} bytes that it does not hold; take another copy")
    array: NDArray[Any] = found[()]
    return array
