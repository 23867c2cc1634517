"""How to train: the numbers that decide a result, kept with every model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from capscore.errors import TrainingError, short


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are those of the authors' code, except the number of epochs."""

    epochs: int = 10
    batch: int = 128
    rate: float = 1e-3  # of Adam, at the first step
    decay: float = 0.96  # the rate is multiplied by this, smoothly, every `decay_steps` steps
    decay_steps: int = 2000
    floor: float = 1e-6  # the rate never falls below it
    shift: int = 2  # pixels, each way: every image of a batch is shifted by its own random amount
    reconstruction: float = 0.0005  # weight of the sum of squared pixel errors
    seed: int = 0  # of the initial parameters, the order of the images and the shifts

    def __post_init__(self) -> None:
        """Check every number, naming the one that does not fit."""
        wholes = {"epochs": 1, "batch": 1, "decay_steps": 1, "shift": 0, "seed": 0}
        for name, value in asdict(self).items():
            if isinstance(value, np.generic):
                value = value.item()
                object.__setattr__(self, name, value)
            least, kinds = wholes.get(name, 0), (int,) if name in wholes else (int, float)
            if type(value) not in kinds or not least <= value < math.inf:
                kind = "a whole number" if name in wholes else "a number"
                raise TrainingError(f"{name} must be {kind} of at least {least}, not {short(value)}")
        if self.decay > 1:
            raise TrainingError(f"decay must be at most 1, not {self.decay}: the rate is multiplied by it")

    @classmethod
    def of(cls, provenance: Mapping[str, Any]) -> Recipe:
        """Return the recipe that a checkpoint's provenance tells of."""
        try:
            return cls(**provenance["recipe"])
        except (KeyError, TypeError) as error:
            raise TrainingError(f"this is no checkpoint of a training: {error}") from None

    def per_epoch(self, images: int) -> int:
        """Return the steps of an epoch of so many images."""
        return -(-images // self.batch)

    def rate_at(self, step: int) -> float:
        """Return the learning rate of step 0, 1, 2, …"""
        rate: float = self.rate * self.decay ** (step / self.decay_steps)
        return max(self.floor, rate)
