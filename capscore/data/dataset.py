"""The one form in which every reader hands over its images."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capscore.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, checked when they are put together.

    Parameters
    ----------
    images
        [N, C, H, W], uint8 in 0..255 or float32 in [0, 1]; N, C, H and W are at least 1.
    labels
        [N] int64, each an index into `classes`.
    classes
        Class names, distinct.

    Raises
    ------
    DataError
        An array has another dtype, shape or range, or a class name appears twice.
    """

    images: NDArray[np.uint8] | NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the arrays."""
        images, labels, classes = self.images, self.labels, self.classes
        if images.dtype not in (np.uint8, np.float32):
            raise DataError(f"images are {images.dtype}: store uint8 in 0..255 or float32 in [0, 1]")
        if images.ndim != 4 or 0 in images.shape:
            raise DataError(f"images have shape {images.shape}: it must be [N, C, H, W] with nothing empty")
        if images.dtype == np.float32:
            with np.errstate(invalid="ignore"):
                low, high = images.min(), images.max()
            if not (low >= 0 and high <= 1):  # NaN fails this too
                raise DataError(
                    f"images reach from {low:g} to {high:g}: floats must lie in [0, 1], divide by the maximum"
                )
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels are {labels.dtype} {labels.shape}: "
                f"{len(images)} images need int64 labels of shape ({len(images)},)"
            )
        if len(set(classes)) != len(classes):
            name, count = Counter(classes).most_common(1)[0]
            raise DataError(f"{count} classes are called {name!r}: give each class its own name")
        if labels.min() < 0 or labels.max() >= len(classes):
            raise DataError(
                f"labels reach from {labels.min()} to {labels.max()} but there are {len(classes)} classes: "
                "number the classes from 0 and name each of them"
            )

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.images)

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def batch(self, index: slice | NDArray[np.integer]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Images [B, C, H, W] as float32 in [0, 1], a new array, and their int64 labels [B]."""
        scale = 255 if self.images.dtype == np.uint8 else 1
        return np.divide(self.images[index], scale, dtype=np.float32), self.labels[index]


def split(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Split into (train, test): a fifth of every class to test, at least one image if the class has two.

    Both parts keep the order of `dataset`. Raises DataError if no class has two images.
    """
    counts = np.bincount(dataset.labels)
    quota = np.where(counts > 1, np.maximum(1, np.rint(counts / 5)), 0)
    grouped = np.lexsort((np.random.default_rng(seed).random(len(dataset)), dataset.labels))
    rank = np.arange(len(dataset)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(dataset), bool)
    chosen[grouped] = rank < quota[dataset.labels[grouped]]
    if not chosen.any():
        raise DataError(f"{len(dataset)} images, one per class, leave none to test with: add images")
    train, test = (Dataset(dataset.images[m], dataset.labels[m], dataset.classes) for m in (~chosen, chosen))
    return train, test
