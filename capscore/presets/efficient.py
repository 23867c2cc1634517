"""The networks of "Efficient-CapsNet" (Mazzia, Salvetti, Chiaberge 2021), as the authors' code has them.

Theirs starts the scales and shifts of the instance norms from uniform numbers in ±0.05; here they start at 1 and 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from capscore.init import HeNormal
from capscore.layer import Layer
from capscore.layers import (
    Activation,
    BatchNorm,
    ChainDecoder,
    Conv,
    Decoder,
    DenseCaps,
    InstanceNorm,
    Linear,
    MaxPool,
    PrimaryCaps,
    Residual,
    Upsample,
)
from capscore.losses import CrossEntropy
from capscore.net import CapsNetSpec
from capscore.routing import DynamicRouting, SelfAttention


def _features(windows: Iterable[tuple[int, int]], after: tuple[Layer, ...], activation: str) -> tuple[Layer, ...]:
    """Return four convolutions of these kernels and strides, each followed by `after`."""
    convs = zip((32, 64, 64, 128), windows, strict=True)
    return tuple(
        layer
        for channels, window in convs
        for layer in (Conv(channels, *window, activation=activation, init=HeNormal()), *after)
    )


def _primary(kernel: int, stride: int = 1) -> PrimaryCaps:
    """Return 16 capsules of a depthwise convolution over the whole map (section 3)."""
    return PrimaryCaps(types=16, dim=8, kernel=kernel, stride=stride, groups=128, squash="exponential")


def _attentive(classes: int) -> DenseCaps:
    return DenseCaps(classes, dim=16, routing=SelfAttention(), bias=False, init=HeNormal())


def _digits(
    size: int, strides: tuple[int, ...], kernel: int, stride: int = 1, head: Layer | None = None
) -> CapsNetSpec:
    norm = BatchNorm(momentum=0.01, epsilon=1e-3)  # Keras' own; after the ReLU
    return CapsNetSpec(
        input=(1, size, size),
        layers=(
            *_features(zip((5, 3, 3, 3), strides, strict=True), (norm,), "relu"),
            _primary(kernel, stride),
            head or _attentive(10),
        ),
        decoder=Decoder((512, 1024)),
    )


def smallnorb() -> CapsNetSpec:
    """Stereo pairs, cropped to 48×48: 151,664 parameters, and 229,570 of the decoder."""
    after = Activation("leaky_relu", slope=0.3), InstanceNorm(epsilon=1e-3)
    leaky = Activation("leaky_relu", slope=0.2)
    grown = (
        layer for size in (64, 128, 128) for layer in (Upsample(2, "bilinear"), Conv(size, 3, activation="none"), leaky)
    )
    return CapsNetSpec(
        input=(2, 48, 48),
        layers=(*_features(((7, 2), (3, 1), (3, 1), (3, 2)), after, "none"), _primary(kernel=8), _attentive(5)),
        decoder=ChainDecoder((Linear((1, 8, 8), "none"), *grown, Conv(2, 3, activation="sigmoid"))),
    )


def _residual(
    size: int, widths: tuple[int, int, int] = (16, 32, 64), whole: int = 0, head: Layer | None = None
) -> CapsNetSpec:
    """Return ours: the same head over residual blocks (He et al. 2016) on maps of a half and a quarter of the size.

    It learns faster than the stem of the paper, single digits and overlapping ones. `whole` is how many blocks there
    are on the maps of the whole size.
    """

    def convolved(channels: int, kernel: int = 3, activation: str = "relu") -> tuple[Layer, ...]:
        conv = Conv(channels, kernel, padding="same", activation="none", bias=False, init=HeNormal())
        return conv, BatchNorm(momentum=0.01, epsilon=1e-3, activation=activation)  # an export folds it into `conv`

    def block(channels: int) -> Residual:
        return Residual((*convolved(channels), *convolved(channels, activation="none")))

    first, half, quarter = widths
    return CapsNetSpec(
        input=(1, size, size),
        layers=(
            *convolved(first, 5), *(block(first) for _ in range(whole)), MaxPool(2),
            *convolved(half), block(half), block(half), MaxPool(2),
            *convolved(quarter), block(quarter), *convolved(128, 1),
            _primary(size // 4), head or _attentive(10),
        ),
        decoder=Decoder((128, 256)),
    )  # fmt: skip


def _residual_digits(head: Layer) -> CapsNetSpec:
    """Return the residual network of fewer than 165,000 parameters for single digits.

    Trained for 20 epochs of 50,033 images, it got 36 of 9,967 others wrong; with the margin loss and no block on whole
    maps 43.
    """
    return _residual(28, (16, 32, 60), whole=1, head=head).replace(loss=CrossEntropy(10.0))


PRESETS: dict[str, Callable[[], CapsNetSpec]] = {
    "efficient-mnist": lambda: _digits(28, (1, 1, 1, 2), kernel=9),  # 161,824 parameters, and the paper's decoder
    "efficient-multimnist": lambda: _digits(36, (1, 1, 2, 2), kernel=5, stride=2),  # 154,656
    "residual-mnist": lambda: _residual_digits(_attentive(10)),  # 164,312
    "residual-dynamic-mnist": lambda: _residual_digits(DenseCaps(10, dim=16)),
    "residual-unrouted-mnist": lambda: _residual_digits(DenseCaps(10, dim=16, routing=DynamicRouting(1))),
    "residual-multimnist": lambda: _residual(36),  # 174,352
    "residual-affnist": lambda: _residual(40),  # 176,784
    "residual-fashion": lambda: _residual(28, (32, 64, 128)),  # 580,480
    "efficient-smallnorb": smallnorb,
    # Ours: the stem of efficient-mnist, so that the heads alone differ.
    "dynamic-mnist": lambda: _digits(28, (1, 1, 1, 2), kernel=9, head=DenseCaps(10, dim=16)),
    "unrouted-mnist": lambda: _digits(28, (1, 1, 1, 2), 9, head=DenseCaps(10, dim=16, routing=DynamicRouting(1))),
}
