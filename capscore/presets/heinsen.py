"""The vision network of "An Algorithm for Routing Capsules in All Domains" (Heinsen 2019, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable

from capscore.init import HeNormal, normal
from capscore.layer import Layer
from capscore.layers import AsCaps, BatchNorm, Concat, Conv, Coordinates, DenseCaps
from capscore.losses import CrossEntropy
from capscore.net import CapsNetSpec
from capscore.routing import HeinsenRouting


def heinsen(
    image: tuple[int, int, int] = (2, 96, 96),
    classes: int = 5,
    parts: int = 64,
    channels: int = 64,
    strides: tuple[int, ...] = (1, 2, 1, 2, 1, 2),
) -> CapsNetSpec:
    """Return the network of figure 4, or a smaller one.

    Convolutions of so many `channels` and these `strides`, capsules of so many `parts` at every position of what they
    make, as many capsules of parts of the whole image, and the classes. Poses are 4×4 matrices.
    """
    convs: list[Layer] = []
    for stride in strides:
        convs += BatchNorm(), Conv(channels, 3, stride, activation="silu", init=HeNormal())
    poses = BatchNorm(), Conv(parts * 16, 1, activation="none")
    activations = BatchNorm(), Conv(parts, 1, activation="none")

    def routed(count: int, one_for_all: bool, logits: bool = False) -> DenseCaps:
        return DenseCaps(
            count,
            dim=16,
            routing=HeinsenRouting(shared=one_for_all, logits=logits),
            bias=False,
            pose_rows=4,
            shared="all" if one_for_all else False,
            vote_bias=True,
            init=normal(0.25),
        )

    return CapsNetSpec(
        image,
        (
            Coordinates(),
            *convs,
            Concat(poses, activations),
            AsCaps(parts, 16, squash="none", active=True),
            routed(parts, one_for_all=True),
            routed(classes, one_for_all=False, logits=True),
        ),
        None,
        CrossEntropy(),
    )


PRESETS: dict[str, Callable[[], CapsNetSpec]] = {
    "heinsen-smallnorb": heinsen,  # 271,688 parameters
}
