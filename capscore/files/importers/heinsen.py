"""Heinsen's network for smallNORB, github.com/glassroom/heinsen_routing_2019_paper, and smaller or larger ones.

Poses are matrices [c, d] of four rows, a vote is pose · W + B with W [N, J, d, h] and B [N, J, c, h]; N is 1 where all
capsules share one W. Neither tells the size of the images: it is the authors' 96×96 unless a hint says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from capscore.layers import Concat
from capscore.net import CapsNetSpec
from capscore.presets.heinsen import heinsen
from capscore.routing import HeinsenRouting

from .family import Family, Found, Hints, named
from .layouts import Array

SIDE = 96  # pixels of the authors' images

NOTE = "the weights fit images of any size; those of the authors are 2×96×96, and --input says another"
NORM = "weight", "bias", "running_mean", "running_var"
CONVOLUTION = "weight", "bias"
ROUTING = "W", "B", "beta_use", "beta_ign", "CONST_one"


def recognise(tensors: Mapping[str, Array], hints: Hints) -> Found | None:
    """Return the network: batch norms and convolutions of strides 1, 2, 1, 2 and so on, parts, and classes."""
    count = len([name for name, array in tensors.items() if name.startswith("convolve.") and array.ndim == 4])
    stages = [f"convolve.{3 * i}" for i in range(count)], [f"convolve.{3 * i + 1}" for i in range(count)]
    norms, convolutions = [*stages[0], "compute_mu.0", "compute_a.0"], [*stages[1], "compute_mu.1", "compute_a.1"]
    needed = {f"{name}.{what}" for name in norms for what in NORM}
    needed |= {f"{name}.{what}" for name in convolutions for what in CONVOLUTION}
    needed |= {f"routings.{i}.{what}" for i in (0, 1) for what in ROUTING}
    if not count or needed != tensors.keys():
        return None
    arrays: list[tuple[Array, ...]] = []
    for norm, convolution in zip(norms, convolutions, strict=True):
        arrays.append(tuple(tensors[f"{norm}.{what}"] for what in NORM))
        arrays.append(tuple(tensors[f"{convolution}.{what}"] for what in CONVOLUTION))
    spec = _spec(tensors, count, hints)
    *front, both = spec.stem
    assert isinstance(both, Concat)
    at = f"stem.{len(front)}"
    params = named("stem", front, arrays[:-4])
    params |= named(f"{at}.layers", both.layers, arrays[-4:-2]) | named(f"{at}.shortcut", both.shortcut, arrays[-2:])
    for i in (0, 1):
        weight, bias, use, ignore, _ = (tensors[f"routings.{i}.{what}"] for what in ROUTING)
        params |= {
            f"capsules.{i}.weight": weight.transpose(0, 1, 3, 2),
            f"capsules.{i}.vote_bias": bias.reshape(*bias.shape[:2], -1),
            f"capsules.{i}.routing.beta_use": use,
            f"capsules.{i}.routing.beta_ign": ignore,
        }
    return Found(spec, params, () if hints.input else (NOTE,))


def _spec(tensors: Mapping[str, Array], count: int, hints: Hints) -> CapsNetSpec:
    (channels, inputs, *_), parts = tensors["convolve.1.weight"].shape, tensors["routings.0.W"].shape[1]
    size = hints.input or (inputs - 2, SIDE, SIDE)  # two of the channels are coordinates
    strides = tuple(1 + i % 2 for i in range(count))
    spec = heinsen(size, tensors["routings.1.W"].shape[1], parts, channels, strides)
    routed = []
    for layer in spec.capsules:
        assert isinstance(layer.routing, HeinsenRouting)
        routed.append(replace(layer, routing=replace(layer.routing, iterations=hints.rounds)))
    return spec.replace(layers=(*spec.layers[:-2], *routed))


FAMILY = Family("Heinsen's network for smallNORB", recognise)
