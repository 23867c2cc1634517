"""Data of people's own, by a path: which reader a file or folder is for."""

from __future__ import annotations

from pathlib import Path

from capscore.data.archive import read_npz
from capscore.data.arrays import read_npy_folder
from capscore.data.dataset import Dataset
from capscore.data.idx import idx_pairs, read_idx_pairs
from capscore.data.images import read_folder, read_listed
from capscore.data.memory import Budget
from capscore.data.pickled import form_of, read_pickled
from capscore.data.pixels import are_pixels, read_pixels
from capscore.data.split import Rule


def read_path(path: Path, size: tuple[int, int, int] | None, rule: Rule, memory: Budget) -> tuple[Dataset, Dataset]:
    """Read (train, test) from a file or folder.

    A file is a list of images (.csv, .json), lines of pixels (.csv), one of the .npy or IDX files of a folder, or else
    an .npz. A folder is CIFAR's Python form, .npy or IDX files, or images.
    """
    kind = path.suffix.lower()
    if path.is_dir():
        if form_of(path):
            return read_pickled(path, memory)
        if any(path.glob("*.npy")):
            return read_npy_folder(path, size, rule, memory)
        if idx_pairs(path):
            return read_idx_pairs(path, rule, memory)
        return read_folder(path, size, rule, memory)
    if kind == ".csv" and are_pixels(path):
        return read_pixels(path, rule, memory)
    if kind in (".csv", ".json"):
        return read_listed(path, size, rule, memory)
    if kind == ".npy":
        return read_npy_folder(path.parent, size, rule, memory)
    if "idx" in path.name and idx_pairs(path.parent):
        return read_idx_pairs(path.parent, rule, memory)
    return read_npz(path, size, rule, memory)
