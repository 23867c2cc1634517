"""Training: one loop for every backend.

What is drawn at random (order of the images, their shifts) depends on the seed, the epoch and the step alone,
so a resumed run needs no generator's state: it goes on exactly where it was.
"""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import __version__, checkpoint, modelfile
from .data import Pairs, Resident, Samples, absent, by_name, changes, fingerprint, window
from .errors import ModelFileError, ShapeError, TrainingError, TrainingWarning, short
from .model import CapsNet, Learner
from .spec import CapsNetSpec

BEST, LAST, LOG = "best.safetensors", "last.safetensors", "log.jsonl"
# Errors of an output that takes no more: a pipe or a terminal that nobody reads, a log on a full disk.
CLOSED = (errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT)
READ_SECONDS = 0.1  # how long losses may stay unread on a device: it would stand idle whenever one is waited for


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


class Stopped(KeyboardInterrupt):
    """Training was interrupted, and all that it did is saved."""


class Reporter(Protocol):
    """Who is told how training goes: the command line's progress bar, TensorBoard, a test."""

    def begin(self, epoch: int, epochs: int, steps: int, step: int) -> None:
        """Hear that an epoch of `steps` begins, or goes on at `step`."""

    def step(self, images: int, loss: float, accuracy: float) -> None:
        """Hear of a step, with the epoch's mean loss and accuracy so far."""

    def end(self, row: dict[str, Any]) -> None:
        """Hear of the end of an epoch: the row that the log gets."""


class Predictor(Protocol):
    """A network on any backend, or an ONNX session."""

    def predict(self, images: Any) -> NDArray[Any]:
        """Return the lengths [N, J] for images [N, C, H, W]."""


@dataclass
class Progress:
    """Where training stands: what a checkpoint keeps beside parameters and moments."""

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


def train(
    net: CapsNet[Any],
    learner: Learner[Any],
    data: Samples,
    held_out: Samples,
    recipe: Recipe,
    folder: str | Path,
    resume: bool = False,
    reporters: tuple[Reporter, ...] = (),
    checkpoint_seconds: float = 60.0,
    resuming: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Train `net` in place and return the log's rows, one per epoch.

    `folder` receives `last.safetensors` (a model, and all that resuming needs; written every epoch, every
    `checkpoint_seconds` and when interrupted), `best.safetensors` (the model of highest held-out accuracy)
    and `log.jsonl`. With `resume` training goes on from `last.safetensors`, to the bit on a CPU with as many threads;
    with others a TrainingWarning says so. What was frozen (`learner.frozen`) stays frozen. `resuming` are JSON values
    that only the checkpoint keeps, such as the path of the data. How the data were split, and fingerprints of both
    parts, are kept with every file. Classes are matched by name.

    Raises
    ------
    TrainingError : the loss is not finite, nothing can learn, there is one class, or the checkpoint is damaged or
        belongs to other settings or data
    Stopped : by Ctrl-C, SIGTERM, SIGHUP or a reporter whose output is closed or full: a KeyboardInterrupt, after a
        checkpoint
    KeyboardInterrupt : by a second one, at once
    """
    folder = Path(folder)
    for dataset, what in ((data, "training"), (held_out, "held-out")):
        check_samples(dataset, what)
        if len(dataset.classes) != net.spec.classes:
            raise ShapeError(f"the {what} set has {len(dataset.classes)} classes; the network has {net.spec.classes}")
    data, held_out = check_dataset(net, data, "training"), check_dataset(net, held_out, "held-out")
    if len(data.classes) - len(absent(data)) < 2:
        raise TrainingError(
            f"the training images show one class only ({', '.join(sorted({*data.classes} - {*absent(data)}))}): "
            "a network learns to tell classes apart, so give it images of another one too"
        )
    if learner.reconstruction != recipe.reconstruction:
        raise TrainingError(
            f"the learner weighs reconstruction by {learner.reconstruction}, the recipe by {recipe.reconstruction}: "
            "make it as Learner(net, recipe.reconstruction)"
        )
    if recipe.shift >= min(net.spec.input[1:]):
        raise TrainingError(f"a shift of {recipe.shift} pixels moves images of {net.spec.input} out of sight")
    if not resume:
        _make(folder)
    with alone(folder) if learner.writes else nullcontext(), _Interrupts() as interrupts:
        per_epoch = recipe.per_epoch(len(data))
        known = {"training": fingerprint(data), "held_out": fingerprint(held_out)}
        rows, progress = _restore(net, learner, recipe, folder, known) if resume else _start(folder)
        split = getattr(held_out, "split", None) or {"rule": "own"}
        net.provenance |= _provenance(recipe, len(data)) | {"split": dict(split), "fingerprints": known}
        net.provenance |= learner.workers
        data = learner.hold(data, recipe.shift)
        listeners = list(reporters)
        unread: list[tuple[Any, Any, NDArray[Any]]] = []  # loss, lengths and labels of the last steps
        began = saved = read = time.monotonic()

        def tell(what: str, *about: Any) -> None:
            for reporter in tuple(listeners):
                try:
                    getattr(reporter, what)(*about)
                except OSError as error:
                    if error.errno not in CLOSED:
                        raise
                    listeners.remove(reporter)  # what it writes to is gone or full
                    interrupts.asked = True

        def take_in() -> None:
            for loss, lengths, labels in unread:
                if not math.isfinite(loss := float(loss)):
                    what = f"the loss became {loss}"
                    raise TrainingError(_not_finite(what, progress.steps + 1, progress, recipe, folder))
                progress.step += 1
                progress.steps += 1
                progress.loss += loss * len(labels)
                progress.correct += int(right(net.ops.to_numpy(lengths), labels).sum())
                progress.seconds = time.monotonic() - began
                seen = min(progress.step * recipe.batch, len(data))
                tell("step", len(labels), progress.loss / seen, progress.correct / seen)
            unread.clear()

        def current() -> dict[str, NDArray[Any]]:
            arrays = {name: net.ops.to_numpy(p) for name, p in net.params.items()}
            try:
                checkpoint.check_finite(arrays)
            except ValueError as error:
                raise TrainingError(_not_finite(str(error), progress.steps, progress, recipe, folder)) from None
            return arrays

        def save() -> None:
            if not learner.writes:
                return
            arrays, state = current(), learner.state() if progress.steps else {}
            # The log's rows are kept in the checkpoint: the two can then never tell of different moments.
            about = net.provenance | {"training": asdict(progress), "recipe": asdict(recipe), "log": rows}
            about |= {"resume": dict(resuming or {}), "frozen": list(learner.frozen)}
            named = {modelfile.STATE + name: array for name, array in state.items()}
            modelfile.save(folder / LAST, modelfile.Model(net.spec, arrays, net.classes, about, named))

        for epoch in range(progress.epoch, recipe.epochs):
            began = time.monotonic() - progress.seconds
            tell("begin", epoch + 1, recipe.epochs, per_epoch, progress.step)
            for images, labels in batches(data, recipe, epoch, progress.step):
                each = np.eye(net.spec.classes)[labels.reshape(len(labels), -1)]  # [B, 1 or 2, J]
                parts: list[tuple[Any, Any]] = []
                if images.ndim == 5:
                    parts = [(each[:, i], images[:, i]) for i in range(each.shape[1])]
                    images = np.minimum(images.sum(1), 1)  # as `Pairs` lays them on top of each other
                rate = recipe.rate_at(progress.steps + len(unread))
                try:
                    unread.append((*learner.step(images, each.sum(1), rate, parts), labels))
                except TrainingError:  # another process of this training is gone; this one is as after the last step
                    take_in()
                    if progress.steps:
                        save()
                    raise
                stop, now = interrupts.asked, time.monotonic()
                due = stop or now - saved > checkpoint_seconds
                if due or now - read > READ_SECONDS:
                    take_in()
                    read = now
                if due:
                    save()
                    saved = time.monotonic()
                if stop:
                    raise Stopped
            take_in()
            current()  # nothing is measured or saved of a network that is lost
            row = {
                "epoch": epoch + 1,
                "steps": progress.steps,
                "rate": recipe.rate_at(progress.steps),
                "loss": progress.loss / len(data),
                "accuracy": progress.correct / len(data),
                "held_out_accuracy": accuracy(net, held_out, recipe.batch),
                "seconds": progress.seconds,
                "images_per_second": len(data) / progress.seconds,
            }
            rows.append(row)
            net.provenance |= {"epoch": epoch + 1, "held_out_accuracy": row["held_out_accuracy"]}
            if row["held_out_accuracy"] > progress.best:  # saved first: a checkpoint that knows of it may rely on it
                progress.best = row["held_out_accuracy"]
                if learner.writes:
                    net.save(folder / BEST)
            progress = Progress(epoch + 1, 0, progress.steps, best=progress.best)
            save()
            saved = time.monotonic()
            if learner.writes:
                _write_log(folder, rows)
            tell("end", row)
    return rows


class _Interrupts:
    """Lets Ctrl-C, SIGTERM and SIGHUP wait for the end of a step: half a step could not be resumed exactly.

    A second one does not wait. Outside the main thread, where signals cannot be caught, nothing changes.
    """

    asked = False

    def __enter__(self) -> _Interrupts:
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            caught = [signal.SIGINT, signal.SIGTERM]
            if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
                caught.append(signal.SIGHUP)
            self.before = {which: signal.signal(which, self._ask) for which in caught}
        return self

    def __exit__(self, *_: object) -> None:
        if self.main:
            for which, handler in self.before.items():
                signal.signal(which, handler)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def batches(data: Samples, recipe: Recipe, epoch: int, skip: int = 0) -> Iterator[tuple[Any, NDArray[Any]]]:
    """Yield the shuffled, shifted batches of one epoch from batch `skip` on: images [B, C, H, W] and labels [B].

    Every image is moved by its own whole number of pixels, up to `recipe.shift` each way. The two images of `Pairs`
    come apart, [B, 2, C, H, W], moved together, with labels [B, 2].
    """
    read = data.parts if isinstance(data, Pairs) else data.batch
    order = np.random.default_rng([recipe.seed, epoch]).permutation(len(data))
    for step in range(skip, recipe.per_epoch(len(data))):
        index = order[step * recipe.batch : (step + 1) * recipe.batch]
        down, across = np.random.default_rng([recipe.seed, epoch, step]).integers(
            0, 2 * recipe.shift + 1, (2, len(index))
        )
        if isinstance(data, Resident):
            yield data.windows(index, down, across), data.labels[index]
        else:
            images, labels = read(index, recipe.shift)
            yield shifted(images, recipe.shift, down, across), labels


def shifted(images: NDArray[Any], margin: int, down: NDArray[np.integer], across: NDArray[np.integer]) -> NDArray[Any]:
    """Return the window of each of the images [B, …, H, W], smaller by `margin` on each side, that begins there."""
    *shape, height, width = images.shape
    height, width = height - 2 * margin, width - 2 * margin
    moved = window(images.reshape(len(images), -1, *images.shape[-2:]), down, across, height, width)
    return moved.reshape(*shape, height, width)


def right(lengths: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Say for lengths [B, J] whether the longest are those of the labels [B], or the two longest of [B, 2]."""
    wanted = labels.reshape(len(labels), -1)
    longest = np.argsort(-lengths, axis=1, kind="stable")[:, : wanted.shape[1]]
    same: NDArray[np.bool_] = (np.sort(longest, 1) == np.sort(wanted, 1)).all(1)
    return same


def accuracy(net: Predictor, data: Samples, batch: int = 128) -> float:
    """Return the share of images whose longest capsules are those of their labels; by name, if `net` has `classes`."""
    correct = 0
    data, _ = by_name(data, getattr(net, "classes", data.classes), "test")
    for start in range(0, len(data), batch):
        images, labels = data.batch(slice(start, start + batch))
        correct += int(right(net.predict(images), labels).sum())
    return correct / len(data)


def check_samples(data: Any, what: str) -> None:
    """Raise ShapeError unless `data` are `Samples`."""
    if not isinstance(data, Samples):
        raise ShapeError(
            f"the {what} set is {short(data)}, a {type(data).__name__}: give a capscore.data.Dataset(images, labels, "
            "classes) of NumPy arrays, or what capscore.data.load returns; training shuffles and batches it itself"
        )


def check_dataset(
    net: CapsNet[Any], data: Samples, what: str, say: Callable[[str], object] = lambda note: None
) -> Samples:
    """Return `data` with its labels numbered as the network's classes; `say` hears of names that differ.

    Raises ShapeError unless these are `Samples`, of the network's size, and DataError if the classes are others.
    """
    check_samples(data, what)
    if not len(data):
        raise ShapeError(f"the {what} set has no images")
    if data.size != net.spec.input:
        raise ShapeError(f"the {what} images are {data.size}; the network takes {net.spec.input}")
    matched, note = by_name(data, net.classes, what)
    if note:
        say(note)
    return matched


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot make the folder {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise TrainingError(f"cannot write into the folder {folder}: choose another one")


def _start(folder: Path) -> tuple[list[dict[str, Any]], Progress]:
    if (folder / LAST).exists():
        raise TrainingError(f"{folder} already holds a training: resume it, or choose another folder")
    return [], Progress()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let no second training write into the folder: their checkpoints would take turns.

    Removes what one that was killed has left half-written. Windows and some network file systems cannot tell.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY)  # the system lets go of it when the process ends, however it ends
    except OSError as error:
        raise TrainingError(f"cannot open the folder {folder}: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise TrainingError(
            f"another training is writing into {folder}: wait for it, or choose another folder"
        ) from None
    except OSError:  # a file system without locks
        pass
    else:
        for name in (BEST, LAST, LOG):
            modelfile.sweep(folder / name)
    try:
        yield
    finally:
        os.close(handle)


def read_last(folder: Path, kind: Any = CapsNetSpec) -> modelfile.Model:
    """Read the last checkpoint in a folder. TrainingError says what is wrong with it, and what helps."""
    if not (folder / LAST).exists():
        raise TrainingError(f"there is nothing to resume in {folder}: {LAST} is missing")
    try:
        return modelfile.read(folder / LAST, kind)
    except ModelFileError as error:
        raise TrainingError(f"{error}; {_cure(folder, kind)}") from None


def _restore(
    net: CapsNet[Any], learner: Learner[Any], recipe: Recipe, folder: Path, known: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], Progress]:
    """Take parameters, moments and progress from the last checkpoint, or say why it is not one of this training."""
    model = read_last(folder, type(net.spec))
    about = model.provenance
    if model.spec != net.spec:
        raise TrainingError(f"the checkpoint in {folder} is of another network; resume with that one's settings")
    before = asdict(Recipe.of(about))
    changed = [k for k, v in asdict(recipe).items() if k != "epochs" and before[k] != v]
    if changed:
        which = ", ".join(f"{k} was {before[k]}" for k in changed)
        raise TrainingError(f"the training in {folder} had other settings: {which}; only epochs may change")
    state = {name.removeprefix(modelfile.STATE): array for name, array in model.state.items()}
    try:
        images = known["training"]["images"]
        if about["training_images"] != images or model.classes != net.classes:
            raise TrainingError(
                f"the training in {folder} was on other data: {short(about['training_images'])} images of "
                f"{', '.join(model.classes)}; these are {images} of {', '.join(net.classes)}; "
                "bring them back as they were, or begin a new training"
            )
        for part, now in known.items() if "fingerprints" in about else ():
            if how := changes(about["fingerprints"][part], now):
                raise TrainingError(
                    f"the training in {folder} was on other data: as {part.replace('_', '-')} images there are now "
                    f"{how}; bring the files back as they were, or begin a new training"
                )
        progress = Progress(**about["training"])
        progress.check(recipe, images, about["log"])
        checkpoint.check_moments(model.params, state, progress.steps)
        checkpoint.check_finite(model.params)
        if "frozen" in about:  # a checkpoint of an earlier version does not tell
            learner.frozen = tuple(about["frozen"])
    except (KeyError, TypeError, ValueError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else error
        raise TrainingError(
            f"{folder / LAST} is no checkpoint of a training, or is damaged: {told}; {_cure(folder, type(net.spec))}"
        ) from None
    for name, p in net.params.items():
        stored, wanted = model.params[name].dtype, net.ops.to_numpy(p).dtype
        if stored != wanted:
            raise TrainingError(
                f"{folder / LAST} has {name} in {stored}, the network in {wanted}: make the network with dtype "
                f'"{stored}"'
            )
    if progress.steps:
        learner.restore(state, progress.steps)
    net.assign(model.params)
    for what, count in learner.workers.items():
        if what in about and about[what] != count:
            warnings.warn(
                f"{what}: {short(about[what])} before and {count} now, so the training goes on, but not to the same "
                "bits (float32 differs by about 1e-7)",
                TrainingWarning,
                stacklevel=3,
            )
    rows = list(about["log"])
    if learner.writes:
        _write_log(folder, rows)  # it may have been killed before it did
    return rows, progress


def _cure(folder: Path, kind: Any) -> str:
    """Return what helps when the last checkpoint is of no use."""
    try:
        modelfile.read(folder / BEST, kind)
    except ModelFileError:
        return "train anew into another folder"
    return f"train anew into another folder; the best model so far is whole in {folder / BEST}"


def _provenance(recipe: Recipe, images: int) -> dict[str, Any]:
    return {
        "capscore": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "training_images": images,
        "recipe": asdict(recipe),
    }


def _write_log(folder: Path, rows: list[dict[str, Any]]) -> None:
    modelfile.write_atomically(folder / LOG, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _not_finite(what: str, step: int, progress: Progress, recipe: Recipe, folder: Path) -> str:
    saved = f"the last good parameters are in {folder / LAST}" if (folder / LAST).exists() else "nothing was saved yet"
    return (
        f"{what} at step {step} (epoch {progress.epoch + 1}): the rate {recipe.rate_at(progress.steps):.2g} is too "
        f"high or an image is not finite; train anew with a smaller rate ({saved})"
    )
