"""Small networks of ours for 28×28 images, one for every routing: each learns the digits in a minute or a few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from capscore.init import HeNormal, TruncatedNormal
from capscore.layer import Layer
from capscore.layers import (
    AsCaps,
    AsMap,
    BatchNorm,
    BranchScores,
    CapsNorm,
    Concurrent,
    Conv,
    ConvCaps,
    Decoder,
    DenseCaps,
    GlobalPool,
    HomogeneousCaps,
    Logits,
    PrimaryCaps,
    Residual,
    SelfRoutedClasses,
)
from capscore.losses import CrossEntropy, Loss, MarginLoss, SpreadLoss
from capscore.net import CapsNetSpec
from capscore.routing import EMRouting, HeinsenRouting, InvertedAttention, SelfAttention, SelfRouting, VectorRouting

from . import em, variational
from .deepcaps import deepcaps

DECODER = Decoder((128, 256))


def _network(*layers: Layer, decoder: Decoder | None = None, loss: Loss = MarginLoss()) -> CapsNetSpec:  # noqa: B008
    return CapsNetSpec((1, 28, 28), layers, decoder, loss)


def _normal(channels: int, kernel: int, stride: int = 1, activation: str = "relu") -> tuple[Layer, ...]:
    """Return a convolution and its normalisation."""
    return Conv(channels, kernel, stride, activation="none", bias=False), BatchNorm(activation=activation)


def dynamic() -> CapsNetSpec:
    """Return the network that is called `small`."""
    return _network(Conv(32, 5, 2), PrimaryCaps(8, 8, 5, 2), DenseCaps(10), decoder=DECODER)


def attention() -> CapsNetSpec:
    """Return the same with self-attention."""
    classes = DenseCaps(10, routing=SelfAttention(), bias=False, init=HeNormal())
    return _network(Conv(32, 5, 2), PrimaryCaps(8, 8, 5, 2, squash="exponential"), classes, decoder=DECODER)


def inverted() -> CapsNetSpec:
    """Return a network of two layers of matrices that route at the same time."""
    how: dict[str, Any] = {"bias": False, "pose_rows": 4, "routing": InvertedAttention(1)}
    primary = Conv(128, 1, activation="none", bias=False), AsCaps(8, 16, "none"), CapsNorm()
    caps = Concurrent((ConvCaps(8, 16, 3, 2, **how), DenseCaps(10, 16, **how)))
    return _network(Conv(32, 5, 2), Conv(64, 3, 2), *primary, caps, Logits(), decoder=DECODER, loss=CrossEntropy())


def matrix() -> CapsNetSpec:
    """Return a network of two layers of matrices with EM routing; two iterations learn much faster than three."""
    caps = em.matrices(EMRouting(2))
    return _network(
        *_normal(64, 5, 2),
        *_normal(64, 3, 2),
        Conv(17 * 8, 1, activation="none"),
        AsCaps(8, 16, "none", active=True),
        ConvCaps(16, kernel=3, stride=2, **caps),
        DenseCaps(10, shared=True, coordinates=True, **caps),
        loss=SpreadLoss(steps=1000),
    )


def bayes() -> CapsNetSpec:
    """Return the same with variational Bayes routing."""
    return _network(
        *_normal(64, 5, 2),
        *_normal(64, 3, 2),
        Conv(17 * 8, 1, activation="none", bias=False),
        AsCaps(8, 16, "none", active=True, norm=True),
        ConvCaps(16, kernel=3, stride=2, **variational.matrices(16, 8, 3)),
        DenseCaps(10, shared=True, coordinates=True, **variational.matrices(10, 16)),
        loss=CrossEntropy(),
    )


def self_routing() -> CapsNetSpec:
    """Return a network of two layers of capsules that route themselves."""
    return _network(
        *_normal(32, 5, 2),
        *_normal(32, 3),
        *_normal(16 * 9, 3, 2, "none"),
        AsCaps(16, 8, "none", active=True),
        ConvCaps(16, 8, 3, routing=SelfRouting(), bias=False),
        CapsNorm("batch"),
        SelfRoutedClasses(10),
        loss=CrossEntropy(),
    )


def heinsen() -> CapsNetSpec:
    """Return a network of one layer of matrices with Heinsen's routing; two did not learn the digits so fast."""
    return _network(
        *_normal(32, 5, 2),
        *_normal(32, 5, 2),
        Conv(8 * 17, 1, activation="none"),
        AsCaps(8, 16, "none", active=True),
        DenseCaps(
            10, 16, HeinsenRouting(logits=True), bias=False, pose_rows=4, vote_bias=True, init=TruncatedNormal(0.28)
        ),
        loss=CrossEntropy(),
    )


def vectors() -> CapsNetSpec:
    """Return a network of two layers of vectors with the routing of Heinsen 2022, the second of scores."""
    how: dict[str, Any] = {"routing": VectorRouting(), "bias": False, "shared": "factors", "vote_bias": True}
    return _network(
        *_normal(32, 5, 2),
        *_normal(64, 3, 2),
        AsCaps(1, 64, "none"),
        CapsNorm(),
        DenseCaps(16, 64, **how),
        DenseCaps(10, 1, **how),
        AsMap(),
        GlobalPool(),  # of one position: a vector of scores
        loss=CrossEntropy(),
    )


def homogeneous() -> CapsNetSpec:
    """Return a network of two branches of capsules without routing."""

    def branch(size: int) -> tuple[Layer, ...]:
        return AsCaps(1, size, "none"), HomogeneousCaps(10), BranchScores()

    rest = *_normal(32, 5, 2), *branch(32)
    return _network(*_normal(32, 5, 2), Residual(rest, branch(32), activation="none"), loss=CrossEntropy())


PRESETS: dict[str, Callable[[], CapsNetSpec]] = {
    "small": dynamic,
    "small-attention": attention,
    "small-inverted": inverted,
    "small-em": matrix,
    "small-vb": bayes,
    "small-self-routing": self_routing,
    "small-heinsen": heinsen,
    "small-vectors": vectors,
    "small-hvc": homogeneous,
    "small-deepcaps": lambda: deepcaps((1, 28, 28), 32, 8, (4, 8), 16, (16, 8, 8)),
}
