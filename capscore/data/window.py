"""Windows cut out of images: crops, pads, shifts and placements are all of this one kind."""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray


def window(
    images: NDArray[np.float32], top: NDArray[np.integer], left: NDArray[np.integer], height: int, width: int
) -> NDArray[np.float32]:
    """Cut a window [B, C, height, width] out of every image of [B, C, H, W], zeros where it reaches beyond.

    `top` and `left`, [B], are the row and column of the image at which its window begins, negative for a
    window that begins before it.
    """
    _, _, h, w = images.shape
    above, before = (max(0, -int(np.min(start, initial=0))) for start in (top, left))
    below, after = (
        max(0, int(np.max(start, initial=0)) + wanted - held)
        for start, wanted, held in ((top, height, h), (left, width, w))
    )
    padded = np.pad(images, ((0, 0), (0, 0), (above, below), (before, after)))
    views = sliding_window_view(padded, (height, width), axis=(2, 3))
    cut: NDArray[np.float32] = views[np.arange(len(images)), :, top + above, left + before]
    return cut


def shifted(images: NDArray[Any], margin: int, down: NDArray[np.integer], across: NDArray[np.integer]) -> NDArray[Any]:
    """Return the window of each of the images [B, …, H, W], smaller by `margin` on each side, that begins there."""
    *shape, height, width = images.shape
    height, width = height - 2 * margin, width - 2 * margin
    moved = window(images.reshape(len(images), -1, *images.shape[-2:]), down, across, height, width)
    return moved.reshape(*shape, height, width)
