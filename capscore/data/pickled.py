"""CIFAR-10 and CIFAR-100 in their Python form: pickles, of which nothing is run that they name."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore.data.dataset import Dataset
from capscore.data.memory import Budget
from capscore.errors import DataError

TEN = ([f"data_batch_{i}" for i in range(1, 6)], "test_batch", "batches.meta", b"labels", b"label_names")
HUNDRED = (["train"], "test", "meta", b"fine_labels", b"fine_label_names")
PIXELS = 3 * 32 * 32
REFUSED = ("BYTEARRAY8", "NEXT_BUFFER", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4")
PLACES = ("PUT", "BINPUT", "LONG_BINPUT")  # of what is kept: a reader makes room for all that lie before


def form_of(folder: Path) -> tuple[Any, ...] | None:
    """Return which of the two forms a folder has; None for neither."""
    return next((f for f in (TEN, HUNDRED) if all((folder / name).is_file() for name in (*f[0], f[1], f[2]))), None)


def read_pickled(folder: Path, memory: Budget) -> tuple[Dataset, Dataset]:
    """Read (train, test), images uint8 [N, 3, 32, 32]; of CIFAR-100 the fine labels."""
    form = form_of(folder)
    assert form is not None
    train, test, meta, labels, names = form
    classes = tuple(
        str(name, "utf-8", "replace") for name in _entry(_load(folder / meta, memory), names, list, folder / meta)
    )
    sets = [_dataset([folder / name for name in part], labels, classes, memory) for part in (train, [test])]
    return sets[0], sets[1]


def _dataset(paths: list[Path], key: bytes, classes: tuple[str, ...], memory: Budget) -> Dataset:
    images, labels = [], []
    for path in paths:
        told = _load(path, memory)
        array = _entry(told, b"data", _Array, path).array(path)
        some = _entry(told, key, list, path)
        if array.shape != (len(some), PIXELS) or not all(type(x) is int and 0 <= x < len(classes) for x in some):
            raise DataError(f"{path} has data {array.shape} and {len(some):,} labels: fetch it again")
        images.append(array)
        labels += some
    memory.take(sum(each.nbytes for each in images), paths[0].parent)
    return Dataset(np.concatenate(images).reshape(-1, 3, 32, 32), np.array(labels, np.int64), classes)


class _Array:
    """Stands for an array while a pickle is read: keeps what it is told, and makes bytes of it alone."""

    def __init__(self, *about: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self, path: Path) -> NDArray[np.uint8]:
        """Return the array of unsigned bytes."""
        match self.state:
            case (_, (int(rows), int(columns)), _Type("u1"), bool(), bytes(data)) if len(data) == rows * columns:
                return np.frombuffer(data, np.uint8).reshape(rows, columns, order="F" if self.state[3] else "C")
        raise DataError(f"{path} holds no array of unsigned bytes: fetch the Python version again")


class _Type:
    """Stands for a dtype."""

    __match_args__ = ("name",)

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name if isinstance(name, str) else ""

    def __setstate__(self, state: Any) -> None:
        """Nothing in it matters of single bytes."""


def _latin(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes in an unknown form")
    return text.encode("latin1")


KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _latin,
}


class _Reader(pickle.Unpickler):
    """Makes of a pickle numbers, texts, lists, dictionaries and `_Array`s, whatever it asks for."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name that the files of CIFAR use; refuse all others."""
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return KNOWN[module, name]


def _load(path: Path, memory: Budget) -> dict[Any, Any]:
    memory.take(2 * path.stat().st_size, path)
    try:
        content = path.read_bytes()
        _check_steps(content)
        told = _Reader(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{path} cannot be read ({error!s:.100}): fetch the Python version again") from error
    return told if isinstance(told, dict) else {}


def _check_steps(content: bytes) -> None:
    """Refuse a pickle that would have its reader allocate more than it holds, before it is read."""
    for step, argument, _ in pickletools.genops(content):
        if step.name in REFUSED or (step.name in PLACES and int(argument or 0) > len(content)):
            raise pickle.UnpicklingError(f"it has a step {step.name} that the files of CIFAR do not have")


def _entry(told: dict[Any, Any], key: bytes, kind: type, path: Path) -> Any:
    found: Any = told.get(key)
    names = found if key.endswith(b"names") and isinstance(found, list) else []
    if not isinstance(found, kind) or not all(type(name) is bytes for name in names):
        raise DataError(f"{path} has no {key.decode()}: fetch the Python version again")
    return found
