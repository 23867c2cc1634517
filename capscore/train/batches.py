"""What a training learns from: data that fit the network, shuffled and shifted anew in every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from capscore.data import Batch, Samples, augmented, by_name
from capscore.errors import ShapeError, short
from capscore.model import CapsNet
from capscore.train.recipe import Recipe


def batches(data: Samples, recipe: Recipe, epoch: int, skip: int = 0) -> Iterator[Batch]:
    """Yield the shuffled, shifted batches of one epoch from batch `skip` on.

    Every image is moved by its own whole number of pixels, up to `recipe.shift` each way, then augmented.
    """
    order = np.random.default_rng([recipe.seed, epoch]).permutation(len(data))
    for step in range(skip, recipe.per_epoch(len(data))):
        index = order[step * recipe.batch : (step + 1) * recipe.batch]
        rng = np.random.default_rng([recipe.seed, epoch, step])
        batch = data.moved(index, recipe.shift, *rng.integers(0, 2 * recipe.shift + 1, (2, len(index))))
        yield augmented(batch, recipe.augment, rng)


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
