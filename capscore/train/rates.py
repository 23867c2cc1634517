"""A learning rate that fits: the loss over some steps of an ever higher one (Smith 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from capscore.data import Samples
from capscore.errors import TrainingError
from capscore.model import CapsNet, Learner
from capscore.train.batches import batches, check_dataset
from capscore.train.recipe import Recipe

LOW, HIGH = 1e-6, 1.0
SMOOTH = 0.9  # of the running mean of the losses
LOST = 4.0  # times the lowest loss, above which there is no way back


@dataclass(frozen=True)
class Rates:
    """The rates that were tried, the smoothed loss at each, and the one to take: a tenth of where it is lowest."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def best(self) -> float:
        """A rate of one digit, a tenth of that of the lowest loss: there the loss still falls fast."""
        found = self.rates[int(np.argmin(self.losses))] / 10
        return float(f"{found:.0e}")


def find_rate(net: CapsNet[Any], learner: Learner[Any], data: Samples, recipe: Recipe, steps: int = 100) -> Rates:
    """Train for some steps, each at a higher rate than the last; the network's parameters are then as they were.

    The learner is spent: take a new one to train with. Raises TrainingError if even the lowest rate diverges.
    """
    data = check_dataset(net, data, "training")
    before = {name: net.ops.to_numpy(p).copy() for name, p in net.params.items()}
    passes = math.ceil(steps / recipe.per_epoch(len(data)))
    shuffled = (batch for epoch in range(passes) for batch in batches(data, replace(recipe, epochs=passes), epoch))
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for step, batch in zip(range(steps), shuffled, strict=False):
        rate = LOW * (HIGH / LOW) ** (step / max(1, steps - 1))
        loss = float(learner.step(batch.images, batch.targets, rate, batch.parts)[0])
        if not math.isfinite(loss):
            break
        mean = SMOOTH * mean + (1 - SMOOTH) * loss
        rates.append(rate)
        losses.append(mean / (1 - SMOOTH ** (step + 1)))
        if losses[-1] > LOST * min(losses):
            break
    net.assign(before)
    if not rates:
        raise TrainingError(f"the loss is not finite at a rate of {LOW:g}: look at the images and the network")
    return Rates(tuple(rates), tuple(losses))
