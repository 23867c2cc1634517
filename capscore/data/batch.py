"""What one step of training learns from."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Batch(NamedTuple):
    """Images, and what is to be learned from them."""

    images: Any  # [B, C, H, W], in host memory or where a backend computes
    targets: NDArray[np.float64]  # [B, J]: 1 for each class that the image shows, 0 elsewhere
    parts: tuple[tuple[NDArray[np.float64], Any], ...] = ()  # targets and images of every object alone, if known


def targets_of(labels: NDArray[Any], classes: int) -> NDArray[np.float64]:
    """Return the targets [B, J] of labels: [B], or [B, n] of images that show n classes each, or flags [B, J]."""
    if labels.dtype == np.bool_:
        return labels.astype(np.float64)
    targets: NDArray[np.float64] = np.eye(classes)[labels.reshape(len(labels), -1)].sum(1)
    return targets
