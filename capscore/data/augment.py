"""Augmentation: what is changed about an image each time that training sees it. A recipe's part, off by default.

Changes of shape are composed and sampled once, bilinearly, with zeros around the image, so that several blur no more
than one. All are drawn anew for every image of every batch, by a generator that the seed, the epoch and the step make.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from capscore.data.affine import sample
from capscore.data.batch import Batch
from capscore.errors import DataError
from capscore.values import Value, check_choice, check_flags, check_numbers, check_whole

Images = NDArray[np.float32]  # [B, C, H, W] in [0, 1]
Points = tuple[NDArray[np.float64], NDArray[np.float64]]  # rows and columns [B, H, W], counted from the middle


@dataclass(frozen=True)
class Augmentation(Value, ABC):
    """A change of images, and how strong. Subclasses are frozen dataclasses of JSON values."""

    @abstractmethod
    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Return the batch changed."""


class Geometric(Augmentation):
    """A change of where things lie in an image."""

    @abstractmethod
    def source(self, points: Points, rng: np.random.Generator) -> Points:
        """Return from where in the image each of the points takes its value."""

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Return the batch with its images, and those of its parts, drawn from other places."""
        return _resampled(batch, (self,), rng)


@dataclass(frozen=True)
class Rotation(Geometric):
    """By up to `degrees` each way around the middle; or, `spread` "normal", three standard deviations of that.

    A `share` of the images is turned.
    """

    degrees: float
    spread: str = "uniform"
    share: float = 1.0

    def __post_init__(self) -> None:
        """Check every setting."""
        check_numbers(self, "degrees", most=180)
        check_choice(self, "spread", "uniform", "normal")
        check_numbers(self, "share", most=1)

    def source(self, points: Points, rng: np.random.Generator) -> Points:
        """Return the points turned."""
        (y, x), most = points, math.radians(self.degrees)
        turn = _uniform(rng, y, most) if self.spread == "uniform" else rng.normal(0, most / 3, (len(y), 1, 1))
        turn = turn * (rng.random(turn.shape) < self.share)
        cos, sin = np.cos(turn), np.sin(turn)
        return cos * y - sin * x, sin * y + cos * x


@dataclass(frozen=True)
class Scale(Geometric):
    """Larger or smaller by up to a share `by`; height and width `apart`, each by its own, or alike."""

    by: float
    apart: bool = False

    def __post_init__(self) -> None:
        """Check every setting."""
        check_numbers(self, "by", most=0.9)
        check_flags(self, "apart")

    def source(self, points: Points, rng: np.random.Generator) -> Points:
        """Return the points nearer to the middle or farther away."""
        y, x = points
        tall = 1 + _uniform(rng, y, self.by)
        wide = 1 + _uniform(rng, y, self.by) if self.apart else tall
        return y / tall, x / wide


@dataclass(frozen=True)
class Squeeze(Geometric):
    """Narrower by 0 to `pixels`, or as much less tall, as chance has it (Byerly, Kalganova, Dear 2020)."""

    pixels: float

    def __post_init__(self) -> None:
        """Check the setting."""
        check_numbers(self, "pixels", most=1e4)

    def source(self, points: Points, rng: np.random.Generator) -> Points:
        """Return the points farther from the middle along one axis."""
        y, x = points
        lost = rng.random((len(y), 1, 1)) * self.pixels
        across = rng.random((len(y), 1, 1)) < 0.5
        height, width = y.shape[1:]
        return y / (1 - np.minimum(lost / height, 0.9) * ~across), x / (1 - np.minimum(lost / width, 0.9) * across)


@dataclass(frozen=True)
class Shear(Geometric):
    """Slanted by up to `by` pixels to the side for each pixel down, each way."""

    by: float

    def __post_init__(self) -> None:
        """Check the setting."""
        check_numbers(self, "by", most=2)

    def source(self, points: Points, rng: np.random.Generator) -> Points:
        """Return the points moved along their rows."""
        y, x = points
        return y, x - _uniform(rng, y, self.by) * y


@dataclass(frozen=True)
class Translation(Geometric):
    """Moved by up to `pixels` each way, down and across, by fractions too. (`Recipe.shift` moves by whole ones.)"""

    pixels: float

    def __post_init__(self) -> None:
        """Check the setting."""
        check_numbers(self, "pixels", most=1e4)

    def source(self, points: Points, rng: np.random.Generator) -> Points:
        """Return the points moved."""
        y, x = points
        return y - _uniform(rng, y, self.pixels), x - _uniform(rng, y, self.pixels)


@dataclass(frozen=True)
class Crop(Geometric):
    """Moved by whole pixels, up to `padding` each way: a crop of the image with so many zeros around it."""

    padding: int

    def __post_init__(self) -> None:
        """Check the setting."""
        check_whole(self, "padding", least=0)

    def source(self, points: Points, rng: np.random.Generator) -> Points:
        """Return the points moved."""
        y, x = points
        down, across = rng.integers(-self.padding, self.padding + 1, (2, len(y), 1, 1))
        return y - down, x - across


@dataclass(frozen=True)
class Flip(Geometric):
    """Left and right exchanged, in a `share` of the images. (Not for digits or letters.)"""

    share: float = 0.5

    def __post_init__(self) -> None:
        """Check the setting."""
        check_numbers(self, "share", most=1)

    def source(self, points: Points, rng: np.random.Generator) -> Points:
        """Return the points on the other side."""
        y, x = points
        return y, x * np.where(rng.random((len(y), 1, 1)) < self.share, -1, 1)


@dataclass(frozen=True)
class Elastic(Geometric):
    """Every place moved by its own, smoothly (Simard, Steinkraus, Platt 2003).

    `strength` is the standard deviation of the moves in pixels, `smooth` how far they are alike.
    """

    strength: float
    smooth: float = 4.0

    def __post_init__(self) -> None:
        """Check every setting."""
        check_numbers(self, "strength", most=1e3)
        check_numbers(self, "smooth", least=0.1, most=1e3)

    def source(self, points: Points, rng: np.random.Generator) -> Points:
        """Return the points moved."""
        y, x = points
        tall, wide = (_gaussian(n, self.smooth) for n in y.shape[1:])
        moves = tall @ rng.standard_normal((2, *y.shape)) @ wide.T * self.strength
        return y + moves[0], x + moves[1]


@dataclass(frozen=True)
class Erasing(Augmentation):
    """A square of `size` pixels set to zero at a random place of every image (DeVries, Taylor 2017)."""

    size: int

    def __post_init__(self) -> None:
        """Check the setting."""
        check_whole(self, "size")

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Return the batch with a hole in every image; parts, which are what is to be drawn, stay whole."""
        _, _, height, width = batch.images.shape
        if self.size > min(height, width):
            raise DataError(f"Erasing: a square of {self.size} pixels is larger than images of {height}×{width}")
        top = rng.integers(0, height - self.size + 1, (len(batch.images), 1))
        left = rng.integers(0, width - self.size + 1, (len(batch.images), 1))
        rows, columns = np.arange(height) - top, np.arange(width) - left
        inside = ((rows >= 0) & (rows < self.size))[:, :, None] & ((columns >= 0) & (columns < self.size))[:, None]
        return batch._replace(images=batch.images * ~inside[:, None])


@dataclass(frozen=True)
class ColourJitter(Augmentation):
    """Brightness, contrast and saturation each multiplied by a factor up to so much from 1, each way."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        """Check every setting."""
        check_numbers(self, "brightness", "contrast", "saturation", most=1)

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Return the batch with its images, and those of its parts, in other colours, in [0, 1]."""
        shape = len(batch.images), 1, 1, 1
        light, depth, colour = (
            rng.uniform(1 - most, 1 + most, shape).astype(np.float32)
            for most in (self.brightness, self.contrast, self.saturation)
        )

        def coloured(images: Images) -> Images:
            images = images * light
            mean = images.mean((1, 2, 3), keepdims=True)
            images = (images - mean) * depth + mean
            grey = images.mean(1, keepdims=True)
            bright: Images = np.clip((images - grey) * colour + grey, 0, 1)
            return bright

        return _of_all(batch, coloured)


@dataclass(frozen=True)
class Mixup(Augmentation):
    """Every image mixed with another, λ to 1 - λ, and their targets too, λ ~ Beta(alpha, alpha) (Zhang et al. 2018)."""

    alpha: float = 0.2

    def __post_init__(self) -> None:
        """Check the setting."""
        check_numbers(self, "alpha", least=1e-3, most=100)

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Return the batch mixed. DataError: it has parts, which nothing mixes."""
        if batch.parts:
            raise DataError("Mixup: these images already show several objects; train them without it")
        share, other = rng.beta(self.alpha, self.alpha, len(batch.images)), rng.permutation(len(batch.images))
        of_image = share.astype(np.float32)[:, None, None, None]
        images = batch.images * of_image + batch.images[other] * (1 - of_image)
        targets = batch.targets * share[:, None] + batch.targets[other] * (1 - share[:, None])
        return Batch(images, targets)


# By name on the command line: what suits most images of a kind.
AUGMENTATIONS: dict[str, tuple[Augmentation, ...]] = {
    "digits": (Rotation(30, "normal", 0.5), Scale(0.15, apart=True), Translation(3), Erasing(4)),
    "pictures": (Flip(), Crop(4), Rotation(10), ColourJitter(0.2, 0.2, 0.2)),
}


def augmented(batch: Batch, augmentations: Sequence[Augmentation], rng: np.random.Generator) -> Batch:
    """Return the batch after all augmentations, in their order."""
    for geometric, group in groupby(augmentations, lambda each: isinstance(each, Geometric)):
        if geometric:
            batch = _resampled(batch, tuple(group), rng)  # type: ignore[arg-type]
        else:
            for each in group:
                batch = each(batch, rng)
    return batch


def _resampled(batch: Batch, changes: Sequence[Geometric], rng: np.random.Generator) -> Batch:
    count, _, height, width = batch.images.shape
    middle = (height - 1) / 2, (width - 1) / 2
    rows, columns = np.arange(height) - middle[0], np.arange(width) - middle[1]
    points = np.broadcast_to(rows[:, None], (count, height, width)), np.broadcast_to(columns, (count, height, width))
    for change in reversed(changes):  # where the last change takes its values is where the one before puts them
        points = change.source(points, rng)
    y, x = points[0] + middle[0], points[1] + middle[1]
    return _of_all(batch, lambda images: sample(images, y, x))


def _of_all(batch: Batch, change: Callable[[Images], Images]) -> Batch:
    parts = tuple((targets, change(images)) for targets, images in batch.parts)
    return Batch(change(batch.images), batch.targets, parts)


def _uniform(rng: np.random.Generator, like: NDArray[np.float64], most: float) -> NDArray[np.float64]:
    return rng.uniform(-most, most, (len(like), 1, 1))


def _gaussian(size: int, smooth: float) -> NDArray[np.float64]:
    """Return [size, size]: each row averages independent numbers around its place to one of variance 1."""
    weights = np.exp(-(((np.arange(size)[:, None] - np.arange(size)) / smooth) ** 2) / 2)
    rows: NDArray[np.float64] = weights / np.sqrt((weights**2).sum(1, keepdims=True))
    return rows
