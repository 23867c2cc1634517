"""Xifeng Guo's CapsNet for Keras, github.com/XifengGuo/CapsNet-Keras, and networks that were built on it.

Layouts: kernels [kh, kw, in, out]; channel type·dim + d; capsules in the order (y, x, type); W [J, N, D, K], no bias;
dense kernels [in, out]; images and drawings with their channels last.
"""

from __future__ import annotations

from collections.abc import Mapping

from capscore.layers import Conv, DenseCaps, PrimaryCaps
from capscore.net import CapsNetSpec
from capscore.routing import DynamicRouting

from .family import Family, Found, Hints, named, sized
from .keras_layers import LENGTH, by_kind, dense_decoder
from .layouts import Array, first, hwio, window


def recognise(tensors: Mapping[str, Array], hints: Hints) -> Found | None:
    """Return the network: convolutions of stride 1, primary capsules of stride 2, class capsules, a decoder if any."""
    kinds = by_kind(tensors)
    convolutions, capsules, dense = (kinds.pop(k, []) for k in ("convolution", "Guo's capsules", "dense"))
    if kinds or not convolutions or len(capsules) != 1:
        return None
    weight = capsules[0][0]
    classes, count, dim, inner = weight.shape
    *stem, (kernel, bias) = convolutions
    types, rest = divmod(len(bias), inner)
    if rest or count % types:
        return None
    layers = [Conv(len(b), window(w.shape[:2])) for w, b in stem]
    primary = PrimaryCaps(types, inner, window(kernel.shape[:2]), stride=2)
    size, front = sized([(*layers, primary)], convolutions[0][0].shape[2], count, dense, hints)
    last = DenseCaps(classes, dim, DynamicRouting(hints.rounds), bias=False)
    drawing, params = dense_decoder(dense, size)
    params |= named("stem", layers, [(hwio(w), b) for w, b in stem])
    params |= {"primary.weight": hwio(kernel), "primary.bias": bias}
    params["capsules.0.weight"] = first(weight.transpose(1, 0, 2, 3), types)
    return Found(CapsNetSpec(size, (*front, last), drawing), params, (LENGTH,))


FAMILY = Family("Xifeng Guo's CapsNet for Keras", recognise)
