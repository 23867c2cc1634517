"""How to train: the numbers that decide a result, kept with every model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from capscore.data import Augmentation
from capscore.errors import SpecError, TrainingError, short
from capscore.optim import Adam, Exponential, Optimiser, Schedule
from capscore.values import check_names, read, write

NO_NUMBERS = ("optimiser", "schedule", "augment", "balanced")
# fields that are whole numbers; the least
WHOLES = {"epochs": 1, "patience": 0, "batch": 1, "decay_steps": 1, "shift": 0, "seed": 0}


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are those of the authors' code, except the number of epochs.

    `decay`, `decay_steps` and `floor` make the schedule where `schedule` is None. With `average`, the decay of a moving
    average of the weights such as 0.998, the averaged weights are measured and are the best model.
    """

    epochs: int = 10
    batch: int = 128
    rate: float = 1e-3  # of the optimiser; the schedule says how it changes
    decay: float = 0.96  # the rate is multiplied by this, smoothly, every `decay_steps` steps
    decay_steps: int = 2000
    floor: float = 1e-6  # the rate never falls below it
    shift: int = 2  # pixels, each way: every image of a batch is shifted by its own random amount
    reconstruction: float = 0.0005  # weight of the sum of squared pixel errors
    seed: int = 0  # of the initial parameters, the order of the images and the shifts
    optimiser: Optimiser = field(default=Adam())
    schedule: Schedule | None = None
    average: float = 0.0
    patience: int = 0  # epochs without a better one after which training ends; 0: none
    augment: tuple[Augmentation, ...] = ()  # how images are changed anew in every epoch, after the shift
    balanced: bool = False  # draw images so that all classes come alike, instead of every image once an epoch

    def __post_init__(self) -> None:
        """Check every field, naming the one that does not fit."""
        if not isinstance(self.optimiser, Optimiser):
            raise TrainingError(f"optimiser must be one of capscore.optim, such as Adam(), not {short(self.optimiser)}")
        if not isinstance(self.schedule, Schedule | None):
            raise TrainingError(f"schedule must be one of capscore.optim, such as Cosine(), not {short(self.schedule)}")
        object.__setattr__(self, "augment", augment := tuple(self.augment))
        if strange := [each for each in augment if not isinstance(each, Augmentation)]:
            raise TrainingError(f"augment must be of capscore.data.augment, such as Flip(), not {short(strange[0])}")
        for name in (each.name for each in fields(self) if each.name not in NO_NUMBERS):
            value = getattr(self, name)
            if isinstance(value, np.generic):
                value = value.item()
                object.__setattr__(self, name, value)
            least, kinds = WHOLES.get(name, 0), (int,) if name in WHOLES else (int, float)
            if type(value) not in kinds or not least <= value < math.inf:
                kind = "a whole number" if name in WHOLES else "a number"
                raise TrainingError(f"{name} must be {kind} of at least {least}, not {short(value)}")
        if type(self.balanced) is not bool:
            raise TrainingError(f"balanced must be True or False, not {short(self.balanced)}")
        if self.decay > 1:
            raise TrainingError(f"decay must be at most 1, not {self.decay}: the rate is multiplied by it")
        if self.average >= 1:
            raise TrainingError(f"average must be below 1, such as 0.998, not {self.average}")
        try:
            _ = self.rates
        except SpecError as error:
            raise TrainingError(str(error)) from None

    @classmethod
    def of(cls, provenance: Mapping[str, Any]) -> Recipe:
        """Return the recipe that a checkpoint's provenance tells of, as `as_json` or version 0.1 wrote it."""
        try:
            return cls.from_json(provenance["recipe"], "recipe")
        except (KeyError, TypeError, AttributeError, SpecError) as error:
            raise TrainingError(f"this is no checkpoint of a training: {error}") from None

    @classmethod
    def from_json(cls, told: dict[str, Any], where: str) -> Recipe:
        """Return the recipe that `as_json` wrote; SpecError or TrainingError says what is wrong, and `where`."""
        check_names({each.name: False for each in fields(cls)}, told, where)
        return cls(**{name: read(value, name) for name, value in told.items()})

    def as_json(self) -> dict[str, Any]:
        """Return every field by name, as JSON values."""
        return {each.name: write(getattr(self, each.name)) for each in fields(self)}

    def check_size(self, height: int, width: int) -> None:
        """Raise TrainingError or DataError if it moves or changes images of this size until nothing is to be seen."""
        if self.shift >= min(height, width):
            raise TrainingError(
                f"a shift of {self.shift} pixels moves images of {height}×{width} out of sight: take a smaller one or 0"
            )
        for change in self.augment:
            change.check(height, width)

    def per_epoch(self, images: int) -> int:
        """Return the steps of an epoch of so many images."""
        return -(-images // self.batch)

    def is_over(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the last epochs of a log, as many as `patience`, were no better than one before."""
        found = [row["held_out_accuracy"] for row in rows]
        return bool(self.patience) and bool(found) and len(found) - 1 - found.index(max(found)) >= self.patience

    def total(self, images: int) -> int:
        """Return the steps of the whole training with so many images."""
        return self.epochs * self.per_epoch(images)

    @cached_property
    def rates(self) -> Schedule:
        """How the learning rate goes: `schedule`, or the exponential one of the three numbers."""
        return self.schedule or Exponential(self.decay, self.decay_steps, self.floor)

    def rate_at(self, step: int, total: int) -> float:
        """Return the learning rate of step 0, 1, 2, … of so many in all."""
        return self.rates(self.rate, step, total)
