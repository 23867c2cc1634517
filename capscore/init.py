"""First numbers of parameters, drawn by a seeded NumPy generator: the same bits on every backend."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .values import Value, check_numbers


class Init(Value, ABC):
    """How an array of parameters starts."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the first numbers, float64."""


@dataclass(frozen=True)
class Constant(Init):
    """Every number is `value`."""

    value: float = 0.0

    def __post_init__(self) -> None:
        """Check the number."""
        check_numbers(self, "value", least=-1e9)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the constant; nothing is drawn."""
        return np.full(shape, float(self.value))


@dataclass(frozen=True)
class TruncatedNormal(Init):
    """Normal numbers of standard deviation `std` around `mean`, those beyond two standard deviations drawn again."""

    std: float
    mean: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_numbers(self, "std")
        check_numbers(self, "mean", least=-1e9)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Draw."""
        x = rng.standard_normal(shape)
        while np.any(far := np.abs(x) > 2):
            x[far] = rng.standard_normal(int(far.sum()))
        return x * self.std + self.mean


@dataclass(frozen=True)
class Uniform(Init):
    """Numbers from -`limit` to `limit`, all alike: √(6/(fan_in + fan_out)) makes it Glorot's (2010)."""

    limit: float

    def __post_init__(self) -> None:
        """Check the number."""
        check_numbers(self, "limit")

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Draw."""
        return rng.uniform(-self.limit, self.limit, shape)


@dataclass(frozen=True)
class HeNormal(Init):
    """Normal numbers of variance 2/fan_in (He et al. 2015), for layers followed by ReLU; weights [out, in, …].

    The fan-in is the product of all axes but the first. Of weights of capsules [N, J, D, K] that is J·D·K.
    """

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Draw."""
        return normal(math.sqrt(2 / math.prod(shape[1:]))).draw(rng, shape)


def normal(std: float) -> TruncatedNormal:
    """Return truncated normal numbers whose standard deviation is `std` itself, after they were cut off at twice it."""
    return TruncatedNormal(std / 0.87962566)
