"""Routing by agreement, with each of its settings, in lists, windows and matrices. See `routing_proof`."""

from __future__ import annotations

from routing_proof import Proof

from capscore import AsCaps, CapsNetSpec, Conv, ConvCaps, Decoder, DenseCaps, DynamicRouting, PrimaryCaps

STEM = Conv(6, 5, stride=2)


class TestDynamicRouting(Proof):
    ROUTINGS = {}  # the loops are the oracle's own
    SPECS = {
        "list": CapsNetSpec((1, 14, 14), (STEM, PrimaryCaps(2, 4, 3), DenseCaps(3, 5)), Decoder((6,))),
        "leaky, two layers": CapsNetSpec(
            (1, 14, 14),
            (
                STEM,
                PrimaryCaps(2, 4, 3),
                DenseCaps(4, 5, DynamicRouting(2, leaky=True)),
                DenseCaps(3, 6, DynamicRouting(4, squash="exponential"), bias=False),
            ),
            None,
        ),
        "over inputs": CapsNetSpec(
            (1, 14, 14), (STEM, PrimaryCaps(2, 4, 3), DenseCaps(3, 5, DynamicRouting(3, over="inputs"))), None
        ),
        "padded windows of matrices": CapsNetSpec(
            (1, 14, 15),
            (
                STEM,
                Conv(2 * 4, 2, activation="none"),
                AsCaps(2, 4),
                ConvCaps(3, 4, 3, stride=2, padding="same", routing=DynamicRouting(2), pose_rows=2),
                DenseCaps(3, 6, shared=True, coordinates=True, pose_rows=2),
            ),
            None,
        ),
        "one type shares its matrix": CapsNetSpec(
            (1, 14, 14), (STEM, PrimaryCaps(1, 4, 3), DenseCaps(3, 5, shared=True, vote_bias=True)), None
        ),
        "one matrix for all": CapsNetSpec(
            (1, 14, 14), (STEM, PrimaryCaps(2, 4, 3), DenseCaps(3, 5, shared="all", vote_bias=True)), None
        ),
    }  # fmt: skip
