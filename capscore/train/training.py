"""A training under way: where it stands, what of it is not read yet, and how it is saved."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore import __version__, modelfile
from capscore.data import Batch, Samples
from capscore.errors import TrainingError
from capscore.model import CapsNet, Learner
from capscore.train.advice import Watch
from capscore.train.checkpoint import Rows, check_finite, write_log
from capscore.train.folder import BEST, LAST
from capscore.train.interrupts import Stopped
from capscore.train.listeners import Listeners
from capscore.train.progress import Progress
from capscore.train.recipe import Recipe
from capscore.train.score import Right, accuracy, found_all

READ_SECONDS = 0.1  # how long losses may stay unread on a device: it would stand idle whenever one is waited for


class Training:
    """A network, its learner and recipe, and how far they have come with so many `images`.

    `progress` counts what was read; `rows` are those of the log. `resuming`: see `capscore.train.train`.
    """

    def __init__(
        self,
        net: CapsNet[Any],
        learner: Learner[Any],
        recipe: Recipe,
        folder: Path,
        images: int,
        listeners: Listeners,
        resuming: Mapping[str, Any] | None = None,
        right: Right = found_all,
    ) -> None:
        self.net, self.learner, self.recipe, self.folder = net, learner, recipe, folder
        self.images, self.listeners, self.resuming = images, listeners, dict(resuming or {})
        self.right, self.watch = right, Watch(net.classes)
        self.progress, self.rows = Progress(), Rows()
        self.unread: list[tuple[Any, Any, NDArray[Any]]] = []  # loss, scores and targets of the last steps
        self.began = self.saved = self.looked = time.monotonic()

    def begin_epoch(self) -> None:
        """Start the clock of an epoch, or go on with it."""
        self.began = time.monotonic() - self.progress.seconds
        steps = self.recipe.per_epoch(self.images)
        self.listeners.tell("begin", self.progress.epoch + 1, self.recipe.epochs, steps, self.progress.step)

    def step(self, batch: Batch) -> None:
        """Learn from a batch. What it says is read later."""
        rate = self._rate(self.progress.steps + len(self.unread))
        try:
            loss, scores = self.learner.step(batch.images, batch.targets, rate, batch.parts)
        except TrainingError:  # another process of this training is gone; this one is as after the last step
            self.read()
            if self.progress.steps:
                self.save()
            raise
        self.unread.append((loss, scores, batch.targets))

    @property
    def goes_on(self) -> bool:
        """Whether there is another epoch."""
        return self.progress.epoch < self.recipe.epochs and not self.recipe.is_over(self.rows)

    def keep(self, seconds: float) -> None:
        """Save if the last checkpoint is so many seconds old; read losses that have waited for long.

        If training was asked to stop, save and raise Stopped.
        """
        now, stop = time.monotonic(), self.listeners.interrupts.asked
        due = stop or now - self.saved > seconds
        if due or now - self.looked > READ_SECONDS:
            self.read()
            self.looked = now
        if due:
            self.save()
        if stop:
            raise Stopped

    def read(self) -> None:
        """Count the steps whose losses are unread, and tell of each. TrainingError: a loss is not finite."""
        progress = self.progress
        for loss, scores, targets in self.unread:
            if not math.isfinite(loss := float(loss)):
                raise self._lost(f"the loss became {loss}", progress.steps + 1)
            progress.step += 1
            progress.steps += 1
            progress.loss += loss * len(targets)
            said = self.net.ops.to_numpy(scores)
            progress.correct += int(self.right(said, targets).sum())
            self.watch.see(said, targets)
            progress.seconds = time.monotonic() - self.began
            seen = min(progress.step * self.recipe.batch, self.images)
            self.listeners.tell("step", len(targets), progress.loss / seen, progress.correct / seen)
        self.unread.clear()

    def params(self) -> dict[str, NDArray[Any]]:
        """Return the parameters. TrainingError: one is not finite; nothing is measured or saved of such a network."""
        arrays = {name: self.net.ops.to_numpy(p) for name, p in self.net.params.items()}
        try:
            check_finite(arrays)
        except ValueError as error:
            raise self._lost(str(error), self.progress.steps) from None
        return arrays

    def save(self) -> None:
        """Write the last checkpoint; the log's rows are in it too, so that the two never tell of different moments."""
        if self.learner.writes:
            arrays, state = self.params(), self.learner.state() if self.progress.steps else {}
            told = {"training": asdict(self.progress), "recipe": self.recipe.as_json(), "log": self.rows}
            told |= {"resume": self.resuming, "frozen": list(self.learner.frozen)}
            named = {modelfile.STATE + name: array for name, array in state.items()}
            model = modelfile.Model(self.net.spec, arrays, self.net.classes, self.net.provenance | told, named)
            modelfile.save(self.folder / LAST, model)
        self.saved = time.monotonic()

    def end_epoch(self, held_out: Samples) -> None:
        """Measure the network on images that it does not learn from, write the files, and tell of the epoch."""
        self.read()
        self.params()
        progress = self.progress
        with self.learner.averaged():
            found = accuracy(self.net, held_out, self.recipe.batch)
            self.net.provenance |= {"epoch": progress.epoch + 1, "held_out_accuracy": found}
            if found > progress.best and self.learner.writes:  # first: a checkpoint that knows of it may rely on it
                self.net.save(self.folder / BEST)
        row = {
            "epoch": progress.epoch + 1,
            "steps": progress.steps,
            "rate": self._rate(progress.steps),
            "loss": progress.loss / self.images,
            "accuracy": progress.correct / self.images,
            "held_out_accuracy": found,
            "seconds": progress.seconds,
            "images_per_second": self.images / progress.seconds,
        }
        self.rows.append(row)
        self.progress = Progress(progress.epoch + 1, 0, progress.steps, best=max(progress.best, found))
        self.save()
        if self.learner.writes:
            write_log(self.folder, self.rows)
        self.listeners.tell("end", row)
        if note := self.watch.advice(self.rows, self.recipe):
            self.listeners.tell("note", note)
        self.watch.forget()

    def measure_best(self, test: Samples | None) -> None:
        """Measure the best model on images that nothing was chosen by, if there are any; write that into its file."""
        if test is None or not self.learner.writes:
            return
        best, own = modelfile.read(self.folder / BEST, type(self.net.spec)), self.params()
        self.net.assign(best.params)
        found = accuracy(self.net, test, self.recipe.batch)
        self.net.assign(own)
        if "validation_accuracy" not in best.provenance:  # it was measured before, by a training that now goes on
            best.provenance["validation_accuracy"] = best.provenance["held_out_accuracy"]
        best.provenance["held_out_accuracy"] = found
        modelfile.save(self.folder / BEST, best)

    def _rate(self, step: int) -> float:
        return self.recipe.rate_at(step, self.recipe.total(self.images))

    def _lost(self, what: str, step: int) -> TrainingError:
        last = self.folder / LAST
        saved = f"the last good parameters are in {last}" if last.exists() else "nothing was saved yet"
        return TrainingError(
            f"{what} at step {step} (epoch {self.progress.epoch + 1}): the rate "
            f"{self._rate(self.progress.steps):.2g} is too high or an image is not finite; train anew with a "
            f"smaller rate ({saved})"
        )


def provenance(recipe: Recipe, images: int) -> dict[str, Any]:
    """Return what every file of a training tells of its making."""
    return {
        "capscore": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "training_images": images,
        "recipe": recipe.as_json(),
    }
