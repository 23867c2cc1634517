"""Images apart from both training and test, by which the best epoch is chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

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
    whole: Any = data
    if isinstance(whole, Redrawn):
        first, second = with_validation(whole.source, share)
        parts: Any = replace(whole, source=first), replace(whole, source=second)
    elif isinstance(whole, Dataset):
        out = hashes(whole.images, SALT) < np.uint64(share * 2**64)
        if not out.any() or out.all():
            raise DataError(f"a share of {share:g} of {len(data)} images leaves none: choose another one")
        parts = tuple(replace(whole, images=part(whole.images, m), labels=whole.labels[m]) for m in (~out, out))
    else:
        raise DataError(f"no validation images can be taken from a {type(data).__name__}: leave the share out")
    learn, chosen = parts
    return learn, chosen
