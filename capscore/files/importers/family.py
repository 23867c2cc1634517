"""What a family of checkpoints is: networks of one author's code, known by the names and shapes of their arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from capscore.errors import ModelFileError, SpecError
from capscore.layer import Layer, Map
from capscore.layers import BatchNorm, Conv, Decoder, InstanceNorm, Linear
from capscore.layers.chain import plan_chain
from capscore.net import CapsNetSpec

from .layouts import Array

LEARNING = Conv, Linear, BatchNorm, InstanceNorm  # layers that have parameters
KEYS = "weight", "bias", "mean", "variance"  # of these, in the order in which other code keeps them, too
LARGEST = 512  # pixels a side, of images whose size nothing tells

Size = tuple[int, int, int]  # of images: channels, height, width


class Found(NamedTuple):
    """A network that was found in a checkpoint."""

    spec: CapsNetSpec
    params: dict[str, Array]
    notes: tuple[str, ...] = ()  # where it differs from the authors' code, and what was left out


class Hints(NamedTuple):
    """What weights do not tell."""

    input: Size | None = None
    iterations: int | None = None  # of the routing

    @property
    def rounds(self) -> int:
        """Iterations of the routing: 3, as in the authors' code, if nothing else was said."""
        return 3 if self.iterations is None else self.iterations


class Family(NamedTuple):
    """The networks of one author's code."""

    name: str
    recognise: Callable[[Mapping[str, Array], Hints], Found | None]  # None: these arrays are of another family


def sized(
    stacks: Sequence[Sequence[Layer]], channels: int, capsules: int, dense: Sequence[tuple[Array, ...]], hints: Hints
) -> tuple[Size, tuple[Layer, ...]]:
    """Return the size of the images, and which stack of layers makes so many capsules of them.

    The size is that of what the decoder `dense` draws; if several are possible, the square one is meant. ModelFileError
    says which sizes would fit if that is not one, or not the hint's.
    """
    squares = [(channels, side, side) for side in range(1, LARGEST + 1)]
    sizes = _drawn(channels, len(dense[-1][1])) if dense else squares
    fitting = [(size, tuple(layers)) for layers in stacks for size in sizes if _count(layers, size) == capsules]
    if hints.input is not None:
        told = [(hints.input, tuple(layers)) for layers in stacks if _count(layers, hints.input) == capsules]
        if hints.input[0] != channels or not told:
            raise ModelFileError(
                f"images of {hints.input} do not make the {capsules:,} capsules of the weights; {_say(fitting)}"
            )
        return told[0]
    square = [found for found in fitting if found[0][1] == found[0][2]] or fitting
    if len(square) != 1:
        raise ModelFileError(
            f"the weights are for {capsules:,} primary capsules of images with {channels} channels; "
            f"which size these have does not follow from that: {_say(fitting)}"
        )
    return square[0]


def _drawn(channels: int, numbers: int) -> list[Size]:
    """Return every size of an image with so many channels and numbers."""
    area = numbers // channels
    return [
        (channels, side, area // side) for side in range(1, area + 1) if side * (area // side) * channels == numbers
    ]


def _count(layers: Iterable[Layer], size: Size) -> int:
    """Return how many capsules the layers make of an image; 0 where they do not fit it."""
    try:
        return plan_chain(layers, Map(*size), "layers")[-1].output.dims[0]
    except SpecError:
        return 0


def _say(fitting: Iterable[tuple[Size, Any]]) -> str:
    sizes = [",".join(map(str, size)) for size in sorted({size for size, _ in fitting})]
    if not sizes:
        return "with the strides of the authors' code none fits; give a spec and a mapping of names"
    return f"--input {' or '.join(sizes[:8])} would fit"


def named(part: str, layers: Sequence[Layer], arrays: Iterable[tuple[Array, ...]]) -> dict[str, Array]:
    """Name the arrays of layers one after another: those that have parameters take the next arrays each."""
    own = [f"{part}.{i}" for i, layer in enumerate(layers) if isinstance(layer, LEARNING)]
    both = [
        (f"{name}.{key}", array)
        for name, each in zip(own, arrays, strict=True)
        for key, array in zip(KEYS, each, strict=False)
    ]
    return dict(both)


def decoder(matrices: Sequence[tuple[Array, ...]], size: Size) -> tuple[Decoder | None, dict[str, Array]]:
    """Return the decoder of these (weight [out, in], bias [out]), and its parameters; None of none."""
    if not matrices:
        return None, {}
    outputs = tuple(len(bias) for _, bias in matrices)
    if outputs[-1] != math.prod(size):
        raise ModelFileError(f"the decoder draws {outputs[-1]:,} numbers, no image of {size}; take it out of the file")
    drawing = Decoder(outputs[:-1])
    return drawing, named("decoder", drawing.layers(Map(*size)), matrices)
