"""Parts and wholes: digits cut into quadrants that change places. The parts stay, the whole is gone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore.data import Dataset
from lab.experiments.trials import Values, outputs

# Every order of the four quadrants in which none is where it was.
MOVED = [order for order in itertools.permutations(range(4)) if all(a != b for a, b in enumerate(order))]


def rearranged(images: NDArray[Any], seed: int = 0) -> NDArray[Any]:
    """Return images [N, C, H, W], of even height and width, with no quadrant where it was."""
    n, c, h, w = images.shape
    parts = images.reshape(n, c, 2, h // 2, 2, w // 2).transpose(0, 2, 4, 1, 3, 5).reshape(n, 4, c, h // 2, w // 2)
    orders = np.array(MOVED)[np.random.default_rng(seed).integers(0, len(MOVED), n)]
    moved = parts[np.arange(n)[:, None], orders].reshape(n, 2, 2, c, h // 2, w // 2)
    return np.ascontiguousarray(moved.transpose(0, 3, 1, 4, 2, 5).reshape(n, c, h, w))


def sure(net: Any, images: NDArray[Any]) -> NDArray[Any]:
    """Return how sure a network is of its answer [N]: the longest length, or the largest probability."""
    most: NDArray[Any] = outputs(net, images)[0].max(1)
    return most


def told_apart(whole: NDArray[Any], moved: NDArray[Any]) -> float:
    """Return how often a whole is the surer one of a whole and a rearranged digit, ½ being chance (ROC area)."""
    order = np.argsort(np.concatenate([whole, moved]), kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    return float((ranks[: len(whole)].sum() - len(whole) * (len(whole) + 1) / 2) / (len(whole) * len(moved)))


def measure(net: Any, digits: Dataset) -> Values:
    """Return how sure the network is of digits and of rearranged digits, and whether that tells them apart."""
    images, _ = digits.batch(slice(None))
    whole, moved = sure(net, images), sure(net, rearranged(images))
    return {
        "sure of digits": whole.mean(),
        "sure of rearranged": moved.mean(),
        "rearranged above 0.5": (moved > 0.5).mean(),
        "told apart": told_apart(whole, moved),
    }
