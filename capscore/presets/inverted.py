"""The networks of "Capsules with Inverted Dot-Product Attention Routing" (Tsai et al. 2020).

They are layer by layer those of the authors' code, whose windows, however, are `scrambled`: what has been trained by it
belongs to `resnet(…, scrambled=True)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from capscore.init import HeNormal, TruncatedNormal
from capscore.layer import Layer
from capscore.layers import AsCaps, BatchNorm, CapsNorm, Concurrent, Conv, ConvCaps, DenseCaps, Logits, Residual
from capscore.losses import CrossEntropy
from capscore.net import CapsNetSpec
from capscore.routing import InvertedAttention


def _conv(channels: int, kernel: int, stride: int = 1, activation: str = "none") -> tuple[Layer, ...]:
    """Return a convolution without bias that keeps the size of the map at stride 1, and its batch norm."""
    conv = Conv(channels, kernel, stride, "same", activation="none", bias=False, init=HeNormal())
    return conv, BatchNorm(activation=activation)


def _block(channels: int, stride: int = 1, shortcut: bool = False) -> Residual:
    layers = *_conv(channels, 3, stride, "relu"), *_conv(channels, 3)
    return Residual(layers, _conv(channels, 1, stride) if shortcut else ())


def resnet(classes: int, dim: int, hidden: tuple[int, ...] = (), scrambled: bool = False) -> CapsNetSpec:
    """Return the network of a ResNet, primary capsules, two layers on a grid, `hidden` layers, and class capsules.

    `dim`, a square, is the size of all poses, and `hidden` how many capsules each layer without a place has.
    """
    rows = math.isqrt(dim)

    def how(inputs: int, outputs: int) -> dict[str, Any]:
        init = TruncatedNormal(math.sqrt(outputs / (rows * inputs)))
        return {"dim": dim, "routing": InvertedAttention(1), "bias": False, "pose_rows": rows, "init": init}

    sizes = (32 * 5 * 5, *hidden, classes)
    capsules = (
        ConvCaps(32, kernel=3, stride=2, scrambled=scrambled, **how(32 * 9, 32)),
        ConvCaps(32, kernel=3, scrambled=scrambled, **how(32 * 9, 32)),
        *(DenseCaps(count, **how(below, count)) for below, count in pairwise(sizes)),
    )
    return CapsNetSpec(
        input=(3, 32, 32),
        layers=(
            *_conv(64, 3, activation="relu"),
            *(_block(64) for _ in range(3)),
            _block(128, stride=2, shortcut=True),
            *(_block(128) for _ in range(3)),
            Conv(32 * dim, 1, activation="none", bias=False),
            AsCaps(32, dim, "none"),
            CapsNorm(),
            Concurrent(capsules, iterations=2),
            Logits(),
        ),
        decoder=None,
        loss=CrossEntropy(),
    )


PRESETS: dict[str, Callable[[], CapsNetSpec]] = {
    "inverted-cifar10": lambda: resnet(10, dim=16),  # 1,828,817 parameters
    "inverted-cifar100": lambda: resnet(100, dim=36, hidden=(20,)),  # 2,799,629
}
