"""Images held on a device: batches are put together and shifted there, and only their positions are sent."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore.data.batch import Batch, targets_of
from capscore.data.dataset import Index, Samples, positions
from capscore.data.device import Device
from capscore.data.pairs import Pairs
from capscore.data.place import Redrawn
from capscore.ops import check_range

LARGEST = 4 << 30  # bytes held; larger sets are sent batch by batch
BLOCK = 4096  # images sent at once


@dataclass(frozen=True, eq=False, repr=False)
class Resident(Redrawn):
    """All images of a source as one array on a device."""

    images: Any  # [N, C, H + 2 margin, W + 2 margin]
    margin: int
    device: Device

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.source.size

    @property
    def shift(self) -> int:
        """How far training moves these images unless told otherwise, in pixels each way."""
        return self.source.shift

    def batch(self, index: Index, margin: int = 0) -> tuple[Any, NDArray[np.int64]]:
        """Images [B, C, H, W], larger by `margin` on each side, and their labels; those of the source."""
        return self.source.batch(index, margin)

    def moved(self, index: Index, reach: int, down: NDArray[np.integer], across: NDArray[np.integer]) -> Batch:
        """Images to learn from, put together and moved on the device; see `Samples.moved`."""
        index, inner = positions(index, len(self)), self.margin - reach
        images = self.windows(index, down + inner, across + inner)
        return Batch(images, targets_of(self.labels[index], len(self.classes)))

    def windows(self, index: NDArray[np.integer], top: NDArray[np.integer], left: NDArray[np.integer]) -> Any:
        """Return windows [B, C, H, W] of the images and their margins on the device, each from its row and column."""
        channels, height, width = self.size
        at, top, left = (self.device.put(x.reshape(-1, 1, 1, 1)) for x in (index, top, left))
        channel, rows, columns = (
            self.device.put(np.arange(n).reshape(shape))
            for n, shape in ((channels, (-1, 1, 1)), (height, (-1, 1)), (width, (-1,)))
        )
        return self.images[at, channel, top + rows, left + columns]


def resident(source: Samples, margin: int, device: Device) -> Samples:
    """Return `source` with its images on a device.

    `source` itself if its images take more than 4 GiB, or are drawn as it goes.
    """
    channels, height, width = source.size
    shape = len(source), channels, height + 2 * margin, width + 2 * margin
    if isinstance(source, Pairs) or 4 * np.prod(shape, dtype=float) > LARGEST:
        return source
    images = device.empty(shape)
    for start in range(0, len(source), BLOCK):
        block, _ = source.batch(slice(start, start + BLOCK), margin)
        check_range(block)
        images[start : start + BLOCK] = device.put(block)
    return Resident(source, images, margin, device)
