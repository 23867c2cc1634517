"""Augmentation: what is changed about an image each time that training sees it. A recipe's part, off by default.

Changes of shape are composed and sampled once, bilinearly, with zeros around the image, so that several blur no more
than one. All are drawn anew for every image of every batch, by a generator that the seed, the epoch and the step make.
What chance decides is drawn on the host, a few numbers for each image; images are changed by them where they lie.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore.data.affine import sample
from capscore.data.batch import Batch
from capscore.data.device import HOST, Device
from capscore.errors import DataError
from capscore.values import Value, check_choice, check_flags, check_numbers, check_whole

Shape = tuple[int, int, int]  # B, H, W
Drawn = tuple[NDArray[Any], ...]  # arrays that broadcast with [B, H, W]
Points = tuple[Any, Any]  # rows and columns, counted from the middle: float32 arrays that broadcast with [B, H, W]


@dataclass(frozen=True)
class Augmentation(Value, ABC):
    """A change of images, and how strong. Subclasses are frozen dataclasses of JSON values."""

    @abstractmethod
    def __call__(self, batch: Batch, rng: np.random.Generator, device: Device = HOST) -> Batch:
        """Return the batch changed; its images lie on `device`."""

    def check(self, height: int, width: int) -> None:
        """Raise DataError if it leaves nothing to see of some images of this size."""
        if self.reach >= min(height, width):
            raise DataError(f"{self!r} leaves nothing to see of images of {height}×{width}: make it less")

    @property
    def reach(self) -> float:
        """How many pixels of a row or a column may go out of sight."""
        return 0


class Geometric(Augmentation):
    """A change of where things lie in an image."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, shape: Shape) -> Drawn:
        """Return what chance decides for B images of H×W."""

    @abstractmethod
    def source(self, points: Points, *drawn: Any) -> Points:
        """Return from where in the image each of the points takes its value."""

    def __call__(self, batch: Batch, rng: np.random.Generator, device: Device = HOST) -> Batch:
        """Return the batch with its images, and those of its parts, drawn from other places."""
        return _resampled(batch, (self,), rng, device)


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

    def draw(self, rng: np.random.Generator, shape: Shape) -> Drawn:
        """Return cosine and sine of the turns."""
        most = math.radians(self.degrees)
        turn = _uniform(rng, shape, most) if self.spread == "uniform" else rng.normal(0, most / 3, (shape[0], 1, 1))
        turn = turn * (rng.random(turn.shape) < self.share)
        return np.cos(turn), np.sin(turn)

    def source(self, points: Points, *drawn: Any) -> Points:
        """Return the points turned."""
        (y, x), (cos, sin) = points, drawn
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

    def draw(self, rng: np.random.Generator, shape: Shape) -> Drawn:
        """Return how many times as tall and as wide."""
        tall = 1 + _uniform(rng, shape, self.by)
        return tall, 1 + _uniform(rng, shape, self.by) if self.apart else tall

    def source(self, points: Points, *drawn: Any) -> Points:
        """Return the points nearer to the middle or farther away."""
        (y, x), (tall, wide) = points, drawn
        return y / tall, x / wide


@dataclass(frozen=True)
class Squeeze(Geometric):
    """Narrower by 0 to `pixels`, or as much less tall, as chance has it (Byerly, Kalganova, Dear 2020)."""

    pixels: float

    def __post_init__(self) -> None:
        """Check the setting."""
        check_numbers(self, "pixels", most=1e4)

    def draw(self, rng: np.random.Generator, shape: Shape) -> Drawn:
        """Return how many times as tall and as wide."""
        count, height, width = shape
        lost = rng.random((count, 1, 1)) * self.pixels
        across = rng.random((count, 1, 1)) < 0.5
        return 1 - np.minimum(lost / height, 0.9) * ~across, 1 - np.minimum(lost / width, 0.9) * across

    def source(self, points: Points, *drawn: Any) -> Points:
        """Return the points farther from the middle along one axis."""
        (y, x), (tall, wide) = points, drawn
        return y / tall, x / wide


@dataclass(frozen=True)
class Shear(Geometric):
    """Slanted by up to `by` pixels to the side for each pixel down, each way."""

    by: float

    def __post_init__(self) -> None:
        """Check the setting."""
        check_numbers(self, "by", most=2)

    def draw(self, rng: np.random.Generator, shape: Shape) -> Drawn:
        """Return how many pixels to the side for each down."""
        return (_uniform(rng, shape, self.by),)

    def source(self, points: Points, *drawn: Any) -> Points:
        """Return the points moved along their rows."""
        (y, x), (slant,) = points, drawn
        return y, x - slant * y


@dataclass(frozen=True)
class Translation(Geometric):
    """Moved by up to `pixels` each way, down and across, by fractions too. (`Recipe.shift` moves by whole ones.)"""

    pixels: float

    def __post_init__(self) -> None:
        """Check the setting."""
        check_numbers(self, "pixels", most=1e4)

    @property
    def reach(self) -> float:
        """Return the pixels."""
        return self.pixels

    def draw(self, rng: np.random.Generator, shape: Shape) -> Drawn:
        """Return the pixels down and across."""
        return _uniform(rng, shape, self.pixels), _uniform(rng, shape, self.pixels)

    def source(self, points: Points, *drawn: Any) -> Points:
        """Return the points moved."""
        (y, x), (down, across) = points, drawn
        return y - down, x - across


@dataclass(frozen=True)
class Crop(Geometric):
    """Moved by whole pixels, up to `padding` each way: a crop of the image with so many zeros around it."""

    padding: int

    def __post_init__(self) -> None:
        """Check the setting."""
        check_whole(self, "padding", least=0)

    @property
    def reach(self) -> float:
        """Return the pixels."""
        return self.padding

    def draw(self, rng: np.random.Generator, shape: Shape) -> Drawn:
        """Return the pixels down and across."""
        return tuple(rng.integers(-self.padding, self.padding + 1, (2, shape[0], 1, 1)))

    def source(self, points: Points, *drawn: Any) -> Points:
        """Return the points moved."""
        (y, x), (down, across) = points, drawn
        return y - down, x - across


@dataclass(frozen=True)
class Flip(Geometric):
    """Left and right exchanged, in a `share` of the images. (Not for digits or letters.)"""

    share: float = 0.5

    def __post_init__(self) -> None:
        """Check the setting."""
        check_numbers(self, "share", most=1)

    def draw(self, rng: np.random.Generator, shape: Shape) -> Drawn:
        """Return -1 for those that are flipped, 1 for others."""
        return (np.where(rng.random((shape[0], 1, 1)) < self.share, -1, 1),)

    def source(self, points: Points, *drawn: Any) -> Points:
        """Return the points on the other side."""
        (y, x), (side,) = points, drawn
        return y, x * side


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

    def draw(self, rng: np.random.Generator, shape: Shape) -> Drawn:
        """Return independent moves down and across, and what makes them smooth along columns and rows."""
        down, across = rng.standard_normal((2, *shape))
        _, height, width = shape
        return down, across, _gaussian(height, self.smooth) * self.strength, _gaussian(width, self.smooth).T

    def source(self, points: Points, *drawn: Any) -> Points:
        """Return the points moved."""
        (y, x), (down, across, tall, wide) = points, drawn
        return y + tall @ down @ wide, x + tall @ across @ wide


@dataclass(frozen=True)
class Erasing(Augmentation):
    """A square of `size` pixels set to zero at a random place of every image (DeVries, Taylor 2017)."""

    size: int

    def __post_init__(self) -> None:
        """Check the setting."""
        check_whole(self, "size")

    @property
    def reach(self) -> float:
        """Return the pixels."""
        return self.size

    def __call__(self, batch: Batch, rng: np.random.Generator, device: Device = HOST) -> Batch:
        """Return the batch with a hole in every image; parts, which are what is to be drawn, stay whole."""
        count, _, height, width = batch.images.shape
        self.check(height, width)
        top = rng.integers(0, height - self.size + 1, (count, 1))
        left = rng.integers(0, width - self.size + 1, (count, 1))
        rows, columns = np.arange(height) - top, np.arange(width) - left
        down, across = (_sent(device, (at >= 0) & (at < self.size)) for at in (rows, columns))
        return batch._replace(images=batch.images * (1 - down[:, None, :, None] * across[:, None, None]))


@dataclass(frozen=True)
class ColourJitter(Augmentation):
    """Brightness, contrast and saturation each multiplied by a factor up to so much from 1, each way."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        """Check every setting."""
        check_numbers(self, "brightness", "contrast", "saturation", most=1)

    def __call__(self, batch: Batch, rng: np.random.Generator, device: Device = HOST) -> Batch:
        """Return the batch with its images, and those of its parts, in other colours, in [0, 1]."""
        shape = len(batch.images), 1, 1, 1
        light, depth, colour = (
            _sent(device, rng.uniform(1 - most, 1 + most, shape))
            for most in (self.brightness, self.contrast, self.saturation)
        )

        def coloured(images: Any) -> Any:
            images = images * light
            mean = images.mean((1, 2, 3), keepdims=True)
            images = (images - mean) * depth + mean
            grey = images.mean(1, keepdims=True)
            return ((images - grey) * colour + grey).clip(0, 1)

        return _of_all(batch, coloured)


@dataclass(frozen=True)
class Mixup(Augmentation):
    """Every image mixed with another, λ to 1 - λ, and their targets too, λ ~ Beta(alpha, alpha) (Zhang et al. 2018)."""

    alpha: float = 0.2

    def __post_init__(self) -> None:
        """Check the setting."""
        check_numbers(self, "alpha", least=1e-3, most=100)

    def __call__(self, batch: Batch, rng: np.random.Generator, device: Device = HOST) -> Batch:
        """Return the batch mixed. DataError: it has parts, which nothing mixes."""
        if batch.parts:
            raise DataError("Mixup: these images already show several objects; train them without it")
        share, other = rng.beta(self.alpha, self.alpha, len(batch.images)), rng.permutation(len(batch.images))
        of_image = _sent(device, share[:, None, None, None])
        images = batch.images * of_image + batch.images[device.put(other)] * (1 - of_image)
        targets = batch.targets * share[:, None] + batch.targets[other] * (1 - share[:, None])
        return Batch(images, targets)


# By name on the command line: what suits most images of a kind.
AUGMENTATIONS: dict[str, tuple[Augmentation, ...]] = {
    "digits": (Rotation(30, "normal", 0.5), Scale(0.15, apart=True), Translation(3), Erasing(4)),
    "pictures": (Flip(), Crop(4), Rotation(10), ColourJitter(0.2, 0.2, 0.2)),
}


def augmented(
    batch: Batch, augmentations: Sequence[Augmentation], rng: np.random.Generator, device: Device = HOST
) -> Batch:
    """Return the batch, whose images lie on `device`, after all augmentations, in their order."""
    for geometric, group in groupby(augmentations, lambda each: isinstance(each, Geometric)):
        if geometric:
            batch = _resampled(batch, tuple(group), rng, device)  # type: ignore[arg-type]
        else:
            for each in group:
                batch = each(batch, rng, device)
    return batch


def _resampled(batch: Batch, changes: Sequence[Geometric], rng: np.random.Generator, device: Device) -> Batch:
    count, _, height, width = batch.images.shape
    middle = (height - 1) / 2, (width - 1) / 2
    points: Points = (
        _sent(device, np.arange(height)[:, None] - middle[0]),
        _sent(device, np.arange(width) - middle[1]),
    )
    for change in reversed(changes):  # where the last change takes its values is where the one before puts them
        points = change.source(points, *(_sent(device, x) for x in change.draw(rng, (count, height, width))))
    y, x = points[0] + middle[0], points[1] + middle[1]
    return _of_all(batch, lambda images: sample(images, y, x, device))


def _of_all(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    parts = tuple((targets, change(images)) for targets, images in batch.parts)
    return Batch(change(batch.images), batch.targets, parts)


def _sent(device: Device, drawn: NDArray[Any]) -> Any:
    """Return numbers as float32 where the images lie."""
    return device.put(drawn.astype(np.float32))


def _uniform(rng: np.random.Generator, shape: Shape, most: float) -> NDArray[np.float64]:
    return rng.uniform(-most, most, (shape[0], 1, 1))


def _gaussian(size: int, smooth: float) -> NDArray[np.float64]:
    """Return [size, size]: each row averages independent numbers around its place to one of variance 1."""
    weights = np.exp(-(((np.arange(size)[:, None] - np.arange(size)) / smooth) ** 2) / 2)
    rows: NDArray[np.float64] = weights / np.sqrt((weights**2).sum(1, keepdims=True))
    return rows
