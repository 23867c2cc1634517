"""Classes are known by their names: what a dataset calls them decides, not how it numbers them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from capscore.data.batch import targets_of
from capscore.data.dataset import Dataset, Samples
from capscore.data.pairs import Pairs
from capscore.data.place import Redrawn
from capscore.errors import DataError
from capscore.net import numbered

S = TypeVar("S", bound=Samples)


def by_name(data: S, classes: Sequence[str], what: str) -> tuple[S, str]:
    """Return `data` with its labels numbered as in `classes`, and a note, empty where there is nothing to say.

    The data may lack classes. If nobody named the classes of one of the two (they are called "0", "1", …), and no
    name is in both, they are taken in their order, and the note says so.

    Raises
    ------
    DataError : the names of the data are others; `what` says in the message which data they are
    """
    theirs, ours = tuple(data.classes), tuple(classes)
    if theirs == ours:
        return data, ""
    if set(theirs) <= set(ours):
        lacking = [name for name in ours if name not in theirs]
        note = f"the {what} set does not know the classes {_listed(lacking)}" if lacking else ""
        return _renumbered(data, ours), note
    unnamed = numbered(len(ours))
    if len(theirs) == len(ours) and unnamed in (theirs, ours) and not set(theirs) & set(ours):
        return data, (
            f"the model's classes are {_listed(ours)}; the {what} set's are {_listed(theirs)}: "
            "they are taken in this order, as they are numbers on one side"
        )
    strange = [name for name in theirs if name not in ours]
    raise DataError(
        f"the {what} set has the classes {_listed(theirs)}; the network knows {_listed(ours)}, and not "
        f"{_listed(strange)}: give the classes of the data the network's names"
    )


def absent(data: Samples) -> tuple[str, ...]:
    """Return the names of classes that no image shows."""
    return tuple(name for name, count in zip(data.classes, _counts(data), strict=True) if not count)


def alike(data: Samples) -> bool:
    """Whether all images show the same, so that their labels tell nothing apart."""
    counts = _counts(data)
    if several(data):
        return bool(np.isin(counts, (0, len(origin(data)))).all())
    return bool(np.count_nonzero(counts) < 2)


def balanced(data: Samples) -> tuple[float, ...]:
    """Return a weight for each class that makes all classes count alike, and an image 1 in the mean.

    A class that no image shows has weight 1.
    """
    counts = _counts(data)
    mean = counts.sum() / np.count_nonzero(counts)
    return tuple(float(mean / count) if count else 1.0 for count in counts)


def several(data: Samples) -> bool:
    """Whether images may show several classes or none: labels that are flags."""
    return data.batch(slice(0, 1))[1].dtype == np.bool_


def even_chances(data: Samples) -> NDArray[np.float64]:
    """Return a chance [N] for each image to be drawn, by which all classes are drawn alike; they sum to 1."""
    targets = targets_of(data.labels, len(data.classes))
    weights = targets / np.maximum(targets.sum(0), 1)
    chances: NDArray[np.float64] = weights.sum(1) / np.maximum(targets.sum(1), 1)
    chances += np.where(targets.any(1), 0, 1 / len(data))  # an image that shows no class is as likely as ever
    chances /= chances.sum()
    return chances


def origin(data: Samples) -> Samples:
    """Return the samples whose images are framed, placed or laid over each other; themselves where none are."""
    while isinstance(data, Redrawn | Pairs):
        data = data.source
    return data


def _counts(data: Samples) -> NDArray[np.int64]:
    """Return how many images show each class; of images that are drawn, how many of their source do."""
    data = origin(data)  # whose labels they have, or draw from
    if data.labels.dtype == np.bool_:
        counts: NDArray[np.int64] = np.sum(data.labels, axis=0, dtype=np.int64)
        return counts
    return np.bincount(np.ravel(data.labels), minlength=len(data.classes))


def _renumbered(data: S, classes: tuple[str, ...]) -> S:
    if isinstance(data, Dataset):
        table = np.array([classes.index(name) for name in data.classes], np.int64)
        if data.labels.dtype != np.bool_:
            return replace(data, labels=table[data.labels], classes=classes)
        flags = np.zeros((len(data), len(classes)), np.bool_)
        flags[:, table] = data.labels
        return replace(data, labels=flags, classes=classes)
    if isinstance(data, Redrawn | Pairs):
        return replace(data, source=_renumbered(data.source, classes))
    raise DataError(
        f"the classes of a {type(data).__name__} are in another order than the network's {_listed(classes)}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])} and {len(names) - 10} more"
