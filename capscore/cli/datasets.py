"""Datasets as a model knows them, and what has to be said of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore.cli.app import say
from capscore.data import NAMES, Dataset, Pairs, Samples, absent, changes, fingerprint, load, rule_of, whole
from capscore.data.images import size_that_fits
from capscore.data.split import Rule, seed_of
from capscore.fit import pace
from capscore.train import check_dataset

CALIBRATION = 512  # images that int8 is calibrated on


def usual(net: Any) -> str:
    """Return the dataset that a network of the zoo was made for; digits, always here, for MNIST's and others."""
    published = net.provenance.get("published")
    data = published.get("data") if isinstance(published, dict) else None
    return data if data in NAMES and data != "mnist" else "digits"


def own_size(data: str) -> tuple[int, int, int] | None:
    """Return the (C, H, W) in which a folder or list is read where no network asks for one; None for its own."""
    return None if data in NAMES else size_that_fits(Path(data))


def usual_shift(data: Samples) -> int:
    """Return how far the plain `train` moves images: of others than a dataset's, as they are drawn."""
    return pace(data.size, len(data)).shift if isinstance(data, Dataset) else data.shift


def datasets(net: Any, data: str, data_dir: Path | None, split: str = "held-out") -> tuple[Samples, Samples]:
    """Return (train, test) of a dataset as a model knows them: its split and seed, its classes by name; say the rest.

    With `split` "all" a set that the model's split would part is returned twice.
    """
    told = net.provenance
    seed, rule = seed_of(told) or 0, rule_of(told)
    sets = load(data, data_dir=data_dir, size=net.spec.input, seed=seed, split=whole if split == "all" else rule)
    say_notes(*sets)
    train_set, test = map(_fewer, sets)
    train_set = check_dataset(net, train_set, "training")
    test = check_dataset(net, test, "test", lambda note: say(f"note: {note}"))
    if parted(test) and split != "all" and (doubt := _doubt(told, rule, train_set, test)):
        say(f"note: {doubt}")
    return train_set, test


def _fewer(data: Samples) -> Samples:
    """Return pairs with one for each digit, of the paper's thousand: 10 million would take hours to look at."""
    return replace(data, per_digit=1) if isinstance(data, Pairs) else data


def calibrating(data: Samples, batch: int | None = None) -> NDArray[np.float32]:
    """Return images for int8 to be calibrated on: of every class, whatever the order; as many as a fixed `batch`."""
    return data.batch(np.random.default_rng(0).permutation(len(data))[: max(CALIBRATION, batch or 0)])[0]


def _doubt(told: Mapping[str, Any], rule: Rule | None, train_set: Samples, test: Samples) -> str:
    """Say in which way images that are held out now may not be those that were when a model was trained."""
    if rule is None:
        return "the model's file does not tell how its training set was split: it may have seen some of these images"
    if "split" not in told:
        older = "the model is older than splits that are kept with it"
        if told.get("training_images") == len(train_set):
            return f"{older}: its data are split by its seed, as they were"
        return f"{older}, and its data changed: it may have seen some of these images"
    if told["split"] == {"rule": "own"}:
        return "the model was trained on data with a test set of their own: it may have seen some of these images"
    before, now = told.get("fingerprints"), fingerprint(test)
    before = before.get("held_out") if isinstance(before, dict) else None
    if isinstance(before, dict) and before.get("content") == now["content"]:  # in any order
        return ""
    return f"the held-out images are not quite those of the training: {changes(before, now)}"


def parted(data: Samples) -> bool:
    """Whether a set is a part, by a rule of capscore's, of one that came without a test set."""
    return getattr(data, "split", None) is not None


def counted(sets: Sequence[Samples], split: str, data: str) -> str:
    """Say how many images were scored, and which."""
    tested = "held-out" if parted(sets[0]) else "test"
    kinds = {"held-out": tested, "train": "training", "all": f"training and {tested}"}
    return f"{sum(map(len, sets)):,} {kinds[split]} images of {data}"


def say_notes(train_set: Samples, test: Samples, say: Callable[[str], object] = say) -> None:
    """Say what reading the sets lost or passed over, and which classes have no images."""
    told = [note for each in (train_set, test) for note in getattr(each, "notes", ())]
    for each, what in ((train_set, "training"), (test, "test")):
        if lacking := absent(each):
            told.append(f"the {what} set has no images of {', '.join(lacking):.200}")
    for note in dict.fromkeys(told):
        say(f"note: {note}")
