"""MultiMNIST: pairs of overlapping digits, section 6 of the paper."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from capscore.data.batch import Batch, targets_of
from capscore.data.dataset import Index, Samples, Single, positions
from capscore.data.draws import Seed, draws, integers_below
from capscore.data.window import shifted, window
from capscore.errors import DataError

BLOCK = 1 << 20  # pairs whose labels are drawn at once


@dataclass(frozen=True, eq=False, repr=False)
class Pairs(Single):
    """Two images of different classes on top of each other, summed and clipped at 1; drawn when asked for.

    Image k shows image k mod n of the source, which has n, and another one, drawn from all of other classes.
    Each is moved by up to `reach` pixels each way, so that the canvas is larger by as much on every side. All
    of this follows from the seed and k: `per_digit`, the number of pairs for each of the n, only says where
    it ends.
    """

    source: Samples
    seed: Seed = 0
    per_digit: int = 1000
    reach: int = 4

    shift = 0

    def __post_init__(self) -> None:
        """Check that there are pairs to draw."""
        if self.per_digit < 1 or self.reach < 0:
            raise DataError(f"{self.per_digit} pairs a digit, moved by {self.reach}: at least 1 and 0 are needed")
        if self.source.labels.ndim != 1 or np.ptp(self.source.labels) == 0:
            raise DataError("pairs need a dataset of one label an image and at least two classes")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.source.classes

    @property
    def labels(self) -> NDArray[np.int64]:
        """The two classes [N, 2] of every image: 16 bytes an image, drawn anew each time."""
        labels = np.empty((len(self), 2), np.int64)
        for start in range(0, len(self), BLOCK):
            index = np.arange(start, min(start + BLOCK, len(self)))
            labels[start : start + BLOCK] = self.source.labels[self._members(index, self._draws(index))]
        return labels

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.source.size
        return channels, height + 2 * self.reach, width + 2 * self.reach

    def __len__(self) -> int:
        """Return the number of pairs, N."""
        return len(self.source) * self.per_digit

    def batch(self, index: Index, margin: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Images [B, C, H, W], larger by `margin` zeros on each side, and the two classes [B, 2] in each."""
        parts, labels = self.parts(index, margin)
        return np.minimum(parts.sum(1), 1), labels

    def moved(self, index: Index, reach: int, down: NDArray[np.integer], across: NDArray[np.integer]) -> Batch:
        """Images to learn from, and both images of every pair alone, moved together; see `Samples.moved`."""
        parts, labels = self.parts(index, reach)
        parts = shifted(parts, reach, down, across)
        each = tuple((targets_of(labels[:, i], len(self.classes)), parts[:, i]) for i in range(parts.shape[1]))
        return Batch(np.minimum(parts.sum(1), 1), targets_of(labels, len(self.classes)), each)

    def parts(self, index: Index, margin: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the two images of every pair, each alone where it is: [B, 2, C, H, W]; and their classes [B, 2]."""
        index = positions(index, len(self))
        bits = self._draws(index)
        channels, height, width = self.size
        images, labels = self.source.batch(self._members(index, bits).ravel())
        down, right = (integers_below(b.T.ravel(), 2 * self.reach + 1) + margin for b in (bits[1:3], bits[3:5]))
        moved = window(images, -down, -right, height + 2 * margin, width + 2 * margin)
        return moved.reshape(len(index), 2, channels, *moved.shape[2:]), labels.reshape(-1, 2)

    def _draws(self, index: NDArray[np.int64]) -> NDArray[np.uint64]:
        return draws(self.seed, index, 5)  # the other image, two places down, two places right

    def _members(self, index: NDArray[np.int64], bits: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the positions [B, 2] in the source of both images of pairs."""
        order, begins, counts = self._by_class
        first = index % len(self.source)
        label = self.source.labels[first]
        # A place among the images of all other classes, which lie before and behind those of this class.
        place = integers_below(bits[0], len(self.source) - counts[label])
        return np.stack([first, order[place + np.where(place < begins[label], 0, counts[label])]], axis=1)

    @cached_property
    def _by_class(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the positions of the source ordered by class; where each class begins there, and its size."""
        counts = np.bincount(self.source.labels, minlength=len(self.classes))
        return np.argsort(self.source.labels, kind="stable"), np.cumsum(counts) - counts, counts
