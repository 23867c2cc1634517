"""Affine transformations of the kind that made affNIST out of MNIST."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore.data.dataset import Index, positions
from capscore.data.device import HOST, Device
from capscore.data.draws import draws, uniform
from capscore.data.place import OnCanvas
from capscore.errors import DataError

ROTATION = 20.0  # degrees, each way
SHEAR = 0.2  # pixels to the side for each pixel down, each way
SCALE = (0.8, 1.2)  # of height and of width, each for itself


@dataclass(frozen=True, eq=False, repr=False)
class Affine(OnCanvas):
    """Every image scaled, sheared, rotated and moved, all drawn at random, on `canvas`×`canvas` pixels.

    It moves as far as its ink stays on the canvas; one whose ink does not fit lies in the middle. The ranges
    are those of affNIST, the transformations are not: they are drawn here.
    """

    def __post_init__(self) -> None:
        """Check the canvas."""
        if self.canvas < 1:
            raise DataError(f"a canvas of {self.canvas} pixels: it needs at least one")

    def batch(self, index: Index, margin: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Images [B, C, canvas, canvas], larger by `margin` on each side, and their labels."""
        index = positions(index, len(self))
        images, labels = self.source.batch(index)
        matrix, origin = poses(images, draws(self.seed, index, 6), self.canvas)
        return transform(images, matrix, origin + margin, self.canvas + 2 * margin), labels


def poses(
    images: NDArray[np.float32], bits: NDArray[np.uint64], canvas: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw a transformation for each of images [B, C, H, W]: matrices [2, 2, B] and origins [2, B].

    A point (down, right) of the image, counted from its centre, comes to matrix @ point + origin.
    """
    turn = np.deg2rad(uniform(bits[0], -ROTATION, ROTATION))
    slant = uniform(bits[1], -SHEAR, SHEAR)
    tall, wide = uniform(bits[2], *SCALE), uniform(bits[3], *SCALE)
    cos, sin = np.cos(turn), np.sin(turn)
    # rotation [[cos, -sin], [sin, cos]] · shear [[1, 0], [slant, 1]] · scales [[tall, 0], [0, wide]]
    matrix = np.array([[(cos - sin * slant) * tall, -sin * wide], [(sin + cos * slant) * tall, cos * wide]])
    ink = images.max(1) > 0
    down, right = (np.arange(n) - (n - 1) / 2 for n in ink.shape[1:])
    lowest, highest = np.empty((2, len(images))), np.empty((2, len(images)))
    for axis in (0, 1):
        place = matrix[axis, 0][:, None, None] * down[:, None] + matrix[axis, 1][:, None, None] * right
        lowest[axis] = np.where(ink, place, np.inf).min((1, 2))
        highest[axis] = np.where(ink, place, -np.inf).max((1, 2))
    blank = ~ink.any((1, 2))
    lowest[:, blank] = highest[:, blank] = 0
    # Interpolation spreads a pixel over less than the square of ±1 around it, which the matrix maps to ±reach;
    # pixels of the canvas are at 0 … canvas - 1, so ink may come as near as -1 and canvas without being lost.
    reach = np.abs(matrix).sum(1)
    first, last = reach - 1 - lowest, canvas - reach - highest
    first, last = np.where(first > last, (first + last) / 2, first), np.where(first > last, (first + last) / 2, last)
    return matrix, uniform(bits[4:6], 0, 1) * (last - first) + first


def transform(
    images: NDArray[np.float32], matrix: NDArray[np.float64], origin: NDArray[np.float64], canvas: int
) -> NDArray[np.float32]:
    """Transform images [B, C, H, W] onto [B, C, canvas, canvas], bilinearly, with zeros around them."""
    _, _, height, width = images.shape
    (a, b), (c, d) = matrix
    grid = np.arange(canvas)
    down = grid[:, None] - origin[0][:, None, None]
    right = grid - origin[1][:, None, None]
    determinant = (a * d - b * c)[:, None, None]
    a, b, c, d = (entry[:, None, None] for entry in (a, b, c, d))
    y = (d * down - b * right) / determinant + (height - 1) / 2
    x = (a * right - c * down) / determinant + (width - 1) / 2
    drawn: NDArray[np.float32] = sample(images, y, x).astype(np.float32)
    return drawn


def sample(images: Any, y: Any, x: Any, device: Device = HOST) -> Any:
    """Take images [B, C, H, W] at rows and columns [B, h, w], bilinearly, with zeros around them: [B, C, h, w].

    All of them lie on `device`. Rows and columns may be less, as long as they broadcast to [B, h, w].
    """
    count, channels, height, width = images.shape
    # Two zeros on every side: a pixel and its next neighbour then both exist for every place, clipped to there.
    tall, wide = height + 4, width + 4
    padded = device.empty((count, channels, tall, wide))
    padded[...] = 0
    padded[:, :, 2:-2, 2:-2] = images
    (top, lower), (left, righter) = device.floored(y.clip(-2, height)), device.floored(x.clip(-2, width))
    planes = device.put(np.arange(count * channels).reshape(count, channels, 1, 1) * (tall * wide))
    place = planes + ((top + 2) * wide + (left + 2))[:, None]
    taken = 0
    for i, vertical in ((0, 1 - lower), (1, lower)):
        for j, horizontal in ((0, 1 - righter), (1, righter)):
            taken = padded.take(place + (i * wide + j)) * (vertical * horizontal)[:, None] + taken
    return taken
