"""The last checkpoint of a training: what it must hold, and how a training goes on from it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore import disk, modelfile
from capscore.data import changes
from capscore.errors import ModelFileError, TrainingError, TrainingWarning, short
from capscore.model import CapsNet, Learner
from capscore.net import CapsNetSpec
from capscore.train.folder import BEST, LAST, LOG
from capscore.train.progress import Progress
from capscore.train.recipe import Recipe

Arrays = Mapping[str, NDArray[Any]]
Rows = list[dict[str, Any]]


def check_finite(arrays: Arrays) -> None:
    """Raise ValueError if an array holds NaN or infinity."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity")


def check_state(learner: Learner[Any], params: Arrays, state: Arrays, steps: int) -> None:
    """Raise ValueError unless `state` can be what the learner keeps of the parameters after so many steps.

    It holds an array for each parameter of each of the learner's slots, in the parameter's own dtype, and may hold how
    many of the steps were a parameter's.
    """
    if not steps:
        if state:
            raise ValueError(f"it tells of no steps, and holds {next(iter(state))}")
        return
    for slot, names in learner.slots.items():
        for name in names:
            _check_slot(f"{slot}.{name}", params[name], state)
            if slot in learner.optimiser.squares and (state[f"{slot}.{name}"] < 0).any():
                raise ValueError(f"{slot}.{name} holds negative numbers; it is a mean of squares")
    for name in learner.learning:
        own = state.get(f"steps.{name}", np.zeros(1))
        if own.shape != (1,) or not 0 <= own[0] <= steps or own[0] % 1:
            raise ValueError(f"steps.{name} is no whole number from 0 to {steps}")
    check_finite(state)
    known = {f"{slot}.{name}" for slot, names in learner.slots.items() for name in names}
    if unknown := state.keys() - known - {f"steps.{name}" for name in learner.learning}:
        raise ValueError(f"{min(unknown):.60} belongs to no parameter")


def _check_slot(name: str, p: NDArray[Any], state: Arrays) -> None:
    """Raise ValueError unless the state has an array of the parameter's shape and dtype under a name."""
    if name not in state:
        raise ValueError(f"{name} is missing")
    found = state[name]
    if found.shape != p.shape:
        raise ValueError(f"{name} has shape {found.shape}; wanted {p.shape}")
    if found.dtype != p.dtype:
        raise ValueError(f"{name} is stored as {found.dtype}; its parameter is {p.dtype}")


def read_last(folder: Path, kind: Any = CapsNetSpec) -> modelfile.Model:
    """Read the last checkpoint in a folder. TrainingError says what is wrong with it, and what helps."""
    if not (folder / LAST).exists():
        raise TrainingError(f"there is nothing to resume in {folder}: {LAST} is missing")
    try:
        return modelfile.read(folder / LAST, kind)
    except ModelFileError as error:
        raise TrainingError(f"{error}; {_cure(folder, kind)}") from None


def restore(
    net: CapsNet[Any], learner: Learner[Any], recipe: Recipe, folder: Path, known: Mapping[str, Any]
) -> tuple[Rows, Progress]:
    """Take parameters, state and progress from the last checkpoint, or say why it is not one of this training.

    `known` are the fingerprints of the data, by part. Returns the log's rows and the progress.
    """
    model = read_last(folder, type(net.spec))
    _check_settings(model, net, recipe, folder)
    state = {name.removeprefix(modelfile.STATE): array for name, array in model.state.items()}
    about = model.provenance
    try:
        _check_data(model, net, folder, known)
        progress = Progress(**about["training"])
        progress.check(recipe, known["training"]["images"], about["log"])
        check_state(learner, model.params, state, progress.steps)
        check_finite(model.params)
        if "frozen" in about:  # a checkpoint of an earlier version does not tell
            learner.frozen = tuple(about["frozen"])
    except (KeyError, TypeError, ValueError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else error
        raise TrainingError(
            f"{folder / LAST} is no checkpoint of a training, or is damaged: {told}; {_cure(folder, type(net.spec))}"
        ) from None
    _check_precision(model, net, folder)
    if progress.steps:
        learner.restore(state, progress.steps)
    net.assign(model.params)
    _warn_of_other_workers(about, learner)
    rows = list(about["log"])
    if learner.writes:
        write_log(folder, rows)  # it may have been killed before it did
    return rows, progress


def write_log(folder: Path, rows: Rows) -> None:
    """Write the log: one line of JSON for each epoch."""
    disk.write_atomically(folder / LOG, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _check_settings(model: modelfile.Model, net: CapsNet[Any], recipe: Recipe, folder: Path) -> None:
    if model.spec != net.spec:
        raise TrainingError(f"the checkpoint in {folder} is of another network; resume with that one's settings")
    before, names = Recipe.of(model.provenance), [field.name for field in fields(Recipe) if field.name != "epochs"]
    changed = [name for name in names if getattr(before, name) != getattr(recipe, name)]
    if changed:
        which = ", ".join(f"{name} was {getattr(before, name)}" for name in changed)
        raise TrainingError(f"the training in {folder} had other settings: {which}; only epochs may change")


def _check_data(model: modelfile.Model, net: CapsNet[Any], folder: Path, known: Mapping[str, Any]) -> None:
    about, images = model.provenance, known["training"]["images"]
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


def _check_precision(model: modelfile.Model, net: CapsNet[Any], folder: Path) -> None:
    for name, p in net.params.items():
        stored, wanted = model.params[name].dtype, net.ops.to_numpy(p).dtype
        if stored != wanted:
            raise TrainingError(
                f"{folder / LAST} has {name} in {stored}, the network in {wanted}: make the network with dtype "
                f'"{stored}"'
            )


def _warn_of_other_workers(about: Mapping[str, Any], learner: Learner[Any]) -> None:
    for what, count in learner.workers.items():
        if what in about and about[what] != count:
            warnings.warn(
                f"{what}: {short(about[what])} before and {count} now, so the training goes on, but not to the same "
                "bits (float32 differs by about 1e-7)",
                TrainingWarning,
                stacklevel=4,
            )


def _cure(folder: Path, kind: Any) -> str:
    """Return what helps when the last checkpoint is of no use."""
    try:
        modelfile.read(folder / BEST, kind)
    except ModelFileError:
        return "train anew into another folder"
    return f"train anew into another folder; the best model so far is whole in {folder / BEST}"
