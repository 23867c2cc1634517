"""The convolutional networks that the paper compares with, and one of any capsule network's size; on PyTorch.

`CNN` and `Learner` stand where a backend's `CapsNet` and `Learner` do: `capscore.train.train` trains them with the
same recipe, checkpoints and log. "Lengths" are probabilities, and "capsules" the last features before the classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from capscore import CapsNetSpec, Conv, modelfile
from capscore.backends import torch as caps
from capscore.backends._torch_parallel import share_gradients
from capscore.errors import SpecError, short
from capscore.layer import Map, Param
from capscore.layers.chain import place
from capscore.model import Output
from capscore.net import Shapes


@dataclass(frozen=True)
class CNNSpec:
    """Convolutions with ReLU, each followed by max-pooling if asked for; fully connected layers; classes.

    A spec has what model files and training ask of `CapsNetSpec`: input, classes, parameters, JSON.
    """

    input: tuple[int, int, int]
    convs: tuple[Conv, ...]
    hidden: tuple[int, ...]
    pool: int = 1  # side and stride of the max-pooling after every convolution; 1 is none
    classes: int = 10
    dropout: float = 0.0  # share of the last hidden features that training leaves out
    exclusive: bool = True  # softmax over the classes; else a sigmoid for each, several may be there

    @cached_property
    def parameters(self) -> Shapes:
        """Name and shape of every parameter, in the order of the layers."""
        x, found = Map(*self.input), Shapes()
        for i, conv in enumerate(self.convs):
            row = place(conv, x, f"conv.{i}")
            found |= {name: param.shape for name, param in row.parameters.items()}
            channels, height, width = row.output.dims
            x = Map(channels, height // self.pool, width // self.pool)
        size = math.prod(x)
        for i, out in enumerate((*self.hidden, self.classes)):
            found |= {f"linear.{i}.weight": (out, size), f"linear.{i}.bias": (out,)}
            size = out
        return found

    @property
    def params(self) -> dict[str, Param]:
        """Every parameter by name."""
        return {name: Param(shape) for name, shape in self.parameters.items()}

    @property
    def parameter_count(self) -> int:
        """How many numbers the network learns."""
        return sum(map(math.prod, self.parameters.values()))

    def to_json(self) -> str:
        """Return the spec as JSON; `from_json` reads it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> CNNSpec:
        """Read a spec from JSON. SpecError says that it is none."""
        try:
            values = json.loads(text)
            convs = tuple(Conv(**conv) for conv in values.pop("convs"))
            lists: dict[str, Any] = {name: tuple(values.pop(name)) for name in ("input", "hidden")}
            if not set(values) <= {field.name for field in fields(cls)}:
                raise KeyError(*values)
            return cls(convs=convs, **lists, **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SpecError(f"this is not the spec of a CNN: {short(error)}") from None


# Section 5: 35.4 million parameters, so the maps keep their size. The paper names no rate of dropout.
MNIST = CNNSpec(
    input=(1, 28, 28),
    convs=(Conv(256, 5, padding=2), Conv(256, 5, padding=2), Conv(128, 5, padding=2)),
    hidden=(328, 192),
    dropout=0.5,
)
# Section 6: 24.56 million parameters.
MULTIMNIST = CNNSpec(
    input=(1, 36, 36),
    convs=(Conv(512, 9, padding=4), Conv(256, 5, padding=2)),
    hidden=(1024,),
    pool=2,
    exclusive=False,
)


def like(spec: CapsNetSpec, exclusive: bool = True, features: int | None = None) -> CNNSpec:
    """Return a usual small CNN for the same images and classes, with as many parameters as the capsule network.

    The width of its hidden layer sees to that. With `features` a layer of so many numbers comes after it.
    """

    def sized(hidden: int) -> CNNSpec:
        return CNNSpec(
            input=spec.input,
            convs=(Conv(32, 5, padding=2), Conv(64, 5, padding=2)),
            hidden=(hidden,) if features is None else (hidden, features),
            pool=2,
            classes=spec.classes,
            exclusive=exclusive,
        )

    least, step = sized(1).parameter_count, sized(2).parameter_count - sized(1).parameter_count
    return sized(max(1, 1 + round((spec.parameter_count - least) / step)))


def init_params(spec: CNNSpec, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Return every parameter by name, float64: normal weights of variance 2/fan_in (He et al. 2015), biases 0."""
    rng = np.random.default_rng(seed)
    return {
        name: np.zeros(shape) if name.endswith("bias") else rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
        for name, shape in spec.parameters.items()
    }


class CNN(caps.CapsNet):
    """A convolutional network with the methods of `CapsNet`: predict, save, load, assign."""

    spec: Any

    def __init__(
        self,
        spec: CNNSpec,
        params: Mapping[str, Any] | None = None,
        seed: int = 0,
        dtype: str = "float32",
        **about: Any,
    ) -> None:
        super().__init__(spec, init_params(spec, seed) if params is None else params, seed, dtype, **about)

    def _adopt(self, params: dict[str, Tensor]) -> None:
        for name, value in params.items():
            holder: nn.Module = self
            *path, leaf = name.split(".")
            for part in path:  # a name with dots is a leaf of modules within modules
                if part not in holder._modules:
                    holder.add_module(part, nn.Module())
                holder = holder.get_submodule(part)
            holder.register_parameter(leaf, nn.Parameter(value))

    def extra_repr(self) -> str:
        """Return the whole spec: the modules have no settings of their own."""
        return repr(self.spec)

    def maps(self, images: Any) -> list[tuple[Tensor, Tensor]]:
        """Return the map [B, C, H, W] of every convolution, before and after its max-pooling."""
        x, found = self._images(images), []
        for i, conv in enumerate(self.spec.convs):
            weight, bias = self.get_parameter(f"conv.{i}.weight"), self.get_parameter(f"conv.{i}.bias")
            before = functional.conv2d(x, weight, bias, conv.stride, conv.padding).relu()
            x = functional.max_pool2d(before, self.spec.pool)
            found.append((before, x))
        return found

    def scores(self, images: Any, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the scores [B, J] of the classes, before softmax or sigmoid, and the last features [B, D]."""
        x = self.maps(images)[-1][1].flatten(1)
        last = len(self.spec.hidden)
        for i in range(last):
            x = self._linear(i, x).relu()
        kept = functional.dropout(x, dropout) if dropout else x
        return self._linear(last, kept), x

    def _linear(self, i: int, x: Tensor) -> Tensor:
        return functional.linear(x, self.get_parameter(f"linear.{i}.weight"), self.get_parameter(f"linear.{i}.bias"))

    def forward(self, images: Any, couplings: bool = False) -> Output[Tensor]:
        """Return the probabilities [B, J] as lengths, and the last features as capsules [B, 1, D]."""
        scores, features = self.scores(images)
        found = scores.softmax(1) if self.spec.exclusive else scores.sigmoid()
        return Output(found, features[:, None], scores=found)

    __call__ = forward

    @classmethod
    def load(cls, path: Any, dtype: str = "float32", **_: Any) -> CNN:
        """Read a model file of a CNN."""
        model = modelfile.read(path, CNNSpec)
        return cls(model.spec, model.params, dtype=dtype, classes=model.classes, provenance=model.provenance)  # type: ignore[arg-type]


class Learner(caps.Learner):
    """Adam on the cross entropy of a CNN, which reconstructs nothing; options: `capscore.backends.torch.Learner`."""

    net: CNN
    objective: Any

    def __init__(self, net: CNN, reconstruction: float = 0.0005, device: str | None = None, amp: bool = False) -> None:
        super().__init__(net, reconstruction, device=device, amp=amp)
        self.objective = share_gradients(CrossEntropy(net), self.team, partly=False)

    def step(
        self, images: Any, targets: Any, rate: float, parts: Sequence[tuple[Any, Any]] = ()
    ) -> tuple[Tensor, Tensor]:
        """Learn from one batch; return its loss and probabilities [B, J] before the step."""
        device = next(self.net.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.steps)  # what dropout leaves out follows from the step, as a resumed run wants it
            return super().step(images, targets, rate)


class CrossEntropy(nn.Module):
    """The training loss: of one class, or of each class by itself where several can be shown."""

    def __init__(self, net: CNN) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, *_: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the loss, the probabilities [B, J], and no running statistics."""
        spec = self.net.spec
        scores, _features = self.net.scores(x, spec.dropout)
        if spec.exclusive:
            return functional.cross_entropy(scores, t), scores.softmax(1), {}
        each = functional.binary_cross_entropy_with_logits(scores, t, reduction="none")
        return each.sum(1).mean(), scores.sigmoid(), {}
