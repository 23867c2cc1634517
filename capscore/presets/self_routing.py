"""The ResNet-20 of "Self-Routing Capsule Networks" (Hahn, Pyeon, Kim 2019, section 4)."""

from __future__ import annotations

from collections.abc import Callable

from capscore.init import HeNormal
from capscore.layer import Layer
from capscore.layers import AsCaps, BatchNorm, Conv, MaxPool, PadChannels, Residual, SelfRoutedClasses
from capscore.losses import CrossEntropy
from capscore.net import CapsNetSpec


def _conv(channels: int, stride: int = 1, activation: str = "none") -> tuple[Layer, ...]:
    conv = Conv(channels, 3, stride, padding="same", activation="none", bias=False, init=HeNormal())
    return conv, BatchNorm(activation=activation)


def self_routing(
    image: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    channels: int = 16,
    blocks: int = 3,
    types: int = 32,
    dim: int = 16,
) -> CapsNetSpec:
    """Return a ResNet of 6 · `blocks` + 2 layers whose features end in capsules, and the classes these route to.

    It begins with so many `channels`, and has twice and four times as many on a half and a quarter of the map. Where
    the map becomes smaller, a shortcut takes every other position, and zeros for the channels that it lacks.
    """
    layers = list(_conv(channels, activation="relu"))
    for width in (channels, 2 * channels, 4 * channels):
        for i in range(blocks):
            halves = i == 0 and width > channels
            block = *_conv(width, 2 if halves else 1, "relu"), *_conv(width)
            fewer: tuple[Layer, ...] = (MaxPool(1, stride=2), PadChannels(width // 4, width // 4)) if halves else ()
            layers.append(Residual(block, fewer))
    capsules = *_conv(types * (dim + 1)), AsCaps(types, dim, squash="none", active=True)
    return CapsNetSpec(image, (*layers, *capsules, SelfRoutedClasses(classes)), None, CrossEntropy())


PRESETS: dict[str, Callable[[], CapsNetSpec]] = {
    "self-routing-resnet20": self_routing,  # 931,664 parameters
}
