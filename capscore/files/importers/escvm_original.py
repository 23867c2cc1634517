"""The original CapsNet as in github.com/EscVM/Efficient-CapsNet, for Keras.

As Guo's, except that what the primary convolution makes is divided by the number of types before its bias is added,
that W is [N, K, J·D], and that class capsules have a bias, which is added in every iteration.
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
    names = "convolution", "EscVM's primary capsules", "EscVM's digit capsules", "dense"
    stem, primaries, digits, dense = (kinds.pop(name, []) for name in names)
    if kinds or not stem or (len(primaries), len(digits)) != (1, 1):
        return None
    (kernel, biases), (weight, bias) = primaries[0], digits[0]
    (types, inner), (classes, dim), count = biases.shape, bias.shape, len(weight)
    if weight.shape != (count, inner, classes * dim) or count % types:
        return None
    layers = [Conv(len(b), window(w.shape[:2])) for w, b in stem]
    primary = PrimaryCaps(types, inner, window(kernel.shape[:2]), stride=2)
    size, front = sized([(*layers, primary)], stem[0][0].shape[2], count, dense, hints)
    drawing, params = dense_decoder(dense, size)
    params |= named("stem", layers, [(hwio(w), b) for w, b in stem])
    params |= {"primary.weight": hwio(kernel) / types, "primary.bias": biases.reshape(-1), "capsules.0.bias": bias}
    params["capsules.0.weight"] = first(weight.reshape(count, inner, classes, dim).transpose(0, 2, 3, 1), types)
    last = DenseCaps(classes, dim, DynamicRouting(hints.rounds))
    return Found(CapsNetSpec(size, (*front, last), drawing), params, (LENGTH,))


FAMILY = Family("the original CapsNet of EscVM/Efficient-CapsNet", recognise)
