"""A network for images of any size: the preset `small`, with as many convolutions as bring the map down."""

import math

from .errors import SpecError
from .layers import Conv, DenseCaps, PrimaryCaps
from .net import CapsNetSpec
from .presets import PRESETS

LEAST = 4  # positions a side of the primary capsules' map, as `small` has on 28×28
MOST = 100  # positions of the map: 800 primary capsules
VOTES = 4096  # positions times classes, while there are more than LEAST² positions: 4 million weights
DRAWN = 2**15  # values of an image that the decoder still draws: it is most of the network then

KERNELS = ((5, 0), (3, 0), (3, 1))  # and paddings
STRIDES = (((2,), 2), ((1,), 2), ((1,), 1), *(((2,) * depth, 2) for depth in range(2, 20)))  # of stem and primary


def fitted(size: tuple[int, int, int], classes: int) -> CapsNetSpec:
    """Return a network like `small` for images (C, H, W): `small` itself for 1×28×28 and 10 classes.

    The map of the primary capsules gets at least 4×4 positions where the image has them, and at most 100, fewer with
    many classes. Images of more than 32,768 values are not reconstructed. Raises SpecError if no network fits.
    """
    most = max(LEAST**2, min(MOST, VOTES // classes))
    small = PRESETS["small"]
    for least in range(LEAST, 0, -1):  # long strips have no 4×4 left
        for kernel, padding in KERNELS:
            for stem, stride in STRIDES:
                try:
                    spec = CapsNetSpec(
                        input=size,
                        layers=(
                            *(Conv(32, kernel, step, padding) for step in stem),
                            PrimaryCaps(8, 8, kernel, stride, padding),
                            DenseCaps(classes, dim=16),
                        ),
                        decoder=small.decoder if math.prod(size) <= DRAWN else None,
                    )
                except SpecError:  # a kernel is larger than its map
                    continue
                places = spec.rows[-1].input[1:3]
                if min(places) >= least and math.prod(places) <= most:
                    return spec
    raise SpecError(f"no network was found for images of {size} (C×H×W) in {classes} classes: write one for --spec")
