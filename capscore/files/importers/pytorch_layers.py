"""What networks of PyTorch have in common: a decoder that is a sequence of linear layers called decoder.{i}."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .layouts import Array

LINEAR = re.compile(r"decoder\.(\d{1,4})\.(weight|bias)")


def matrices(tensors: Mapping[str, Array], needed: set[str]) -> list[tuple[Array, Array]] | None:
    """Return the decoder's (weight [out, in], bias [out]) in order; None if the tensors are not `needed` and these."""
    places = {name: found for name in tensors if (found := LINEAR.fullmatch(name))}
    if needed != tensors.keys() - places.keys():
        return None
    numbers = sorted({int(found[1]) for found in places.values()})
    if len(places) != 2 * len(numbers):
        return None
    return [(tensors[f"decoder.{i}.weight"], tensors[f"decoder.{i}.bias"]) for i in numbers]
