"""The network of "No Routing Needed Between Capsules" (Byerly, Kalganova, Dear 2020, figure 3)."""

from __future__ import annotations

from collections.abc import Callable

from capscore.init import normal
from capscore.layer import Layer
from capscore.layers import AsCaps, BatchNorm, BranchScores, Conv, HomogeneousCaps, Residual
from capscore.losses import CrossEntropy
from capscore.net import CapsNetSpec

INIT = normal(0.05)


def hvc(
    image: tuple[int, int, int] = (1, 28, 28),
    classes: int = 10,
    channels: int = 32,
    more: int = 16,
    convs: tuple[int, ...] = (3, 3, 3),
    momentum: float = 0.0003,
) -> CapsNetSpec:
    """Return the network whose scores are those of several branches, added.

    So many `convs` of 3×3 come before each branch after the one before; the first makes so many `channels`, each other
    so many `more`. `momentum` is that of all normalisations; the authors' is for 150,000 steps.
    """

    def norm(activation: str = "none") -> BatchNorm:
        return BatchNorm(momentum, 1e-3, activation, scale=False)

    widths = [channels + more * i for i in range(sum(convs))]
    layers: tuple[Layer, ...] = ()
    for count in reversed(convs):  # from the last branch to the first
        own, widths = widths[-count:], widths[:-count]
        stem = [layer for width in own for layer in (_conv(width), norm("relu"))]
        capsules = AsCaps(1, own[-1], squash="none"), HomogeneousCaps(classes, norm("relu"), INIT)
        branch = *capsules, BranchScores(norm())
        layers = *stem, *((Residual(layers, branch, activation="none"),) if layers else branch)
    return CapsNetSpec(image, layers, None, CrossEntropy())


def _conv(channels: int) -> Conv:
    return Conv(channels, 3, activation="none", bias=False, init=INIT)


PRESETS: dict[str, Callable[[], CapsNetSpec]] = {
    "hvc-mnist": hvc,  # 1,513,686 parameters
}
