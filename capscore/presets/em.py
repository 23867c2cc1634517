"""Networks of "Matrix Capsules with EM Routing" (Hinton, Sabour, Frosst 2018), and Gritzman's (2019).

First numbers are Gritzman's, except for biases of convolutions: 0.1 here, normal numbers of deviation 0.01 there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from capscore.init import TruncatedNormal, Uniform
from capscore.layers import AsCaps, BatchNorm, Conv, ConvCaps, DenseCaps
from capscore.losses import SpreadLoss
from capscore.net import CapsNetSpec
from capscore.routing import EMRouting


def glorot(fan_in: int, fan_out: int) -> Uniform:
    """Return the uniform first numbers of Glorot and Bengio (2010)."""
    return Uniform(math.sqrt(6 / (fan_in + fan_out)))


def matrices(routing: EMRouting = EMRouting()) -> dict[str, Any]:  # noqa: B008 - frozen
    """Return the settings of a layer of 4×4 matrices."""
    return {"dim": 16, "routing": routing, "bias": False, "pose_rows": 4, "init": TruncatedNormal(1.0)}


def network(
    size: tuple[int, int, int], classes: int, widths: tuple[int, int, int, int], padding: int = 0, norm: bool = False
) -> CapsNetSpec:
    """Return the network of figure 1, of A channels and B, C and D types of capsules."""
    a, b, c, d = widths
    return CapsNetSpec(
        size,
        (
            *([BatchNorm(epsilon=1e-3, scale=False, shift=False)] if norm else []),
            Conv(a, 5, 2, padding, init=glorot(25 * size[0], 25 * a)),
            Conv(17 * b, 1, activation="none", init=glorot(a, 17 * b)),
            AsCaps(b, 16, squash="none", active=True),
            ConvCaps(c, kernel=3, stride=2, **matrices()),
            ConvCaps(d, kernel=3, **matrices()),
            DenseCaps(classes, shared=True, coordinates=True, **matrices()),
        ),
        decoder=None,
        loss=SpreadLoss(0.2, 0.99, 50_000, smooth=True),
    )


PRESETS: dict[str, Callable[[], CapsNetSpec]] = {
    # figure 1 on stereo pairs, and without padding: 317,194 parameters ("310K" in table 1)
    "em-smallnorb": lambda: network((2, 32, 32), 5, (32, 32, 32, 32)),
    # Gritzman's, on one camera: 67,154. TensorFlow pads by 1 above and 2 below; here it is 2 and 1, which is the same
    # network of images that are turned by 180°.
    "em-small": lambda: network((1, 32, 32), 5, (64, 8, 16, 16), padding=2, norm=True),
}
