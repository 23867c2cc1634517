"""The networks of "DeepCaps" (Rajasegaran, Jayasundara, Jayasekara, Jayasekara, Seneviratne, Rodrigo 2019).

They are those of the authors' code, without the scramble of its `ConvCaps3D`. At stride 2 and on an even map, padding
"same" puts zeros before the map, and TensorFlow's behind it: this is their network for images turned by 180°, with all
windows turned too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from capscore.init import HeNormal, normal
from capscore.layer import Layer
from capscore.layers import (
    AsCaps,
    AsMap,
    BatchNorm,
    ChainDecoder,
    Concat,
    Conv,
    ConvCaps3D,
    ConvTranspose,
    DenseCaps,
    Linear,
    Residual,
)
from capscore.net import CapsNetSpec


def _caps(below: int, types: int, dim: int, stride: int = 1) -> tuple[Layer, ...]:
    """Return capsules that a convolution makes of a map of `below` channels, without routing (section 3.2)."""
    init = normal((9 * below * types * dim) ** -0.25)  # Keras' Glorot for an array of six axes
    conv = Conv(types * dim, 3, stride, padding="same", activation="none", bias=False, init=init)
    return conv, AsCaps(types, dim)


def _cell(below: int, types: int, dim: int, routed: bool = False) -> tuple[Layer, ...]:
    """Return a cell of figure 3: capsules on a map half as large, and two layers of capsules added to one of them."""
    more = AsMap(), *_caps(types * dim, types, dim)
    past = (ConvCaps3D(types, dim, 3, padding="same"),) if routed else more
    return *_caps(below, types, dim, stride=2), Residual((*more, *more), past, activation="none")


def _decoder(image: tuple[int, int, int], maps: tuple[int, ...], dim: int) -> ChainDecoder:
    """Return the class-independent decoder of section 3.4; of its `maps`, all but the first double the size."""
    factor = 2 ** (len(maps) - 1)
    size = 16, image[1] // factor, image[2] // factor
    chain: list[Layer] = [
        Linear(size, init=normal(math.sqrt(2 / (dim + math.prod(size))))),
        BatchNorm(momentum=0.2, epsilon=1e-3),
    ]
    for i, (below, channels) in enumerate(zip((16, *maps), (*maps, image[0]), strict=True)):
        stride, last = (2 if 0 < i < len(maps) else 1), i == len(maps)
        init = normal(math.sqrt(2 / (9 * (below + channels))))
        chain.append(ConvTranspose(channels, 3, stride, "relu" if last else "none", init))
    return ChainDecoder(tuple(chain), class_independent=True)


def deepcaps(
    image: tuple[int, int, int],
    channels: int = 128,
    types: int = 32,
    dims: tuple[int, int] = (4, 8),
    dim: int = 32,
    maps: tuple[int, ...] = (64, 32, 16),
) -> CapsNetSpec:
    """Return the network of figure 4, or a narrower one.

    It begins with so many `channels`; capsules are of so many `types` and of the first of `dims` numbers in the first
    cell, of the second in others. The ten classes are of `dim` numbers, and `maps` are those of the decoder.
    """
    first, other = types * dims[0], types * dims[1]
    return CapsNetSpec(
        image,
        (
            Conv(channels, 3, padding="same", init=HeNormal()),
            BatchNorm(momentum=0.01, epsilon=1e-3),
            *_cell(channels, types, dims[0]),
            AsMap(),
            *_cell(first, types, dims[1]),
            AsMap(),
            *_cell(other, types, dims[1]),
            Concat((AsMap(), *_cell(other, types, dims[1], routed=True))),  # the deepest capsules, then those before
            DenseCaps(10, dim),
        ),
        _decoder(image, maps, dim),
    )


PRESETS: dict[str, Callable[[], CapsNetSpec]] = {
    "deepcaps": lambda: deepcaps((1, 28, 28)),  # 8,442,176 numbers with running statistics, and 58,449 of the decoder
    "deepcaps-64": lambda: deepcaps((3, 64, 64), maps=(64, 32, 16, 8)),  # 13,359,680 and 67,603
}
