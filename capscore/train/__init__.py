"""Training: one loop for every backend.

What is drawn at random (order of the images, their shifts) depends on the seed, the epoch and the step alone,
so a resumed run needs no generator's state: it goes on exactly where it was.

A training leaves in its folder:

- `best.safetensors`, the model of highest held-out accuracy. With `Recipe.average` it holds the averaged weights.
- `last.safetensors`, a model, and all that resuming needs: written every epoch, once a minute and when interrupted.
- `log.jsonl`, one line for each epoch.

Every file tells how the data were split, and has fingerprints of both parts.
"""

from capscore.train.batches import batches, check_dataset
from capscore.train.checkpoint import read_last
from capscore.train.folder import BEST, LAST, LOG, locked
from capscore.train.interrupts import Stopped
from capscore.train.listeners import Reporter
from capscore.train.loop import train
from capscore.train.rates import Rates, find_rate
from capscore.train.recipe import Recipe
from capscore.train.score import Predictor, accuracy, found_all, measure, right_for

__all__ = [
    "BEST", "LAST", "LOG", "Predictor", "Rates", "Recipe", "Reporter", "Stopped", "accuracy", "batches",
    "check_dataset", "find_rate", "found_all", "locked", "measure", "read_last", "right_for",
    "train",
]  # fmt: skip
