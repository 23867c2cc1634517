"""One stem, and what may follow it: capsules with and without routing, or a CNN's layers. The heads alone differ.

The stem is that of Efficient-CapsNet (Mazzia, Salvetti, Chiaberge 2021) with a stride in its first layer, which makes
it six times as fast: four convolutions with ReLU and batch normalisation, then a depthwise one over the whole map.
"""

from __future__ import annotations

from dataclasses import replace

from capscore import BatchNorm, CapsNetSpec, Conv, Decoder, DenseCaps, Linear, MarginLoss, MaxPool, PrimaryCaps
from capscore.init import HeNormal
from capscore.layer import Layer, Map
from capscore.layers.chain import plan_chain
from capscore.routing import DynamicRouting, SelfAttention
from lab.baselines import of_size

CHANNELS, KERNELS = (32, 32, 64, 128), (5, 3, 3, 3)
CAPSULES, NUMBERS = 16, 16  # primary capsules, of 8 numbers each; numbers of a class capsule

NONE, DYNAMIC = "no routing", "dynamic routing"
ALIKE, ATTENTION = "no attention", "self-attention"
# Each routing after its own twin, in which every coupling is alike: they differ from each other in the squash and in
# how the weights start too, as their authors have it.
ROUTINGS: dict[str, DenseCaps] = {
    NONE: DenseCaps(10, NUMBERS, routing=DynamicRouting(1)),
    DYNAMIC: DenseCaps(10, NUMBERS),
    ALIKE: DenseCaps(10, NUMBERS, routing=DynamicRouting(1, squash="exponential"), bias=False, init=HeNormal()),
    ATTENTION: DenseCaps(10, NUMBERS, routing=SelfAttention(), bias=False, init=HeNormal()),
}
CNN, NARROW = "CNN", "CNN, 16 features"  # the other has a last layer of as many features as a capsule has numbers
HEADS = (*ROUTINGS, CNN, NARROW)
POOLED, DRAWING = "CNN, 16 features, max-pooling", "self-attention, decoder"


def networks(size: int) -> dict[str, CapsNetSpec]:
    """Return every network by its name, for images of so many pixels a side: 28, or 36 for pairs of them.

    All heads have as many parameters, to a hundredth, and learn by the same loss. Two networks more are one of them
    with another part: max-pooling in the place of the stem's strides, at the same shapes, and a decoder.
    """
    strides = (2, 1, 1, 2) if size == 28 else (2, 1, 2, 1)
    input = (1, size, size)

    def capsules(head: DenseCaps) -> CapsNetSpec:
        kernel = _side(_stem(strides), input)
        primary = PrimaryCaps(CAPSULES, CHANNELS[-1] // CAPSULES, kernel, groups=CHANNELS[-1], squash="exponential")
        return CapsNetSpec(input, (*_stem(strides), primary, head), None)

    found = {name: capsules(head) for name, head in ROUTINGS.items()}
    wanted = found[NONE].parameter_count
    found[CNN] = _cnn(_stem(strides), input, (), wanted)
    found[NARROW] = _cnn(_stem(strides), input, (NUMBERS,), wanted)
    found[POOLED] = _cnn(_stem(strides, pooled=True), input, (NUMBERS,), wanted)
    found[DRAWING] = found[ATTENTION].replace(decoder=Decoder((512, 1024)))
    return found


def _stem(strides: tuple[int, ...], pooled: bool = False) -> tuple[Layer, ...]:
    """Return the stem without its depthwise layer; `pooled`, a max-pooling takes the place of every stride."""
    made: list[Layer] = []
    for channels, kernel, stride in zip(CHANNELS, KERNELS, strides, strict=True):
        conv = Conv(channels, kernel, stride, init=HeNormal())
        made += [replace(conv, stride=1), MaxPool(stride)] if pooled and stride > 1 else [conv]
        made.append(BatchNorm())
    return tuple(made)


def _side(stem: tuple[Layer, ...], input: tuple[int, int, int]) -> int:
    """Return how many positions a side the map has that a stem makes."""
    side: int = plan_chain(stem, Map(*input), "stem")[-1].output.dims[1]
    return side


def _cnn(stem: tuple[Layer, ...], input: tuple[int, int, int], last: tuple[int, ...], parameters: int) -> CapsNetSpec:
    """Return a CNN of so many parameters; the width of its hidden layer, before those of sizes `last`, sees to that."""
    whole = Conv(CHANNELS[-1], _side(stem, input), groups=CHANNELS[-1], init=HeNormal())

    def sized(width: int) -> CapsNetSpec:
        dense = [Linear(each, init=HeNormal()) for each in (width, *last)]
        return CapsNetSpec(input, (*stem, whole, *dense, Linear(10, "sigmoid", HeNormal())), None, MarginLoss())

    return of_size(sized, parameters)
