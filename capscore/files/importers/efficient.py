"""Efficient-CapsNet, github.com/EscVM/Efficient-CapsNet, for MNIST, MultiMNIST and smallNORB.

Convolutions, each followed by its activation and then a norm; a depthwise convolution over the whole map, linear, whose
channels are the primary capsules; self-attention with W [J, N, K, D] and a prior b [J, N, 1]. Weights do not tell the
strides: those of the authors' three networks are tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from capscore.errors import ModelFileError
from capscore.layer import Layer, Map, Vector
from capscore.layers import (
    Activation,
    BatchNorm,
    ChainDecoder,
    Conv,
    DenseCaps,
    Drawing,
    InstanceNorm,
    Linear,
    PrimaryCaps,
    Upsample,
)
from capscore.layers.chain import plan_chain
from capscore.net import CapsNetSpec
from capscore.routing import SelfAttention

from .family import Family, Found, Hints, Size, named, sized
from .keras_layers import LENGTH, Layers, by_kind, dense_decoder
from .layouts import Array, first, hwio, window

EPSILON = 1e-3  # of norms, in Keras and TensorFlow Addons
MOMENTUM = 0.01  # of batch norms: Keras says 0.99
LAYER_SLOPE, FUNCTION_SLOPE = 0.3, 0.2  # of leaky ReLU, as a layer of Keras and as a function of TensorFlow

DECODERS = {"dense", "convolution"}  # kinds of layers of a generator

STANDARDISED = "its images are standardised, each camera's over the whole dataset; [0, 1] is not what it was trained on"


class Variant(NamedTuple):
    """What the weights of one of the authors' networks do not tell."""

    norm: str  # kind of the layers between the convolutions
    strides: tuple[int, ...]  # of the convolutions
    last: int  # of the depthwise one


VARIANTS = (
    Variant("batch norm", (1, 1, 1, 2), 1),  # MNIST
    Variant("batch norm", (1, 1, 2, 2), 2),  # MultiMNIST
    Variant("norm", (2, 1, 1, 2), 1),  # smallNORB
)


def recognise(tensors: Mapping[str, Array], hints: Hints) -> Found | None:
    """Return the network, with its decoder (the authors' generator) if the file has it."""
    own, other = _parted(tensors)
    kinds, drawing = by_kind(own), by_kind(other)
    attention, convolutions = kinds.pop("self-attention", []), kinds.pop("convolution", [])
    norm, norms = kinds.popitem() if len(kinds) == 1 else ("", [])
    variants = [each for each in VARIANTS if (each.norm, len(each.strides)) == (norm, len(norms))]
    if not variants or len(attention) != 1 or len(convolutions) != len(norms) + 1 or drawing.keys() - DECODERS:
        return None
    if hints.iterations is not None:
        raise ModelFileError("the routing of Efficient-CapsNet has no iterations; leave them out")
    (kernel, bias), (weight, prior) = convolutions[-1], attention[0]
    classes, count, inner, dim = weight.shape
    types, rest = divmod(len(bias), inner)
    if rest or count % types:
        return None
    dense, maps = drawing.get("dense", []), drawing.get("convolution", [])
    stacks = [_layers(variant, convolutions, types) for variant in variants]
    decoder: Drawing | None
    params: dict[str, Array]
    if maps:
        decoder, params, image = _generator(dense, maps)
        hints = hints._replace(input=hints.input or image)
    size, layers = sized(stacks, convolutions[0][0].shape[2], count, [] if maps else dense, hints)
    if not maps:
        decoder, params = dense_decoder(dense, size)
    arrays = [(hwio(w), b) for w, b in convolutions]
    params |= named("stem", layers, [each for pair in zip(arrays, norms, strict=False) for each in pair])
    params |= {"primary.weight": hwio(kernel), "primary.bias": bias}
    params["capsules.0.weight"] = first(weight.transpose(1, 0, 3, 2), types)
    params["capsules.0.routing.prior"] = first(prior[:, :, 0].T, types).T
    last = DenseCaps(classes, dim, SelfAttention(), bias=False)
    notes = (LENGTH, STANDARDISED) if norm == "norm" else (LENGTH,)
    return Found(CapsNetSpec(size, (*layers, last), decoder), params, notes)


def _parted(tensors: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the arrays of the group in which self-attention is, and the others: the generator's."""
    layer = next((name.rpartition("/")[0] for name, array in tensors.items() if array.ndim == 3), "")
    group = layer.removesuffix("/vars").rpartition("/")[0]
    own = {name: array for name, array in tensors.items() if name.startswith(f"{group}/" if group else "")}
    return own, {name: array for name, array in tensors.items() if name not in own}


def _layers(variant: Variant, convolutions: Layers, types: int) -> list[Layer]:
    """Return the layers up to the primary capsules."""
    layers: list[Layer] = []
    for (kernel, bias), stride in zip(convolutions, variant.strides, strict=False):
        if variant.norm == "norm":
            layers += [Conv(len(bias), window(kernel.shape[:2]), stride, activation="none"),
                       Activation("leaky_relu", LAYER_SLOPE), InstanceNorm(EPSILON)]  # fmt: skip
        else:
            layers += [Conv(len(bias), window(kernel.shape[:2]), stride), BatchNorm(MOMENTUM, EPSILON)]
    kernel, bias = convolutions[-1]
    sides, squash = window(kernel.shape[:2]), "exponential"
    return [*layers, PrimaryCaps(types, len(bias) // types, sides, variant.last, groups=len(bias), squash=squash)]


def _generator(dense: Layers, maps: Layers) -> tuple[ChainDecoder, dict[str, Array], Size]:
    """Return smallNORB's decoder and its image: a small map, upsampled and convolved thrice, then convolved."""
    (kernel, bias), *others = dense
    side = math.isqrt(len(bias))
    chain: list[Layer] = [Linear((1, side, side), "none")]
    for w, b in maps[:-1]:
        chain += [Upsample(2, "bilinear"), Conv(len(b), window(w.shape[:2]), activation="none")]
        chain += [Activation("leaky_relu", FUNCTION_SLOPE)]
    chain.append(Conv(len(maps[-1][1]), window(maps[-1][0].shape[:2]), activation="sigmoid"))
    image = plan_chain(chain, Vector(len(kernel)), "decoder")[-1].output
    if others or not isinstance(image, Map):
        raise ModelFileError(f"its generator has {len(dense)} dense layers where the authors' has one; leave it out")
    arrays = [(kernel.T, bias), *((hwio(w), b) for w, b in maps)]
    return ChainDecoder(tuple(chain)), named("decoder", chain, arrays), (*image,)


FAMILY = Family("Efficient-CapsNet", recognise)
