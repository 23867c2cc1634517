"""gram-ai's CapsNet for PyTorch, github.com/gram-ai/capsule-networks, and networks that were built on it.

It has a convolution for each number of a primary capsule, whose output channels are the types. Its routing takes the
softmax over the input capsules instead of the output capsules, in training, too: over="inputs".
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from capscore.layers import Conv, DenseCaps, PrimaryCaps
from capscore.net import CapsNetSpec
from capscore.routing import DynamicRouting

from .family import Family, Found, Hints, decoder, sized
from .layouts import Array, window
from .pytorch_layers import matrices

SCORES = "their code returns the softmax of the lengths, this one the lengths: the order of the classes is the same"


def recognise(tensors: Mapping[str, Array], hints: Hints) -> Found | None:
    """Return the network: a convolution of stride 1, primary capsules of stride 2, class capsules, a decoder if any."""
    route = tensors.get("digit_capsules.route_weights")  # [J, N, K, D]
    if route is None or route.ndim != 4:
        return None
    classes, count, inner, dim = route.shape
    parts = [f"primary_capsules.capsules.{d}" for d in range(inner)]
    both = {f"{name}.{what}" for name in ("conv1", *parts) for what in ("weight", "bias")}
    dense = matrices(tensors, both | {"digit_capsules.route_weights"})
    if dense is None:
        return None
    kernel, bias = (np.stack([tensors[f"{part}.{what}"] for part in parts], 1) for what in ("weight", "bias"))
    types = len(kernel)  # [types, K, in, kh, kw]: row type·K + d
    params = {
        "stem.0.weight": tensors["conv1.weight"],
        "stem.0.bias": tensors["conv1.bias"],
        "primary.weight": kernel.reshape(types * inner, *kernel.shape[2:]),
        "primary.bias": bias.reshape(types * inner),
        "capsules.0.weight": route.transpose(1, 0, 3, 2),
    }
    channels, inputs, *sides = tensors["conv1.weight"].shape
    layers = Conv(channels, window(sides)), PrimaryCaps(types, inner, window(kernel.shape[3:]), stride=2)
    size, front = sized([layers], inputs, count, dense, hints)
    last = DenseCaps(classes, dim, DynamicRouting(hints.rounds, over="inputs"), bias=False)
    drawing, drawn = decoder(dense, size)
    return Found(CapsNetSpec(size, (*front, last), drawing), params | drawn, (SCORES,))


FAMILY = Family("gram-ai's CapsNet for PyTorch", recognise)
