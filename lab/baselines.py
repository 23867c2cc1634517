"""The convolutional networks that the paper compares with, and one of any capsule network's size.

They are specs of the same layers, ending in scores in the place of capsules: what trains, saves and measures capsule
networks does the same for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from capscore import CapsNetSpec, Conv, CrossEntropy, Dropout, Linear, MaxPool
from capscore.agree import layers
from capscore.init import HeNormal
from capscore.layer import Layer


def cnn(
    input: tuple[int, int, int],
    convs: Iterable[Conv],
    hidden: Iterable[int],
    classes: int = 10,
    pool: int = 1,
    dropout: float = 0.0,
    exclusive: bool = True,
) -> CapsNetSpec:
    """Return convolutions with ReLU; fully connected layers with ReLU, of `hidden` sizes; a score for each class.

    Weights start with variance 2/fan_in (He et al. 2015).

    Parameters
    ----------
    pool : side and stride of the max-pooling after every convolution; 1 is none
    dropout : share of the last hidden features that training leaves out
    exclusive : softmax over the classes; else a sigmoid for each, several may be there
    """
    made: list[Layer] = []
    for conv in (replace(each, init=HeNormal()) for each in convs):
        made += [conv, MaxPool(pool)] if pool > 1 else [conv]
    made += [Linear(size, init=HeNormal()) for size in hidden]
    if dropout:
        made.append(Dropout(dropout))
    return CapsNetSpec(input, (*made, Linear(classes, "none", HeNormal())), None, CrossEntropy(exclusive=exclusive))


# Section 5: 35.4 million parameters, so the maps keep their size. The paper names no rate of dropout.
MNIST = cnn((1, 28, 28), [Conv(channels, 5, padding=2) for channels in (256, 256, 128)], (328, 192), dropout=0.5)
# Section 6: 24.56 million parameters.
MULTIMNIST = cnn((1, 36, 36), [Conv(512, 9, padding=4), Conv(256, 5, padding=2)], (1024,), pool=2, exclusive=False)


def like(spec: CapsNetSpec, exclusive: bool = True, features: int | None = None) -> CapsNetSpec:
    """Return a usual small CNN for the same images and classes, with as many parameters as the capsule network.

    The width of its hidden layer sees to that. With `features` a layer of so many numbers comes after it.
    """
    convs = Conv(32, 5, padding=2), Conv(64, 5, padding=2)

    def sized(width: int) -> CapsNetSpec:
        hidden = (width,) if features is None else (width, features)
        return cnn(spec.input, convs, hidden, spec.classes, pool=2, exclusive=exclusive)

    return of_size(sized, spec.parameter_count)


def of_size(sized: Callable[[int], CapsNetSpec], parameters: int) -> CapsNetSpec:
    """Return what `sized` makes of the width, at least 1, that comes nearest to so many parameters."""
    least, step = sized(1).parameter_count, sized(2).parameter_count - sized(1).parameter_count
    return sized(max(1, 1 + round((parameters - least) / step)))


def answers(net: Any, images: Any) -> tuple[Any, Any]:
    """Return how likely a CNN holds every class [B, J], and the last features before that [B, 1, D].

    These are probabilities, or, of a network that learned by another loss than cross-entropy, the scores themselves.
    """
    *_, (_, features), (_, scores) = layers(net, images, ())
    return net.spec.loss.chances(net.ops, scores), features[:, None]
