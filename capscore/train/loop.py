"""The loop of training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from capscore.data import Samples, absent, alike, fingerprint, several
from capscore.disk import make_folder
from capscore.errors import ShapeError, TrainingError
from capscore.memory import kept
from capscore.model import CapsNet, Learner
from capscore.train.ahead import ahead
from capscore.train.batches import as_samples, batches, check_dataset
from capscore.train.checkpoint import restore
from capscore.train.folder import LAST, locked
from capscore.train.interrupts import Interrupts
from capscore.train.listeners import Listeners, Reporter
from capscore.train.recipe import Recipe
from capscore.train.score import made_of, right_for
from capscore.train.training import Training, provenance

# What a file tells of the training that its parameters came from, as of a network of the zoo: another one has begun.
EARLIER = ("published", "measured", "seeds", "epoch", "held_out_accuracy", "validation_accuracy")


def train(
    net: CapsNet[Any],
    learner: Learner[Any],
    data: Samples,
    held_out: Samples,
    recipe: Recipe,
    folder: str | Path,
    resume: bool = False,
    reporters: tuple[Reporter, ...] | None = None,
    checkpoint_seconds: float = 60.0,
    resuming: Mapping[str, Any] | None = None,
    test: Samples | None = None,
) -> list[dict[str, Any]]:
    """Train `net` in place and return the log's rows, one per epoch.

    `folder` receives the files that `capscore.train` lists. With `resume` training goes on from `last.safetensors`, to
    the bit on a CPU with as many threads; a TrainingWarning tells of others. What was frozen stays frozen. Classes are
    matched by name. The best epoch is the best on `held_out`; that model is measured once on `test`, where there is
    one. Without `reporters` a bar or plain lines tell of progress on standard error; () is silence. `resuming` are JSON
    values that only the checkpoint keeps, such as the path of the data. Raises TrainingError (the loss is not finite,
    nothing can learn, the checkpoint is damaged or of other settings or data), Stopped (after a checkpoint: by Ctrl-C,
    SIGTERM, SIGHUP or a closed output), KeyboardInterrupt (by a second Ctrl-C, at once).
    """
    data, held_out, test = _fitting(net, learner, data, held_out, test, recipe)
    folder = Path(folder)
    if not resume:
        make_folder(folder)
    with locked(folder) if learner.writes else nullcontext(), Interrupts() as interrupts, kept():
        listeners = Listeners(_usual(learner) if reporters is None else reporters, interrupts)
        training = Training(net, learner, recipe, folder, len(data), listeners, resuming, right_for(data))
        _begin(training, data, held_out, resume, test)
        data = learner.to_device(data, recipe.shift)
        while training.goes_on:
            training.begin_epoch()
            for batch in ahead(batches(data, recipe, training.progress.epoch, training.progress.step)):
                training.step(batch)
                training.keep(checkpoint_seconds)
            training.end_epoch(held_out)
        training.measure_best(test)
    return training.rows


def _usual(learner: Learner[Any]) -> tuple[Reporter, ...]:
    """Return who tells of progress where nobody was named: of several processes, one."""
    from capscore.terminal import Terminal  # which needs rich: NumPy is enough to learn in silence
    from capscore.train.report import Screen

    return (Screen(Terminal(stderr=True)),) if learner.writes else ()


def _fitting(
    net: CapsNet[Any], learner: Learner[Any], data: Samples, held_out: Samples, test: Samples | None, recipe: Recipe
) -> tuple[Samples, Samples, Samples | None]:
    """Return the sets with their labels numbered as the network's classes, or say what does not fit together."""
    data, held_out = as_samples(data, "training"), as_samples(held_out, "held-out")
    for dataset, what in ((data, "training"), (held_out, "held-out")):
        if len(dataset.classes) != net.spec.classes:
            raise ShapeError(f"the {what} set has {len(dataset.classes)} classes; the network has {net.spec.classes}")
    data, held_out = check_dataset(net, data, "training"), check_dataset(net, held_out, "held-out")
    if alike(data):
        shown = sorted({*data.classes} - {*absent(data)})
        raise TrainingError(
            f"the training images all show the same ({', '.join(shown) or 'no class'}): "
            "a network learns to tell images apart, so give it some that show something else"
        )
    if several(data) and net.spec.loss.ranks:
        raise TrainingError(
            f"{type(net.spec.loss).__name__} ranks the classes of an image, and these images may show several or none: "
            "learn by MarginLoss() (--loss margin) or by CrossEntropy(exclusive=False) (--loss cross-entropy)"
        )
    for name in ("reconstruction", "optimiser", "average"):
        if (ours := getattr(learner, name)) != (wanted := getattr(recipe, name)):
            raise TrainingError(
                f"the learner has {name} {ours}, the recipe {wanted}: make it as Learner(net, recipe.reconstruction, "
                "recipe.optimiser, recipe.average)"
            )
    recipe.check_size(*net.spec.input[1:])
    return data, held_out, None if test is None else check_dataset(net, test, "test")


def _begin(training: Training, data: Samples, held_out: Samples, resume: bool, test: Samples | None) -> None:
    """Take up where the last checkpoint ends, or start in a folder that has none; note what the data are."""
    net, learner, recipe, folder = training.net, training.learner, training.recipe, training.folder
    learner.seed = recipe.seed  # of what layers draw
    known = {"training": fingerprint(data), "held_out": fingerprint(test or held_out)}
    if test is not None:
        known["validation"] = fingerprint(held_out)
    if resume:
        training.rows, training.progress = restore(net, learner, recipe, folder, known)
    elif (folder / LAST).exists():
        raise TrainingError(f"{folder} already holds a training: resume it, or choose another folder")
    split = getattr(test or held_out, "split", None) or {"rule": "own"}
    for name in EARLIER:
        net.provenance.pop(name, None)
    net.provenance |= provenance(recipe, len(data)) | {"split": dict(split), "fingerprints": known}
    net.provenance |= learner.workers | made_of(data)
