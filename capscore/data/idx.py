"""IDX files, the format of MNIST and Fashion-MNIST."""

import math
import re
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from capscore.data.dataset import Dataset
from capscore.data.labels import settled
from capscore.data.memory import Budget
from capscore.data.split import Rule
from capscore.data.stream import opened, read_up_to
from capscore.errors import DataError


def read_idx(path: str | Path, memory: int | str | None = None) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or not, into an array of the 1 to 4 dimensions it declares.

    Memory grows with what the file really holds, never with what its header claims, up to `memory` as `load` takes it.
    Raises DataError if the file is missing, damaged, of another type, longer or shorter than declared, or too large.
    """
    return _read(path, Budget(memory))


def _read(path: str | Path, memory: Budget) -> NDArray[np.uint8]:
    with opened(path) as stream:
        return _parse(stream, path, memory)


def _parse(stream: IO[bytes], path: str | Path, memory: Budget) -> NDArray[np.uint8]:
    magic = read_up_to(stream, 4, memory, path)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DataError(f"{path} is no IDX file, which starts with two zero bytes, not {bytes(magic)!r}")
    if magic[2] != 0x08:
        raise DataError(f"{path} has IDX type 0x{magic[2]:02x}: convert it to 0x08, unsigned bytes")
    header = read_up_to(stream, 4 * magic[3], memory, path)
    if not 1 <= magic[3] <= 4 or len(header) < 4 * magic[3]:
        raise DataError(f"{path} has no complete header of 1 to 4 dimensions: fetch the file again")
    shape = tuple(np.frombuffer(header, ">u4").tolist())
    size = math.prod(shape)
    if size == 0:
        raise DataError(f"{path} declares the empty shape {shape}: fetch the file again")
    memory.check(size + 1, f"{path}, which declares {shape},")
    data = read_up_to(stream, size + 1, memory, path)
    if len(data) != size:
        held = "more" if len(data) > size else f"only {len(data):,}"
        raise DataError(f"{path} declares {size:,} bytes {shape} but holds {held}: fetch the file again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_idx_folder(folder: Path, classes: tuple[str, ...], memory: Budget) -> tuple[Dataset, Dataset]:
    """Read (train, test) from `folder`/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]."""
    train, test = (_read_part(folder, part, classes, memory) for part in ("train", "t10k"))
    return train, test


def _read_part(folder: Path, part: str, classes: tuple[str, ...], memory: Budget) -> Dataset:
    images = np.expand_dims(_read_file(folder, f"{part}-images-idx3-ubyte", 3, memory), 1)
    labels = _read_file(folder, f"{part}-labels-idx1-ubyte", 1, memory)
    memory.take(8 * len(labels), f"{folder} with {len(labels):,} labels")
    return Dataset(images, labels.astype(np.int64), classes)


def _read_file(folder: Path, file: str, rank: int, memory: Budget) -> NDArray[np.uint8]:
    path = next((p for p in (folder / f"{file}.gz", folder / file) if p.is_file()), None)
    if path is None:
        raise DataError(
            f"{folder} has no {file} or {file}.gz: put the files there, leave out --data-dir and "
            "CAPSCORE_DATA to download them, or use the dataset digits"
        )
    array = _read(path, memory)
    if array.ndim != rank:
        raise DataError(f"{path} has shape {array.shape}: {rank} dimensions are needed, fetch the file again")
    return array


def idx_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Return the pairs of IDX files of images and labels in a folder, by their names; training before test."""
    pairs = []
    for images in sorted(folder.iterdir()):
        if "images" in images.name and "idx" in images.name:
            named = re.sub(r"idx\d", "idx1", images.name.replace("images", "labels"))
            stem = named.removesuffix(".gz")
            if labels := next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None):
                pairs.append((images, labels))
    return sorted(pairs, key=lambda pair: any(word in pair[0].name for word in ("test", "t10k")))


def read_idx_pairs(folder: Path, rule: Rule, memory: Budget) -> tuple[Dataset, Dataset]:
    """Read (train, test) from two pairs of IDX files, or from one, which `rule` parts."""
    pairs = idx_pairs(folder)
    if len(pairs) > 2:
        raise DataError(
            f"{folder} has {len(pairs)} pairs of IDX files: put one or two of them into a folder of their own"
        )
    images = [_read(images, memory) for images, _ in pairs]
    classes, labels, notes = settled([_read(labels, memory) for _, labels in pairs], None, memory)
    sets = [
        Dataset(x[:, None] if x.ndim == 3 else x, y, classes, notes=notes) for x, y in zip(images, labels, strict=True)
    ]
    return (sets[0], sets[1]) if len(sets) == 2 else rule(sets[0])
