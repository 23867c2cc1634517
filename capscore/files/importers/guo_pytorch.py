"""Xifeng Guo's CapsNet for PyTorch, github.com/XifengGuo/CapsNet-Pytorch, and networks that were built on it.

Its primary capsules are eight numbers each that follow one another in the features [C, H, W] as they lie in memory:
neighbouring pixels, of two channels where one ends. No convolution whose channels form capsules at a position makes
those, whatever the order of its rows, so the network is a convolution and `FlatCaps`.
"""

from __future__ import annotations

from collections.abc import Mapping

from capscore.layers import Conv, DenseCaps, FlatCaps
from capscore.net import CapsNetSpec
from capscore.routing import DynamicRouting

from .family import Family, Found, Hints, decoder, sized
from .layouts import Array, window
from .pytorch_layers import matrices

NEEDED = {"conv1.weight", "conv1.bias", "primarycaps.conv2d.weight", "primarycaps.conv2d.bias", "digitcaps.weight"}


def recognise(tensors: Mapping[str, Array], hints: Hints) -> Found | None:
    """Return the network: a convolution of stride 1, one of stride 2, class capsules, a decoder if any."""
    dense = matrices(tensors, NEEDED)
    if dense is None or (weight := tensors["digitcaps.weight"]).ndim != 4:
        return None
    classes, count, dim, inner = weight.shape
    params = {"capsules.0.weight": weight.transpose(1, 0, 2, 3)}
    for i, name in enumerate(("conv1", "primarycaps.conv2d")):
        params |= {f"stem.{i}.weight": tensors[f"{name}.weight"], f"stem.{i}.bias": tensors[f"{name}.bias"]}
    first, second = params["stem.0.weight"].shape, params["stem.1.weight"].shape
    layers = (
        Conv(first[0], window(first[2:])),
        Conv(second[0], window(second[2:]), stride=2, activation="none"),
        FlatCaps(inner),
    )
    size, front = sized([layers], first[1], count, dense, hints)
    last = DenseCaps(classes, dim, DynamicRouting(hints.rounds), bias=False)
    drawing, drawn = decoder(dense, size)
    return Found(CapsNetSpec(size, (*front, last), drawing), params | drawn)


FAMILY = Family("Xifeng Guo's CapsNet for PyTorch", recognise)
