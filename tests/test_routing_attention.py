"""Self-attention routing, and layers on a grid with the dynamic one: see `routing_proof`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import oracle
import pytest
from conftest import NUMPY
from routing_proof import Proof, images

from capscore import CapsNetSpec, Conv, ConvCaps, Decoder, DenseCaps, DynamicRouting, PrimaryCaps, SelfAttention
from capscore.init import TruncatedNormal

STEM = Conv(6, 5, stride=2)


def attention(how: Mapping[str, Any], p: Mapping[str, Any], bias: Any, seen: oracle.Seen) -> oracle.Caps:
    """Equations 4 to 6 of "Efficient-CapsNet", for every position."""
    poses = []
    for u_hat in seen.votes:
        n, count, d = u_hat.shape
        c = np.zeros((n, count))
        for i in range(n):
            logits = [sum(u_hat[i, j] @ u_hat[k, j] for k in range(n)) / math.sqrt(d) for j in range(count)]
            c[i] = oracle.softmax(logits, leaky=False)
        sums = [sum((c[i, j] + p["prior"][j, i]) * u_hat[i, j] for i in range(n)) for j in range(count)]
        poses.append([oracle.SQUASHES[how["squash"]](s) for s in sums])
    return oracle.Caps(np.array(poses))


class TestSelfAttention(Proof):
    ROUTINGS = {"SelfAttention": attention}
    SPECS = {
        "list": CapsNetSpec(
            (1, 18, 18),
            (STEM, PrimaryCaps(4, 5, 7, groups=2, squash="exponential"), DenseCaps(5, 8, SelfAttention(), bias=False)),
            Decoder((6,)),
        ),
        "windows": CapsNetSpec(
            (1, 16, 17),
            (
                STEM,
                PrimaryCaps(3, 4, 2),
                ConvCaps(2, 6, (3, 2), 2, routing=SelfAttention("squash"), bias=False, init=TruncatedNormal(1.0)),
                DenseCaps(4, 5, SelfAttention("squash"), bias=False, init=TruncatedNormal(1.0)),
            ),
            None,
        ),
    }


class TestDynamicRoutingOnAGrid(Proof):
    ROUTINGS = {}
    SPECS = {
        "padded": CapsNetSpec(
            (2, 15, 14),
            (STEM, PrimaryCaps(2, 4, 2), ConvCaps(3, 5, 3, padding="same"), ConvCaps(2, 4, 2, 3), DenseCaps(3, 4)),
            None,
        ),
        "matrices": CapsNetSpec(
            (1, 15, 15),
            (
                STEM,
                PrimaryCaps(2, 6, 2),
                ConvCaps(2, 9, 3, 2, padding=(1, 0), routing=DynamicRouting(2, squash="exponential"), pose_rows=3),
                DenseCaps(4, 6, DynamicRouting(2, leaky=True), pose_rows=3, shared=True, coordinates=True),
            ),
            Decoder((5,)),
        ),
        "votes with bias": CapsNetSpec(
            (1, 14, 14),
            (STEM, PrimaryCaps(2, 4, 3), DenseCaps(3, 5, bias=False, vote_bias=True, shared=True), DenseCaps(3, 4)),
            None,
        ),
    }


@pytest.mark.parametrize("layer", ["dense", "conv_caps"])
def test_a_fused_routing_makes_no_votes(monkeypatch: pytest.MonkeyPatch, layer: str) -> None:
    spec = TestDynamicRoutingOnAGrid.SPECS["padded"]
    net = NUMPY.CapsNet(spec)
    monkeypatch.setattr(f"capscore.layers.{layer}.LinearVotes", None)
    assert np.isfinite(net(images(spec)).scores).all()
    with pytest.raises(TypeError):  # a trace wants them
        net(images(spec), couplings=True)
