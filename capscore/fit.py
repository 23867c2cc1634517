"""A network and a pace of training for images of any size and number."""

import math
from typing import NamedTuple

from .errors import SpecError
from .layer import Layer
from .layers import AveragePool, BatchNorm, Conv, DenseCaps, Drawing, InstanceNorm, MaxPool, PrimaryCaps
from .net import CapsNetSpec
from .presets import PRESETS

LEAST = 4  # positions a side of the map below the capsules, as `small` has on 28×28
MOST = 100  # positions of the map: 800 primary capsules
POOLED = 49  # positions of a map, above which a stem halves it while LEAST a side remain
VOTES = 4096  # positions times classes, while there are more than LEAST² positions: 4 million weights
DRAWN = 2**15  # values of an image that the decoder still draws: it is most of the network then

KERNELS = ((5, 0), (3, 0), (3, 1))  # and paddings
STRIDES = (((2,), 2), ((1,), 2), ((1,), 1), *(((2,) * depth, 2) for depth in range(2, 20)))  # of stem and primary

FEW = 2000  # images, below which a network must find a shape where it has not seen it
LARGE = 32  # pixels of the shorter side, from which images are pooled however many there are
PIXELS = 28 * 28  # of the images for which the paper weighs the reconstruction by 0.0005: it sums over them
SEEN = 8000  # images, repetitions counted, that a training sees at least


def fitted(size: tuple[int, int, int], classes: int, images: int | None = None) -> CapsNetSpec:
    """Return a network for images (C, H, W), of which there are so many to learn from.

    Large images, of 32 pixels a side or more, and few ones, below 2,000, get convolutions with batch normalisation and
    pooling, in the end over the whole map: 16 primary capsules that know a shape wherever it is. The first convolution
    is normalised image by image, so that brightness and contrast do not hide the shape. Others get a network like
    `small`, and `small` itself for 1×28×28 and 10 classes: the map of its primary capsules has at least 4×4 positions
    where the image has them, and at most 100, fewer with many classes. Images of more than 32,768 values are not
    reconstructed. Raises SpecError if no network fits.
    """
    most = max(LEAST**2, min(MOST, VOTES // classes))
    decoder = PRESETS["small"].decoder if math.prod(size) <= DRAWN else None
    if _are_pooled(size, images):
        stem, places = _pooled(size)
        if min(places) >= LEAST:
            layers = (*stem, AveragePool(places), PrimaryCaps(16, 8, 1), DenseCaps(classes, dim=16))
            return CapsNetSpec(size, layers, decoder)
    return _like_small(size, classes, most, decoder)


class Pace(NamedTuple):
    """How a training goes: what the options of the same names say."""

    batch: int
    epochs: int
    shift: int
    rate: float
    schedule: str
    reconstruction: float


def pace(size: tuple[int, int, int], images: int) -> Pace:
    """Return the pace for so many images (C, H, W) to learn from, with the network of `fitted`.

    About 32 steps a pass, of 16 to 128 images; 10 passes, and up to 100 until 8,000 images were seen.
    """
    batch = 1 << max(4, min(7, (images // 32).bit_length() - 1))
    epochs = max(10, min(100, -(-SEEN // images)))
    shift = min(2, min(size[1:]) - 1)
    if _are_pooled(size, images):
        weight = float(f"{PIXELS * 5e-4 / math.prod(size):.2g}")
        return Pace(batch, epochs, max(shift, min(size[1:]) // 8), 2e-3, "cosine", weight)
    return Pace(batch, epochs, shift, 1e-3, "exponential", 5e-4)


def _are_pooled(size: tuple[int, int, int], images: int | None) -> bool:
    return min(size[1:]) >= LARGE or (images is not None and images < FEW)


def _pooled(size: tuple[int, int, int]) -> tuple[tuple[Layer, ...], tuple[int, int]]:
    """Return convolutions that halve the map until it is small, and one that does not; and its height and width."""
    layers: list[Layer] = []
    height, width = size[1:]
    depth = 0
    while height * width > POOLED and min(height, width) >= 2 * LEAST:
        norm = BatchNorm(activation="relu") if depth else InstanceNorm(activation="relu")
        channels = min(64, 16 << (depth + 1) // 2)
        layers += [Conv(channels, 3, padding=1, activation="none", bias=False), norm, MaxPool(2)]
        height, width, depth = height // 2, width // 2, depth + 1
    layers += [Conv(64, 3, padding=1, activation="none", bias=False), BatchNorm(activation="relu")]
    return tuple(layers), (height, width)


def _like_small(size: tuple[int, int, int], classes: int, most: int, decoder: Drawing | None) -> CapsNetSpec:
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
                        decoder=decoder,
                    )
                except SpecError:  # a kernel is larger than its map
                    continue
                places = spec.rows[-1].input[1:3]
                if min(places) >= least and math.prod(places) <= most:
                    return spec
    raise SpecError(f"no network was found for images of {size} (C×H×W) in {classes} classes: write one for --spec")
