"""Capsules cut from memory, a softmax over the inputs, decoders of any layers: what networks of others are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import oracle
import pytest
from routing_proof import Proof

from capscore import (
    Activation,
    CapsNetSpec,
    ChainDecoder,
    Conv,
    ConvCaps,
    DenseCaps,
    DynamicRouting,
    FlatCaps,
    Linear,
    PrimaryCaps,
    Upsample,
)
from capscore.errors import SpecError

OVER_INPUTS = DynamicRouting(over="inputs")
DRAWING = ChainDecoder(
    (
        Linear((2, 3, 4), "none"),
        Upsample(2, "bilinear"),
        Conv(3, 3, padding="same", activation="none"),
        Activation("leaky_relu", 0.2),
        Upsample(3, "bilinear"),
        Conv(1, (3, 5), activation="sigmoid"),
    )
)


def flat(how: Mapping[str, Any], p: Mapping[str, np.ndarray], x: np.ndarray) -> oracle.Caps:
    """One number after another, in loops: channel by channel, row by row."""
    numbers = [x[at] for at in np.ndindex(*x.shape)]
    pieces = [np.array(numbers[i : i + how["dim"]]) for i in range(0, len(numbers), how["dim"])]
    return oracle.Caps(np.array([oracle.squash(piece) for piece in pieces]).reshape(-1, 1, 1, how["dim"]))


class TestFlatCapsAndASoftmaxOverInputs(Proof):
    ROUTINGS: ClassVar[dict[str, Any]] = {"FlatCaps": flat}
    SPECS: ClassVar[dict[str, CapsNetSpec]] = {
        "flat": CapsNetSpec((1, 16, 20), (Conv(3, 4, 4), FlatCaps(4), DenseCaps(4, 5, OVER_INPUTS)), DRAWING),
        "windows": CapsNetSpec(
            (1, 14, 14),
            (Conv(6, 5, 2), PrimaryCaps(2, 4, 2), ConvCaps(2, 4, 3, routing=OVER_INPUTS), DenseCaps(3, 4, OVER_INPUTS)),
            None,
        ),
    }


def test_flat_capsules_must_divide_the_map() -> None:
    with pytest.raises(SpecError, match=r"capsules of 7 numbers do not divide Map.*; 6 would"):
        CapsNetSpec((1, 4, 6), (FlatCaps(7), DenseCaps(2)), decoder=None)


def test_a_softmax_over_inputs_leaks_nothing() -> None:
    with pytest.raises(SpecError, match='leaky is for over="outputs"'):
        DynamicRouting(leaky=True, over="inputs")
    with pytest.raises(SpecError, match='over must be "outputs" or "inputs", not'):
        DynamicRouting(over="both")


@pytest.mark.parametrize("chain", [(), (Linear(9),), (Linear((1, 5, 4)),)])
def test_a_decoder_must_end_in_the_image(chain: Any) -> None:
    with pytest.raises(SpecError, match=r"decoder: its last layer makes .*, not the image Map"):
        CapsNetSpec((1, 4, 5), (FlatCaps(4), DenseCaps(2)), ChainDecoder(chain))


def test_a_decoder_is_made_of_layers() -> None:
    with pytest.raises(SpecError, match="ChainDecoder: chain must be a tuple of layers"):
        ChainDecoder((3,))  # type: ignore[arg-type]
