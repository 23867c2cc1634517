"""Equivariance: is the pose of a digit written, linearly, in the numbers of its capsule? And in a CNN's features?"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capscore.data import Dataset
from capscore.data.affine import transform
from lab.experiments.linear import r_squared, read
from lab.experiments.trials import Values, outputs

FACTORS = {  # name → the range that is drawn from
    "rotation, °": (-30.0, 30.0),
    "scale": (0.75, 1.25),
    "shift right, px": (-3.0, 3.0),
    "shift down, px": (-3.0, 3.0),
}


class Reading(NamedTuple):
    """What was read of a factor from the digits that the reader has not seen."""

    true: NDArray[Any]  # [M]
    read: NDArray[Any]  # [M]

    @property
    def r_squared(self) -> float:
        """R² of the readings."""
        return r_squared(self.true, self.read)


def posed(images: NDArray[Any], factor: str, values: NDArray[Any]) -> NDArray[Any]:
    """Return images [N, C, H, H] with one factor changed, each by its own value [N]."""
    count, middle = len(images), (images.shape[-1] - 1) / 2
    matrix = np.tile(np.eye(2)[:, :, None], count)
    origin = np.full((2, count), middle)
    if factor.startswith("rotation"):
        angle = np.deg2rad(values)
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    elif factor == "scale":
        matrix = matrix * values
    else:
        origin[0 if "down" in factor else 1] += values
    return transform(images, matrix, origin, images.shape[-1])


def readings(net: Any, digits: Dataset, seed: int = 0) -> dict[str, Reading]:
    """Read every factor off the winning capsule's numbers, or off a CNN's last features.

    Half of the digits teach the reader, one for each class that the network finds, since a capsule has its own
    numbers; the other half are read. A digit is shown once, in one pose.
    """
    rng = np.random.default_rng(seed)
    images, _ = digits.batch(slice(None))
    teaches = rng.permutation(len(images)) < len(images) // 2
    found: dict[str, Reading] = {}
    for factor, (low, high) in FACTORS.items():
        values = rng.uniform(low, high, len(images))
        lengths, capsules = outputs(net, posed(images, factor, values))
        winner = lengths.argmax(1)
        numbers = capsules[np.arange(len(images)), winner if capsules.shape[1] > 1 else 0]
        guess = np.full(len(images), values[teaches].mean())
        for j in range(lengths.shape[1]):
            here, there = teaches & (winner == j), ~teaches & (winner == j)
            if here.sum() > numbers.shape[1] and there.any():
                guess[there] = read(numbers[here], values[here, None], numbers[there])[:, 0]
        found[factor] = Reading(values[~teaches], guess[~teaches])
    return found


def measure(net: Any, digits: Dataset) -> Values:
    """Return R² of every factor: how much of its variance the readings explain."""
    return {factor: reading.r_squared for factor, reading in readings(net, digits).items()}
