"""How often a network is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from capscore.data import Samples, by_name, several, targets_of
from capscore.data.classes import origin
from capscore.losses import SHOWN
from capscore.metrics import Measures

Right = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.bool_]]  # of scores and targets [B, J], for each image


class Predictor(Protocol):
    """A network on any backend, or an ONNX session."""

    def predict(self, images: Any) -> NDArray[Any]:
        """Return the scores [N, J] for images [N, C, H, W]."""


def found_all(scores: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.bool_]:
    """Say for scores [B, J] whether the highest are those of all classes that an image shows: targets [B, J] of 1.

    Where images are mixed, and their targets too, the classes of the most are meant.
    """
    shown = np.arange(scores.shape[1]) < np.round(targets.sum(1))[:, None]
    said, wanted = (np.argsort(-array, axis=1, kind="stable") for array in (scores, targets))
    hits = np.zeros(scores.shape, bool)
    np.put_along_axis(hits, wanted, shown, 1)
    same: NDArray[np.bool_] = (np.take_along_axis(hits, said, 1) == shown).all(1)
    return same


def found_exactly(scores: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.bool_]:
    """Say for scores [B, J] whether those above 0.5 are those of the classes that an image shows, and no others."""
    same: NDArray[np.bool_] = ((scores > SHOWN) == (targets > SHOWN)).all(1)
    return same


def right_for(data: Samples) -> Right:
    """Return what says whether the answer for an image of these is right."""
    return found_exactly if several(data) else found_all


def accuracy(net: Predictor, data: Samples, batch: int = 128) -> float:
    """Return the share of images whose highest scores are those of their labels; by name, if `net` has `classes`.

    Of images that may show several classes or none, those of scores above 0.5 must be just these.
    """
    right = right_for(data)
    found = (right(scores, targets).sum() for scores, targets in _scored(net, data, batch))
    return int(sum(found)) / len(data)


def shows(data: Samples) -> int | None:
    """Return how many classes every image shows; None where some show several or none."""
    return None if several(data) else data.batch(slice(0, 1))[1].size


def made_of(data: Samples) -> dict[str, Any]:
    """Return what answers to image files need to know of the samples that a network learned from, as JSON.

    `several` is whether an image may show several classes or none, `shows` how many it does otherwise; `source` the
    size (H, W) of an image file before it was framed, placed or laid over another one.
    """
    return {"several": several(data), "shows": shows(data), "source": list(origin(data).size[1:])}


def measure(net: Predictor, data: Samples, batch: int = 128) -> Measures:
    """Return accuracy, what each class reaches, confusions and more; by name, if `net` has `classes`."""
    scores, targets = (np.concatenate(parts) for parts in zip(*_scored(net, data, batch), strict=True))
    classes = tuple(getattr(net, "classes", data.classes))
    return Measures(scores.astype(np.float32), targets.astype(np.int8), classes, shows(data))


def _scored(net: Predictor, data: Samples, batch: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield scores [B, J] and targets [B, J] of all images in their order."""
    data, _ = by_name(data, getattr(net, "classes", data.classes), "test")
    for start in range(0, len(data), batch):
        images, labels = data.batch(slice(start, start + batch))
        scores = net.predict(images)
        yield scores, targets_of(labels, scores.shape[1])
