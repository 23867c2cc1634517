"""What a layer is: a value that knows its shapes, its parameters and their first numbers, its cost, its arithmetic.

A layer is one frozen dataclass in one file. Nothing else has to know of it: the spec's JSON, the table of `inspect`,
first numbers, checks of files, training and the export ask the layer.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple

import numpy as np

from .errors import SpecError
from .init import Constant, Init
from .ops import A
from .values import Value

if TYPE_CHECKING:
    from .ops import Ops


class Map(NamedTuple):
    """Features on a map: arrays [B, channels, height, width]. A signal is a map of height 1."""

    channels: int
    height: int
    width: int

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape of the array of one image."""
        return tuple(self)


class Grid(NamedTuple):
    """Capsules of several types at every position: arrays [B, N, dim]; with one position, a list of capsules.

    The index of a capsule is (type · height + y) · width + x.
    """

    types: int
    height: int
    width: int
    dim: int
    active: bool = False  # whether each also has an activation [B, N]; else its length says how present it is

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape of the array of one image: N capsules of `dim` numbers."""
        return self.types * self.height * self.width, self.dim


class Vector(NamedTuple):
    """Features without a place: arrays [B, size]."""

    size: int

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape of the array of one image."""
        return tuple(self)


Shape = Map | Grid | Vector


class Param(NamedTuple):
    """One array that a layer owns."""

    shape: tuple[int, ...]
    init: Init = Constant(0.1)  # biases of the authors' code
    learns: bool = True  # False: a running statistic, written by training and touched by no optimiser


class Plan(NamedTuple):
    """What a layer makes of an input shape, before anything is allocated."""

    output: Shape
    params: dict[str, Param]
    multiply_adds: int


class Capsules(NamedTuple, Generic[A]):
    """What flows between capsule layers. Without an activation, the length of the pose is the probability."""

    pose: A  # [B, N, D]
    activation: A | None = None  # [B, N]: a probability, but for scores of classes, which may be its logit


class Iteration(NamedTuple, Generic[A]):
    """One iteration of a routing, as a trace keeps it."""

    layer: str  # name of the layer that routes
    couplings: A | float  # [J, B, N], or the number that all of them equal
    capsules: A  # [J, B, D]
    pairs: tuple[int, int]  # N and J


def named_couplings(trace: Iterable[Iteration[A]]) -> Iterator[tuple[str, Iteration[A]]]:
    """Yield every iteration of a trace, and the name of its couplings in files: `couplings.{layer}.{iteration}`.

    The layer is told without the word capsules, in which most names begin; iterations are counted from 0.
    """
    counts: Counter[str] = Counter()
    for each in trace:
        yield f"couplings.{each.layer.removeprefix('capsules.')}.{counts[each.layer]}", each
        counts[each.layer] += 1


class Run(NamedTuple):
    """What a forward pass carries to its layers, and what these leave in it."""

    training: bool = False
    step: int = 0  # of training: for arithmetic, not for branches; a compiled step has no value yet
    seed: int = 0  # of what training draws at random, together with the step
    statistics: dict[str, Any] | None = None  # training leaves the new running statistics here, by parameter name
    later: Any = None  # later(make, shape, like): make(step) by NumPy, of a compiled step without value; None: at once
    batch_mean: Any = None  # mean(ops, x, axes) over the images of all processes; None: over those at hand
    share: tuple[int, int] = (0, 1)  # (k, n): of n processes, this one has the images k, k + n, k + 2n, … of the batch
    thin: Any = None  # thin(x, rate, dims): dropout by a generator of the backend's; None: see `layers.Dropout`
    call: Any = None  # call(name, ops, x, run): how a backend whose layers are objects runs one; None: `Layer.__call__`
    parents: Any = None  # [B, N, D]: capsules that the layer itself made, for its routing to go on from
    trace: list[Iteration[Any]] | None = None  # where asked for: every iteration of every routing, in their order
    path: str = ""  # name of the layer that is running
    input: Shape = Vector(0)  # its shapes
    output: Shape = Vector(0)
    part: str = ""  # of a layer, that is running: what its parameters' names begin with

    def inside(self, name: str, input: Shape, output: Shape) -> Run:
        """Return the run as the layer `name` sees it."""
        path = f"{self.path}.{name}" if self.path else name
        return self._replace(path=path, input=input, output=output)

    def iteration(self, couplings: Any, capsules: Any) -> None:
        """Note an iteration of a routing, if a trace was asked for."""
        if self.trace is not None:
            self.trace.append(Iteration(self.path, couplings, capsules, (self.input.dims[0], self.output.dims[0])))

    def renew(self, name: str, value: Any) -> None:
        """Leave the new value of a running statistic of this layer, or of the part of it that is running."""
        if self.statistics is not None:
            self.statistics[f"{self.path}.{self.part}{name}"] = value

    def draw(self, ops: Ops[A], make: Callable[[np.random.Generator], Any], shape: tuple[int, ...], like: A) -> A:
        """Return what `make` draws with NumPy, an array of `shape`: the same on every backend.

        It depends on the seed, the step and the layer alone.
        """

        def drawn(step: int) -> Any:
            return make(np.random.default_rng([self.seed, step, zlib.crc32(self.path.encode())]))

        if self.later is not None:
            return self.later(drawn, shape, like)  # type: ignore[no-any-return]
        return ops.asarray(drawn(self.step), like)

    def mean(self, ops: Ops[A], x: A, axes: tuple[int, ...]) -> A:
        """Return the mean over `axes`, the batch among them, with kept dimensions. Training alone reads the batch."""
        if self.batch_mean is not None:
            return self.batch_mean(ops, x, axes)  # type: ignore[no-any-return]
        count = math.prod([x.shape[axis] for axis in axes])  # type: ignore[attr-defined]
        return ops.sum(x, axes, keepdims=True) / count

    def moments(
        self, ops: Ops[A], x: A, axes: tuple[int, ...], p: Mapping[str, A], size: int, momentum: float, name: str = ""
    ) -> tuple[A, A]:
        """Return mean and variance over `axes`, the batch among them, with kept dimensions: all axes but one of `size`.

        In training they are the batch's own, and the running ones, `{name}mean` and `{name}variance` [size] of `p`,
        move towards them by `momentum`. All else takes the running ones.
        """
        running = p[name + "mean"], p[name + "variance"]
        if not self.training:
            kept = tuple(1 if axis in axes else size for axis in range(len(axes) + 1))
            return ops.reshape(running[0], kept), ops.reshape(running[1], kept)
        mean = self.mean(ops, x, axes)
        centred = x - mean
        variance = self.mean(ops, centred * centred, axes)
        flat = ops.reshape(mean, (size,)), ops.reshape(variance, (size,))
        self.move(running, flat, momentum, name)
        return mean, variance

    def move(self, running: tuple[A, A], found: tuple[A, A], momentum: float, name: str = "") -> None:
        """Move the running mean and variance [size] towards those of a batch by `momentum`."""
        for key, old, new in zip(("mean", "variance"), running, found, strict=True):
            self.renew(name + key, old * (1 - momentum) + new * momentum)


INFERENCE = Run()


class Layer(Value, ABC):
    """A layer and its settings. Subclasses are frozen dataclasses of JSON values that check themselves."""

    quantises: ClassVar[bool] = True  # whether int8 exports may round what the layer multiplies

    @abstractmethod
    def plan(self, x: Shape) -> Plan:
        """Return output, parameters and multiply-adds of one image for an input shape; SpecError if it does not fit."""

    def rows(self, x: Shape) -> tuple[Row, ...]:
        """Return the layers that this one is made of, in their places, for an input shape: none, for most."""
        return ()

    def pairs(self, x: Shape) -> tuple[int, int] | None:
        """Return N and J of the couplings that the layer leaves in a trace; None: it leaves none."""
        return None

    @abstractmethod
    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: Any, run: Run) -> Any:
        """Compute the layer's output of `x`: arrays for maps and vectors, `Capsules` for grids.

        `p` holds the parameters under the names of the plan. Written over the ops alone: see `capscore.ops`.
        """


def misplaced(layer: Layer, x: Shape, wanted: str) -> SpecError:
    """Return the error of a layer that takes `wanted` and is given something else."""
    made = {Map: "the map", Vector: "the vector", Grid: "the capsules"}[type(x)]
    return SpecError(f"{type(layer).__name__} takes {wanted}, not {x}: put it before the layer that makes {made}")


def need_map(layer: Layer, x: Shape) -> Map:
    """Return the input shape of a layer that takes a map, or raise SpecError."""
    if not isinstance(x, Map):
        raise misplaced(layer, x, "a map")
    return x


class Row(NamedTuple):
    """A layer in its place in a network."""

    name: str
    layer: Layer
    input: Shape
    plan: Plan

    @property
    def kind(self) -> str:
        """Name of the layer's class."""
        return type(self.layer).__name__

    @property
    def output(self) -> Shape:
        """Shape of what the layer makes."""
        return self.plan.output

    @property
    def parameters(self) -> dict[str, Param]:
        """The layer's parameters by their names in the network."""
        return {f"{self.name}.{key}": param for key, param in self.plan.params.items()}

    @property
    def parameter_count(self) -> int:
        """How many numbers the layer learns."""
        return sum(math.prod(param.shape) for param in self.plan.params.values() if param.learns)

    @property
    def within(self) -> Iterator[Row]:
        """The layer and those that it is made of, in their order, each named by the way to it."""
        yield self
        for row in self.layer.rows(self.input):
            yield from row._replace(name=f"{self.name}.{row.name}").within

    def run(self, ops: Ops[A], params: Mapping[str, A], x: Any, run: Run) -> Any:
        """Compute the layer's output, given the parameters of the whole network."""
        here = run.inside(self.name, self.input, self.plan.output)
        if run.call is not None:
            return run.call(self.name, ops, x, here)
        own = {key: params[f"{self.name}.{key}"] for key in self.plan.params}
        return self.layer(ops, own, x, here)
