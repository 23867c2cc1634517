"""Any dataset that gives an image and a label by position, PyTorch's among them, as `Samples`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from capscore.data.dataset import Index, Moved, check_classes, positions
from capscore.data.labels import settled
from capscore.data.memory import Budget
from capscore.errors import DataError

AGREEING = 32  # items that are asked, or up to twice as many, before a dataset's own list of labels is believed


class Items(Moved):
    """Images that `dataset[i]` gives with their labels, whenever a batch wants them.

    Parameters
    ----------
    dataset : has a length, and gives (image, label) by position: a `torch.utils.data.Dataset`, a list of pairs; of a
        DataLoader its dataset is taken, since training shuffles and batches itself. Images are [C, H, W] or [H, W],
        uint8 or floats in [0, 1]; what augments them does so anew in every epoch
    classes : names; those of the dataset if it has `classes`, else "0", "1", …

    Raises
    ------
    DataError : an item is no such pair, or a label none of the classes
    """

    shift: ClassVar[int] = 0  # what augments these images is part of them

    def __init__(self, dataset: Any, classes: Sequence[str] | None = None) -> None:
        self.dataset = getattr(dataset, "dataset", dataset) if hasattr(dataset, "batch_size") else dataset
        named = classes or getattr(self.dataset, "classes", None)
        names = None if named is None else tuple(map(str, named))
        self.classes, (self.labels,), _ = settled([self._labels()], names, Budget())
        check_classes(self.classes, self.labels)
        self.size: tuple[int, int, int] = self._image(0).shape

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.dataset)

    def batch(self, index: Index, margin: int = 0) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Images as float32 in [0, 1], larger by `margin` zeros on each side, and their labels."""
        at = positions(index, len(self))
        images = np.stack([self._image(int(i)) for i in at]) if len(at) else np.empty((0, *self.size), np.float32)
        if margin:
            images = np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
        return images, self.labels[at]

    def _labels(self) -> NDArray[Any]:
        """Return the label of every item; `targets` of the dataset spares them all where some items agree with it."""
        count, told = len(self.dataset), getattr(self.dataset, "targets", None)
        if told is not None and len(told) == count and getattr(self.dataset, "target_transform", None) is None:
            some = range(0, count, max(1, count // AGREEING))
            if all(np.array_equal(self._item(i)[1], told[i]) for i in some):
                return np.asarray(told)
        return np.asarray([self._item(i)[1] for i in range(count)])

    def _item(self, i: int) -> tuple[Any, Any]:
        item = self.dataset[i]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"item {i} of the dataset is a {type(item).__name__}: it must be (image, label)")
        return item[0], item[1]

    def _image(self, i: int) -> NDArray[np.float32]:
        image = np.asarray(self._item(i)[0])
        image = image[None] if image.ndim == 2 else image
        if image.ndim != 3 or image.dtype.kind not in "uf" or (image.dtype.kind == "u" and image.dtype != np.uint8):
            raise DataError(
                f"image {i} of the dataset is {image.dtype} {image.shape}: it must be [C, H, W], "
                "uint8 or floats in [0, 1]"
            )
        scaled: NDArray[np.float32] = np.divide(image, 255 if image.dtype == np.uint8 else 1, dtype=np.float32)
        return scaled
