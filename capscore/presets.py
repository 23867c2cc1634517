"""Networks by name."""

from __future__ import annotations

from .layers import Conv, Decoder, DenseCaps, PrimaryCaps
from .net import CapsNetSpec
from .routing import DynamicRouting


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


PRESETS: dict[str, CapsNetSpec] = {
    "mnist": _paper((1, 28, 28)),  # section 4: 8,215,728 parameters
    "multimnist": _paper((1, 36, 36)),  # section 6: two digits on 36×36, 11.36 million parameters
    "cifar10": _paper((3, 24, 24), types=64, leaky=True),  # section 7: patches, "none of the above" category
    "smallnorb": _paper((2, 32, 32), classes=5),  # section 7: stereo pairs
    "svhn": CapsNetSpec(  # section 7
        input=(3, 32, 32),
        layers=(Conv(64, kernel=9), PrimaryCaps(types=16, dim=6, kernel=9, stride=2), DenseCaps(10, dim=8)),
    ),
    "small": CapsNetSpec(  # ours: trains in a minute on two cores
        input=(1, 28, 28),
        layers=(Conv(32, kernel=5, stride=2), PrimaryCaps(types=8, dim=8, kernel=5, stride=2), DenseCaps(10, dim=16)),
        decoder=Decoder((128, 256)),
    ),
}
