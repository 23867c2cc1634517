"""What a training learns from: data that fit the network, shuffled and shifted anew in every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from capscore.data import HOST, Batch, Items, Resident, Samples, augmented, by_name, even_chances
from capscore.errors import ShapeError, short
from capscore.model import CapsNet
from capscore.train.recipe import Recipe


def batches(data: Samples, recipe: Recipe, epoch: int, skip: int = 0) -> Iterator[Batch]:
    """Yield the shuffled, shifted batches of one epoch from batch `skip` on.

    With `recipe.balanced` images are drawn, those of rare classes more often. Every image is moved by its own whole
    number of pixels, up to `recipe.shift` each way, then augmented, where the images are held.
    """
    device = data.device if isinstance(data, Resident) else HOST
    drawn = np.random.default_rng([recipe.seed, epoch])
    order = (
        drawn.choice(len(data), len(data), p=even_chances(data)) if recipe.balanced else drawn.permutation(len(data))
    )
    for step in range(skip, recipe.per_epoch(len(data))):
        index = order[step * recipe.batch : (step + 1) * recipe.batch]
        rng = np.random.default_rng([recipe.seed, epoch, step])
        batch = data.moved(index, recipe.shift, *rng.integers(0, 2 * recipe.shift + 1, (2, len(index))))
        yield augmented(batch, recipe.augment, rng, device)


def as_samples(data: Any, what: str) -> Samples:
    """Return `data` as `Samples`: as they are, or a dataset of PyTorch's kind; raise ShapeError for anything else."""
    by_position = (
        hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, list | tuple | dict)
    )
    if hasattr(data, "batch_size") or (
        by_position and not isinstance(data, Samples | str | bytes | memoryview) and not hasattr(data, "dtype")
    ):
        return Items(data)
    if not isinstance(data, Samples):
        raise ShapeError(
            f"the {what} set is {short(data)}, a {type(data).__name__}: give a capscore.data.Dataset(images, labels, "
            "classes) of NumPy arrays, or what capscore.data.load returns; training shuffles and batches it itself"
        )
    return data


def check_dataset(
    net: CapsNet[Any], data: Samples, what: str, say: Callable[[str], object] = lambda note: None
) -> Samples:
    """Return `data` with its labels numbered as the network's classes; `say` hears of names that differ.

    Raises ShapeError unless these are `Samples`, of the network's size, and DataError if the classes are others.
    """
    data = as_samples(data, what)
    if not len(data):
        raise ShapeError(f"the {what} set has no images")
    if data.size != net.spec.input:
        raise ShapeError(f"the {what} images are {data.size}; the network takes {net.spec.input}")
    matched, note = by_name(data, net.classes, what)
    if note:
        say(note)
    return matched
