"""Networks of "Capsule Routing via Variational Bayes" (Ribeiro, Leontidis, Kollias 2020), as in the authors' code."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from capscore.init import Uniform
from capscore.layers import AsCaps, BatchNorm, Conv, ConvCaps, DenseCaps
from capscore.losses import CrossEntropy
from capscore.net import CapsNetSpec
from capscore.routing import VariationalBayes


def matrices(types: int, types_below: int, kernel: int = 1) -> dict[str, Any]:
    """Return the settings of a layer of 4×4 matrices."""
    limit = math.sqrt(6 / ((types_below + types) * kernel**2 * 16))
    return {"dim": 16, "routing": VariationalBayes(), "bias": False, "pose_rows": 4, "init": Uniform(limit)}


def network(size: tuple[int, int, int], classes: int, widths: tuple[int, int, int, int]) -> CapsNetSpec:
    """Return the network of three capsule layers, of A channels and B, C and D types of capsules.

    Coordinates are those of EM routing. (The authors' code is about to add a tenth as much, but takes all capsules to
    lie at one position, and adds 0.1 to both places of every vote.)
    """
    a, b, c, d = widths
    return CapsNetSpec(
        size,
        (
            Conv(a, 5, 2, activation="none", bias=False, init=Uniform(math.sqrt(6 / (25 * size[0])))),
            BatchNorm(activation="relu"),
            Conv(17 * b, 1, activation="none", bias=False, init=Uniform(math.sqrt(6 / (a + 16 * b)))),
            AsCaps(b, 16, squash="none", active=True, norm=True),
            ConvCaps(c, kernel=3, stride=2, **matrices(c, b, 3)),
            ConvCaps(d, kernel=3, **matrices(d, c, 3)),
            DenseCaps(classes, shared=True, coordinates=True, **matrices(classes, d)),
        ),
        decoder=None,
        loss=CrossEntropy(),
    )


PRESETS: dict[str, Callable[[], CapsNetSpec]] = {
    "vb-smallnorb": lambda: network((2, 32, 32), 5, (64, 8, 16, 16)),  # 68,714 parameters
}
