"""Images on another canvas: cropped or padded around the centre, or placed at random."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore.data.dataset import Index, Moved, Samples, positions
from capscore.data.draws import Seed, draws, integers_below
from capscore.data.window import window
from capscore.errors import DataError


def framed(images: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Return what is around the centre of images [B, C, H, W], `height`×`width` of it, with zeros where nothing is."""
    _, tall, wide = images.shape[1:]
    top, left = (np.full(len(images), n // 2) for n in (tall - height, wide - width))
    return window(images, top, left, height, width)


@dataclass(frozen=True, eq=False, repr=False)
class Redrawn(Moved):
    """Base of those that show every image of a source in another way, under its label."""

    source: Samples

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.source.classes

    @property
    def labels(self) -> NDArray[Any]:
        """The labels of the source."""
        return self.source.labels

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.source)


@dataclass(frozen=True, eq=False, repr=False)
class Framed(Redrawn):
    """The `height`×`width` pixels around the centre of every image: a crop, or with zeros around it.

    Training moves the frame by up to `shift` pixels each way, as far as it meets an edge. What it then takes
    in is the image's own: a random patch of a larger image, or a random place on a larger canvas.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        """Check the frame."""
        if min(self.height, self.width) < 1:
            raise DataError(f"a frame of {self.height}×{self.width}: it needs at least one pixel")

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, height, width)."""
        return self.source.size[0], self.height, self.width

    @property
    def shift(self) -> int:
        """From the centre to the nearest edge, in pixels."""
        _, height, width = self.source.size
        return min(abs(height - self.height), abs(width - self.width)) // 2

    def batch(self, index: Index, margin: int = 0) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Images [B, C, height, width], larger by `margin` on each side, and their labels."""
        images, labels = self.source.batch(index)
        return framed(images, self.height + 2 * margin, self.width + 2 * margin), labels


@dataclass(frozen=True, eq=False, repr=False)
class OnCanvas(Redrawn):
    """Base of those that draw where every image comes to lie on `canvas`×`canvas` pixels."""

    canvas: int = 40
    seed: Seed = 0

    shift = 0

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, canvas, canvas)."""
        return self.source.size[0], self.canvas, self.canvas


@dataclass(frozen=True, eq=False, repr=False)
class Placed(OnCanvas):
    """Every image at a place of its own, drawn at random, on `canvas`×`canvas` pixels of zeros."""

    def __post_init__(self) -> None:
        """Check the canvas."""
        if self.canvas < max(self.source.size[1:]):
            raise DataError(f"images of {self.source.size} (C×H×W) do not fit a canvas of {self.canvas} pixels")

    def batch(self, index: Index, margin: int = 0) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Images [B, C, canvas, canvas], larger by `margin` on each side, and their labels."""
        index = positions(index, len(self))
        images, labels = self.source.batch(index)
        _, height, width = self.source.size
        bits = draws(self.seed, index, 2)
        down = integers_below(bits[0], self.canvas - height + 1)
        right = integers_below(bits[1], self.canvas - width + 1)
        side = self.canvas + 2 * margin
        return window(images, -down - margin, -right - margin, side, side), labels
