"""How often a network is right."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from capscore.data import Samples, by_name, targets_of


class Predictor(Protocol):
    """A network on any backend, or an ONNX session."""

    def predict(self, images: Any) -> NDArray[Any]:
        """Return the scores [N, J] for images [N, C, H, W]."""


def found_all(scores: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.bool_]:
    """Say for scores [B, J] whether the highest are those of all classes that an image shows: targets [B, J] of 1."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked, shown = np.take_along_axis(targets, order, 1), targets.sum(1)
    same: NDArray[np.bool_] = (ranked * (np.arange(scores.shape[1]) < shown[:, None])).sum(1) == shown
    return same


def accuracy(net: Predictor, data: Samples, batch: int = 128) -> float:
    """Return the share of images whose highest scores are those of their labels; by name, if `net` has `classes`."""
    correct = 0
    data, _ = by_name(data, getattr(net, "classes", data.classes), "test")
    for start in range(0, len(data), batch):
        images, labels = data.batch(slice(start, start + batch))
        scores = net.predict(images)
        correct += int(found_all(scores, targets_of(labels, scores.shape[1])).sum())
    return correct / len(data)
