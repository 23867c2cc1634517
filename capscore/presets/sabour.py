"""The networks of "Dynamic Routing Between Capsules" (Sabour, Frosst, Hinton 2017)."""

from __future__ import annotations

from collections.abc import Callable

from capscore.layers import Conv, Decoder, DenseCaps, PrimaryCaps
from capscore.net import CapsNetSpec
from capscore.routing import DynamicRouting


def _paper(size: tuple[int, int, int], classes: int = 10, types: int = 32, leaky: bool = False) -> CapsNetSpec:
    """Return the network of figures 1 and 2 for images of another size or number of classes."""
    return CapsNetSpec(
        input=size,
        layers=(
            Conv(256, kernel=9),
            PrimaryCaps(types, dim=8, kernel=9, stride=2),
            DenseCaps(classes, dim=16, routing=DynamicRouting(3, leaky)),
        ),
        decoder=Decoder((512, 1024)),
    )


def svhn() -> CapsNetSpec:
    """Section 7."""
    return CapsNetSpec(
        input=(3, 32, 32),
        layers=(Conv(64, kernel=9), PrimaryCaps(types=16, dim=6, kernel=9, stride=2), DenseCaps(10, dim=8)),
    )


PRESETS: dict[str, Callable[[], CapsNetSpec]] = {
    "mnist": lambda: _paper((1, 28, 28)),  # section 4: 8,215,728 parameters
    "multimnist": lambda: _paper((1, 36, 36)),  # section 6: two digits on 36×36, 11.36 million parameters
    "cifar10": lambda: _paper((3, 24, 24), types=64, leaky=True),  # section 7: "none of the above" category
    "smallnorb": lambda: _paper((2, 32, 32), classes=5),  # section 7: stereo pairs
    "svhn": svhn,
}
