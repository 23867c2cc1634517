"""What max-pooling throws away: an image drawn back, linearly, from the maps before and after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from capscore.data import Dataset
from capscore.net import primary_capsules
from lab.baselines import CNN
from lab.experiments.linear import r_squared, read
from lab.experiments.trials import Values


def stages(net: Any, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the features [N, D] of every stage: around each max-pooling, or up to the primary capsules."""
    found: dict[str, list[NDArray[Any]]] = {}
    for start in range(0, len(images), 250):
        for name, x in _stages(net, images[start : start + 250]).items():
            found.setdefault(name, []).append(net.ops.to_numpy(x).reshape(len(x), -1))
    return {name: np.concatenate(parts) for name, parts in found.items()}


@torch.inference_mode()
def _stages(net: Any, images: NDArray[Any]) -> dict[str, Any]:
    if isinstance(net, CNN):
        maps = net.maps(images)
        return {
            f"{when} pool {i + 1}": pair[k] for i, pair in enumerate(maps) for k, when in enumerate(("before", "after"))
        }
    ops, spec, params = net.ops, net.spec, net.params
    u = primary_capsules(ops, spec, params, ops.asarray(images, next(net.parameters())))
    return {"primary capsules": u}


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
