"""Where a training stands."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

from capscore.errors import short
from capscore.train.recipe import Recipe


@dataclass
class Progress:
    """Where training stands: what a checkpoint keeps beside parameters and the learner's state."""

    epoch: int = 0  # finished epochs
    step: int = 0  # steps done within the next one
    steps: int = 0  # steps done in all
    loss: float = 0.0  # sums over the images of the epoch so far
    correct: int = 0
    seconds: float = 0.0
    best: float = -1.0

    def check(self, recipe: Recipe, images: int, log: Any) -> None:
        """Raise ValueError unless this, read from a file, can be of such a training with the rows `log`."""
        per_epoch, most = recipe.per_epoch(images), sys.float_info.max
        seen = min(self.step * recipe.batch, images) if type(self.step) is int else 0
        wholes = {"epoch": len(log), "step": per_epoch, "steps": most, "correct": seen}
        for name, value in asdict(self).items():
            fits = type(value) in ((int,) if name in wholes else (int, float))
            if not fits or not (-1 if name == "best" else 0) <= value <= wholes.get(name, most):
                raise ValueError(f"{name} is {short(value)}")
        if self.step and not self.seconds:
            raise ValueError("its steps took no time")
        needed = {"epoch", "held_out_accuracy", "seconds"}
        if len(log) != self.epoch or not all(isinstance(row, dict) and needed <= set(row) for row in log):
            raise ValueError("its log is not one of its epochs")
        if [row["epoch"] for row in log] != list(range(1, self.epoch + 1)):
            raise ValueError("its log does not have its epochs in their order")
        if self.steps != self.epoch * per_epoch + self.step:
            raise ValueError(f"{self.epoch} epochs and {self.step} steps of {per_epoch} are not {self.steps} steps")
        if self.best != max((row["held_out_accuracy"] for row in log), default=-1):
            raise ValueError(f"the best accuracy of its log is not {self.best}")
