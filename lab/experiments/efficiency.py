"""Data efficiency: how well a network learns from few examples of a class, the number of steps being equal."""

from __future__ import annotations

import numpy as np

from capscore.data import Dataset

COUNTS = (10, 100, 1000)  # examples for each class


def few_examples(data: Dataset, count: int, images: int, seed: int) -> Dataset | None:
    """Return a set of `images` images in which `count` of every class recur; None if a class has fewer."""
    order = np.random.default_rng([seed, count]).permutation(len(data))
    labels = data.labels[order]
    if np.bincount(labels, minlength=len(data.classes)).min() < count:
        return None
    chosen = np.concatenate([order[labels == j][:count] for j in range(len(data.classes))])
    chosen = np.resize(np.random.default_rng([seed, count, 1]).permutation(chosen), images)
    return Dataset(data.images[chosen], data.labels[chosen], data.classes)
