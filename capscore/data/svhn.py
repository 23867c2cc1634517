"""SVHN, the street view house numbers: cropped digits in MATLAB files."""

from pathlib import Path

import numpy as np

from capscore.data.dataset import Dataset
from capscore.data.mat import read_mat, whole_numbers
from capscore.data.memory import Budget
from capscore.data.progress import track
from capscore.errors import DataError

FILES = ("train_32x32.mat", "test_32x32.mat")


def read_svhn(folder: Path, classes: tuple[str, ...], memory: Budget) -> tuple[Dataset, Dataset]:
    """Read (train, test), images uint8 [N, 3, 32, 32], from train_32x32.mat and test_32x32.mat in `folder`.

    The files write the digit 0 as class 10. Raises DataError if one of them is missing or damaged.
    """
    train, test = (_read_part(folder / file, classes, memory) for file in track(FILES, "svhn"))
    return train, test


def _read_part(path: Path, classes: tuple[str, ...], memory: Budget) -> Dataset:
    if not path.is_file():
        raise DataError(f"{path} is missing: put it there, or leave out --data-dir and CAPSCORE_DATA to download it")
    with memory.passing():
        images, labels = read_mat(path, "X", "y", memory=memory)
        if images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3) or images.ndim != 4:
            raise DataError(f"{path}: X is {images.dtype} {images.shape}, not uint8 (32, 32, 3, N): fetch it again")
        digits = whole_numbers(labels, path, "y", images.shape[3], 1, 10)
        memory.take(images.nbytes + 2 * digits.nbytes, path)
        dataset = Dataset(np.ascontiguousarray(images.transpose(3, 2, 0, 1)), digits % 10, classes)
    memory.take(dataset.images.nbytes + dataset.labels.nbytes, path)
    return dataset
