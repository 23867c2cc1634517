"""Convolution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capscore.errors import SpecError
from capscore.init import Init, TruncatedNormal
from capscore.layer import Layer, Map, Param, Plan, Run, Shape, need_map
from capscore.ops import A, Ops
from capscore.values import Pair, check_flags, check_kind, check_pairs, check_whole, pair

from .activation import activate, check_activation
from .chain import MAX_NUMBERS


@dataclass(frozen=True)
class Conv(Layer):
    """A convolution with bias, followed by an activation.

    `kernel`, `stride` and `padding` are a number or (height, width); padding "same" keeps the size of the map at
    stride 1, for odd kernels. With `groups` equal to the input's channels, it is depthwise.
    """

    channels: int
    kernel: Pair
    stride: Pair = 1
    padding: Pair | str = 0
    activation: str = "relu"
    groups: int = 1
    bias: bool = True
    init: Init | None = None  # of the weight; None: 0.45/√fan_in, which is the authors' at their sizes

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self, "channels", "groups")
        check_window(self)
        check_activation(self)
        check_flags(self, "bias")
        check_kind(self, "init", Init, "HeNormal()", optional=True)

    def plan(self, x: Shape) -> Plan:
        """Return a map."""
        return convolution(self, x, self.channels, self.groups, self.bias, self.init)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> A:
        """Turn a map [B, C, H, W] into a map [B, channels, H', W']."""
        y = ops.conv2d(x, p["weight"], p.get("bias"), pair(self.stride), margins(self), self.groups)
        return activate(ops, y, self.activation)


def check_window(layer: Any) -> None:
    """Raise SpecError unless the layer's kernel, stride and padding are sizes."""
    check_pairs(layer, "kernel", "stride")
    if layer.padding != "same":
        check_pairs(layer, "padding", least=0)
    elif not all(size % 2 for size in pair(layer.kernel)):
        raise SpecError(
            f'{type(layer).__name__}: padding "same" needs an odd kernel, not {layer.kernel}: '
            "an even one has no middle; give padding as a number"
        )


def margins(layer: Any) -> tuple[int, int]:
    """Return how many zeros the layer puts above (and below) and left (and right) of a map."""
    if layer.padding == "same":
        height, width = pair(layer.kernel)
        return height // 2, width // 2
    return pair(layer.padding)


def slide(layer: Any, x: Map) -> tuple[int, int]:
    """Return height and width of what the layer's window makes of a map, or say why it does not fit."""
    (kh, kw), (ph, pw), (sh, sw) = pair(layer.kernel), margins(layer), pair(layer.stride)
    if kh > x.height + 2 * ph or kw > x.width + 2 * pw:
        fit = f"{x.height + 2 * ph}×{x.width + 2 * pw}" if (kh, ph) != (kw, pw) else min(x.height, x.width) + 2 * ph
        more = max(-(-(kh - x.height) // 2), -(-(kw - x.width) // 2))
        raise SpecError(
            f"kernel {layer.kernel} is larger than its {x.height}×{x.width} input map with padding {layer.padding}; "
            f"a kernel of at most {fit} or a padding of at least {more} would fit"
        )
    if x.channels * (x.height + 2 * ph) * (x.width + 2 * pw) > MAX_NUMBERS:
        raise SpecError(
            f"padding {layer.padding} makes more than {MAX_NUMBERS:,} numbers of its {x.height}×{x.width} input map; "
            "a smaller padding would fit"
        )
    return (x.height + 2 * ph - kh) // sh + 1, (x.width + 2 * pw - kw) // sw + 1


def divisor(size: int, most: int) -> int:
    """Return the largest number up to `most` that divides `size`."""
    return next(n for n in range(min(size, most), 0, -1) if size % n == 0)


def convolution(layer: Any, x: Shape, channels: int, groups: int, bias: bool, init: Init | None) -> Plan:
    """Return the plan of a convolution of so many output channels by the layer's window."""
    x = need_map(layer, x)
    height, width = slide(layer, x)
    common = math.gcd(x.channels, channels)
    if common % groups:
        raise SpecError(
            f"{groups} groups do not divide {x.channels} channels of the input and {channels} of the output; "
            f"{divisor(common, groups)} would"
        )
    shape = (channels, x.channels // groups, *pair(layer.kernel))
    fan_in = math.prod(shape[1:])
    params = {"weight": Param(shape, init or TruncatedNormal(0.45 / math.sqrt(fan_in)))}
    if bias:
        params["bias"] = Param((channels,))
    return Plan(Map(channels, height, width), params, channels * fan_in * height * width)
