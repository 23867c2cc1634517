"""The one form in which every reader and generator hands over its images."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from capscore.data.batch import Batch, targets_of
from capscore.data.rows import Rows
from capscore.data.shown import Shown
from capscore.data.window import shifted
from capscore.errors import DataError

Index = slice | NDArray[np.integer]


def check_classes(classes: tuple[str, ...], labels: NDArray[np.int64] | NDArray[np.bool_]) -> None:
    """Raise DataError if two classes have one name, or a label is none of them."""
    if len(set(classes)) != len(classes):
        name, count = Counter(classes).most_common(1)[0]
        raise DataError(f"{count} classes are called {name!r}: give each class its own name")
    if labels.dtype != np.bool_ and (labels.min() < 0 or labels.max() >= len(classes)):
        raise DataError(
            f"labels reach from {labels.min()} to {labels.max()} but there are {len(classes)} classes: "
            "number the classes from 0 and name each of them"
        )


@runtime_checkable
class Samples(Protocol):
    """Labelled images that can be asked for by their positions; where they come from is their own affair."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""

    @property
    def labels(self) -> NDArray[Any]:
        """[N], indices into `classes`; or [N, 2], the two classes that an image shows; or flags [N, J], bool."""

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    @property
    def shift(self) -> int:
        """How far training moves these images unless told otherwise, in pixels each way."""

    def __len__(self) -> int:
        """Return the number of images, N."""

    def batch(self, index: Index, margin: int = 0) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Images as float32 in [0, 1], a new array, and their labels [B], [B, 2] or [B, J].

        The images are [B, C, H, W], or larger by `margin` pixels on each of the four sides: by what a crop
        has left out there, otherwise by zeros. A window of H×W in that, at random, is an image shifted.
        """

    def moved(self, index: Index, reach: int, down: NDArray[np.integer], across: NDArray[np.integer]) -> Batch:
        """Images to learn from, each moved by its own whole number of pixels, up to `reach` each way.

        `down` and `across` [B] count from 0 to 2 · `reach`; at `reach`, an image stays where it is.
        """


class Single(Shown):
    """Base of samples that can be asked for one by one, as PyTorch's DataLoader does."""

    def __getitem__(self: Samples, index: int) -> tuple[NDArray[np.float32], Any]:
        """Return an image [C, H, W] and its label: a number, or an array of images that show several classes."""
        if not -len(self) <= index < len(self):  # where iteration ends
            raise IndexError(f"there is no image {index}: there are {len(self):,}")
        images, labels = self.batch(np.array([index % len(self)]))
        return images[0], labels[0] if labels.ndim > 1 else int(labels[0])


class Moved(Single):
    """Base of samples that are moved within what `batch` puts around them."""

    def moved(self: Samples, index: Index, reach: int, down: NDArray[np.integer], across: NDArray[np.integer]) -> Batch:
        """Images to learn from, each moved by its own whole number of pixels; see `Samples.moved`."""
        images, labels = self.batch(index, reach)
        return Batch(shifted(images, reach, down, across), targets_of(labels, len(self.classes)))


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Moved):
    """Labelled images, checked when they are put together.

    Parameters
    ----------
    images
        [N, C, H, W], uint8 in 0..255 or float32 in [0, 1]; N, C, H and W are at least 1. Or `Rows`, on disk.
    labels
        [N] int64, each an index into `classes`; or [N, J] bool, the classes that each image shows, several or none.
    classes
        Class names, distinct.
    split
        How these images were parted from others, as JSON values; None for a set of its own.
    notes
        What was lost, passed over or renamed as they were read, in one line each.

    Raises
    ------
    DataError
        An array has another dtype, shape or range, or a class name appears twice.
    """

    images: NDArray[np.uint8] | NDArray[np.float32] | Rows
    labels: NDArray[np.int64] | NDArray[np.bool_]
    classes: tuple[str, ...]
    split: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    shift: ClassVar[int] = 2  # section 5 of the paper

    def __post_init__(self) -> None:
        """Check the arrays."""
        images, labels, classes = self.images, self.labels, self.classes
        for name, given in (("images", images), ("labels", labels)):
            if not isinstance(given, np.ndarray | (Rows if name == "images" else np.ndarray)):
                raise DataError(f"{name} are a {type(given).__name__}: make them a NumPy array")
        if images.dtype not in (np.uint8, np.float32):
            raise DataError(f"images are {images.dtype}: store uint8 in 0..255 or float32 in [0, 1]")
        if images.ndim != 4 or 0 in images.shape:
            raise DataError(f"images have shape {images.shape}: it must be [N, C, H, W] with nothing empty")
        if isinstance(images, np.ndarray) and images.dtype == np.float32:
            with np.errstate(invalid="ignore"):
                low, high = images.min(), images.max()
            if not (low >= 0 and high <= 1):  # NaN fails this too
                cure = "divide by the maximum"
                if low < 0:
                    cure = "images * std + mean undoes a standardisation"
                elif not np.isfinite(images).all():
                    cure = "replace what is not finite"
                raise DataError(f"images reach from {low:g} to {high:g}: floats must lie in [0, 1], {cure}")
        wanted = (len(images), len(classes)) if labels.dtype == np.bool_ else (len(images),)
        if labels.dtype not in (np.int64, np.bool_) or labels.shape != wanted:
            raise DataError(
                f"labels are {labels.dtype} {labels.shape}: {len(images)} images need int64 labels of shape "
                f"({len(images)},), or bool {(len(images), len(classes))} where they show several of the classes"
            )
        check_classes(classes, labels)

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.images)

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def batch(self, index: Index, margin: int = 0) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Images as float32 in [0, 1], a new array, and their labels [B] or [B, J].

        The images are [B, C, H, W], or larger by `margin` pixels of zeros on each of the four sides.
        """
        scale = 255 if self.images.dtype == np.uint8 else 1
        images = np.divide(self.images[index], scale, dtype=np.float32)
        if margin:
            images = np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
        return images, self.labels[index]


def positions(index: Index, count: int) -> NDArray[np.int64]:
    """Which of `count` images an index means, as NumPy would take it. Raises IndexError if one is not there."""
    if isinstance(index, slice):
        return np.arange(*index.indices(count))
    index = np.asarray(index)
    if index.dtype.kind not in "iu" or index.ndim != 1:
        raise IndexError(f"an index of {index.dtype} {index.shape}: take a slice or whole numbers [B]")
    if index.size and not -count <= index.min() <= index.max() < count:
        raise IndexError(f"positions reach from {index.min()} to {index.max()} but there are {count:,} images")
    index = index.astype(np.int64)
    return np.where(index < 0, index + count, index)
