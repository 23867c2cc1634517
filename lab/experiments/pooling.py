"""What max-pooling throws away: an image drawn back, linearly, from the maps before and after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from capscore import Conv, MaxPool
from capscore.agree import layers
from capscore.data import Dataset
from lab.experiments.linear import r_squared, read
from lab.experiments.trials import Values


def stages(net: Any, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the features [N, D] of every map that fewer positions make: "map 1" by the first such layer, and so on.

    A max-pooling has the map before it too.
    """
    found: dict[str, list[NDArray[Any]]] = {}
    for start in range(0, len(images), 250):
        for name, x in _stages(net, images[start : start + 250]).items():
            found.setdefault(name, []).append(net.ops.to_numpy(x).reshape(len(x), -1))
    return {name: np.concatenate(parts) for name, parts in found.items()}


@torch.inference_mode()
def _stages(net: Any, images: NDArray[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    before, count = None, 0
    for row, (_, x) in zip(net.spec.rows, layers(net, images, ()), strict=False):
        pools = isinstance(row.layer, MaxPool)
        if pools or (isinstance(row.layer, Conv) and row.layer.stride != 1):
            count += 1
            found |= {f"map {count}, before pooling": before} if pools else {}
            found[f"map {count}"] = x
        before = x
    return found


def drawn_back(net: Any, digits: Dataset, shown: int) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Return the last `shown` images, flat, [M, P], and for every stage what a linear reader makes of them [M, P].

    The reader has learned from all the other images.
    """
    images, _ = digits.batch(slice(None))
    pixels = images.reshape(len(images), -1)
    found = {name: read(x[:-shown], pixels[:-shown], x[-shown:], ridge=1e-3) for name, x in stages(net, images).items()}
    return pixels[-shown:], found


def measure(net: Any, digits: Dataset) -> Values:
    """Return R² of the pixels of a fifth of the digits, for every stage."""
    pixels, found = drawn_back(net, digits, len(digits) // 5)
    return {name: r_squared(pixels, guess) for name, guess in found.items()}
