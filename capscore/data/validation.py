"""Images apart from both training and test, by which the best epoch is chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

from capscore.data.dataset import Dataset, Samples
from capscore.data.place import Redrawn
from capscore.data.rows import part
from capscore.data.split import hashes
from capscore.errors import DataError

SALT = b"capscore valid 1"

S = TypeVar("S", bound=Samples)


def with_validation(data: S, share: float) -> tuple[S, S]:
    """Part a training set into images to learn from and a `share` of them to choose the best epoch by.

    The content of an image decides, as in `ByContent`, so that it stays where it is when others are added. Raises
    DataError if one of the two would have no image, or the images are not held one by one.
    """
    if isinstance(data, Dataset):
        out = hashes(data.images, SALT) < np.uint64(share * 2**64)
        if not out.any() or out.all():
            raise DataError(f"a share of {share:g} of {len(data)} images leaves none: choose another one")
        learn, chosen = (replace(data, images=part(data.images, m), labels=data.labels[m]) for m in (~out, out))
        return learn, chosen
    if isinstance(data, Redrawn):
        first, second = with_validation(data.source, share)
        return replace(data, source=first), replace(data, source=second)
    raise DataError(f"no validation images can be taken from a {type(data).__name__}: leave the share out")
