"""affNIST: the digits of MNIST under affine transformations, on 40×40 pixels, in MATLAB files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capscore.data.dataset import Dataset
from capscore.data.mat import read_mat, whole_numbers
from capscore.data.memory import Budget
from capscore.data.progress import track
from capscore.errors import DataError

TRAIN = ("training_and_validation_batches", "training_batches")
TEST = ("test.mat", "test_batches")
PIXELS = (1, 40, 40)


def read_affnist(folder: Path, classes: tuple[str, ...], memory: Budget) -> tuple[Dataset, Dataset]:
    """Read (train, test), images uint8 [N, 1, 40, 40], of the transformed set in `folder`.

    It holds training_and_validation_batches/ or training_batches/, and test.mat or test_batches/, each with
    1.mat … 32.mat or the first of them: one transformation of every digit a file. All of the training images
    are 3 GB. Raises DataError if both of a pair are missing, or a file is damaged.
    """
    return _read_part(folder, TRAIN, classes, memory), read_affnist_test(folder, classes, memory)


def read_affnist_test(folder: Path, classes: tuple[str, ...], memory: Budget) -> Dataset:
    """Read the test images alone, as the paper uses them."""
    return _read_part(folder, TEST, classes, memory)


def _read_part(folder: Path, places: tuple[str, ...], classes: tuple[str, ...], memory: Budget) -> Dataset:
    place = next((folder / name for name in places if (folder / name).exists()), None)
    files = [] if place is None else [place] if place.is_file() else [place / f"{i}.mat" for i in range(1, 33)]
    files = [file for file in files if file.is_file()]
    if not files:
        raise DataError(
            f"{folder} has no {' or '.join(places)} with MATLAB files in it: fetch the transformed set from "
            "https://www.cs.toronto.edu/~tijmen/affNIST/ and unpack it there"
        )
    for i, file in enumerate(track(files, f"affnist {places[0]}")):
        with memory.passing():
            its_images, its_labels = _read_file(file, memory)
        if i == 0:  # joined as they come: all of them at once would be held twice
            memory.take((len(files) + 1) * (its_images.nbytes + its_labels.nbytes), f"{place} with {len(files)} files")
            images, labels = (np.empty((len(files), *array.shape), array.dtype) for array in (its_images, its_labels))
        if its_images.shape != images.shape[1:]:
            raise DataError(
                f"{file} has {len(its_images):,} images but {files[0].name} has {images.shape[1]:,}: fetch it again"
            )
        images[i], labels[i] = its_images, its_labels
    return Dataset(images.reshape(-1, *PIXELS), labels.ravel(), classes)


def _read_file(path: Path, memory: Budget) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = read_mat(path, "affNISTdata.image", "affNISTdata.label_int", memory=memory)
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[0] != 1600:
        raise DataError(f"{path}: image is {images.dtype} {images.shape}, not uint8 (1600, N): fetch it again")
    # A column is an image in reading order, row after row.
    return images.T.reshape(-1, *PIXELS), whole_numbers(labels, path, "label_int", images.shape[1], 0, 9)
