"""What to tell of a training that learns nothing, and what may help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore.train.recipe import Recipe

STEPS = 30  # before which nothing can be expected
EPOCHS = 3  # whose losses are compared
FLAT = 0.02  # by how much of itself a loss that falls has fallen over them, at least
CHANCE = 1.25  # times the share of the most frequent class: an accuracy that needs no learning
ONE = 0.95  # share of the answers that are one class
HIGH, LOW = 0.01, 1e-5  # rates at which the rate itself is suspected


class Watch:
    """Counts the answers of an epoch, and says once what a training suffers from."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes, self.silent = tuple(classes), False
        self.forget()

    def forget(self) -> None:
        """Begin an epoch."""
        self.said, self.shown = np.zeros(len(self.classes)), np.zeros(len(self.classes))

    def see(self, scores: NDArray[Any], targets: NDArray[Any]) -> None:
        """Count a batch: scores and targets [B, J]."""
        self.said += np.bincount(scores.argmax(1), minlength=len(self.classes))
        self.shown += targets.sum(0)

    def advice(self, rows: Sequence[dict[str, Any]], recipe: Recipe) -> str:
        """Say after an epoch, whose row is the last one, what is wrong and what may help; empty if nothing is."""
        usual = self.shown.max() / max(1.0, self.shown.sum())
        row = rows[-1]
        if self.silent or row["steps"] < STEPS or not self.said.sum() or row["accuracy"] > CHANCE * usual:
            return ""
        most = int(self.said.argmax())
        alike = self.said[most] / self.said.sum()
        earlier = rows[-EPOCHS]["loss"] if len(rows) >= EPOCHS else None
        if alike >= ONE and usual < ONE:
            what = f"{alike:.0%} of the answers are {self.classes[most]!r}"
        elif earlier is not None and earlier - row["loss"] < FLAT * earlier:
            what = f"the loss has stayed at {row['loss']:.3g} for {EPOCHS} epochs"
        else:
            return ""
        self.silent = True
        return f"nothing is learned: {what}, and {row['accuracy']:.0%} are right; {self._cure(recipe, float(usual))}"

    def _cure(self, recipe: Recipe, usual: float) -> str:
        if recipe.rate >= HIGH:
            return f"the rate {recipe.rate:g} is likely too high: try {Recipe.rate:g}"
        if recipe.rate <= LOW:
            return f"the rate {recipe.rate:g} is likely too low: try {Recipe.rate:g}"
        if usual > 1.5 / len(self.classes) and not recipe.balanced:
            rare = self.classes[int(np.where(self.shown > 0, self.shown, np.inf).argmin())]
            return (
                f"{usual:.0%} of the images are of one class, so that it pays never to say {rare!r}: weigh the classes "
                "(--class-weights balanced) or draw them alike (--sampling balanced)"
            )
        return (
            f"try a rate of {recipe.rate / 10:g} or {recipe.rate * 10:g}, and look at the images: are their labels "
            "right, and are they light on dark?"
        )
