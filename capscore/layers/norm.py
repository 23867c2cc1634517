"""Normalisation: over the batch, or over parts of each image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capscore.errors import SpecError
from capscore.init import Constant
from capscore.layer import Layer, Map, Param, Plan, Run, Shape, need_map
from capscore.ops import A, Ops
from capscore.squash import standardise
from capscore.values import check_flags, check_numbers, check_whole

from .activation import activate, check_activation
from .conv import divisor


def _scaled(ops: Ops[A], x: Any, p: Mapping[str, A], channels: int) -> Any:
    """Return a map times its channels' weights, plus their biases, as far as there are any."""
    of_map = (1, channels, 1, 1)
    if "weight" in p:
        x = x * ops.reshape(p["weight"], of_map)
    return x + ops.reshape(p["bias"], of_map) if "bias" in p else x


def _affine(channels: int) -> dict[str, Param]:
    return {"weight": Param((channels,), Constant(1.0)), "bias": Param((channels,), Constant(0.0))}


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Every channel at mean 0 and variance 1 over the batch (Ioffe, Szegedy 2015).

    Then each is scaled by a learned number, unless `scale` is False, and shifted by one, unless `shift` is.
    Training uses the batch's own statistics and moves the running ones towards them by `momentum`; everything else
    uses the running ones, so that an image's result depends on that image alone.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    activation: str = "none"
    scale: bool = True
    shift: bool = True

    def __post_init__(self) -> None:
        """Check every setting."""
        check_flags(self, "scale", "shift")
        check_numbers(self, "momentum", most=1)
        check_numbers(self, "epsilon", least=1e-12, most=1)
        check_activation(self)

    def plan(self, x: Shape) -> Plan:
        """Return the same shape. Running statistics are parameters that do not learn."""
        c = need_map(self, x).channels
        running = {"mean": Param((c,), Constant(0.0), False), "variance": Param((c,), Constant(1.0), False)}
        learned = {name: p for name, p in _affine(c).items() if {"weight": self.scale, "bias": self.shift}[name]}
        return Plan(x, learned | running, 2 * c * x.dims[1] * x.dims[2])

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: Any, run: Run) -> Any:
        """Return a map of the same shape."""
        c = run.input.dims[0]
        of_map = (1, c, 1, 1)
        running = p["mean"], p["variance"]
        if (kernel := ops.FUSED.get(BatchNorm)) and run.batch_mean is None:
            found = kernel(self, x, p.get("weight"), p.get("bias"), None if run.training else running)
            if found is not None:
                if run.training:
                    run.move(running, found[1:], self.momentum)
                return activate(ops, found[0], self.activation)
        mean, variance = run.moments(ops, x, (0, 2, 3), p, c, self.momentum)  # [1, C, 1, 1]
        deviation: Any = ops.sqrt(variance + self.epsilon)
        if run.training or not self.scale:
            y = _scaled(ops, (x - mean) / deviation, p, c)
        else:  # the statistics are known: a product and a sum
            scale = ops.reshape(p["weight"], of_map) / deviation
            shift = mean * scale * -1.0
            y = x * scale + (ops.reshape(p["bias"], of_map) + shift if self.shift else shift)
        return activate(ops, y, self.activation)


class ImageNorm(Layer):
    """Every group of channels of an image at mean 0 and variance 1, then each channel scaled and shifted."""

    epsilon: float
    activation: str

    def __post_init__(self) -> None:
        """Check every setting."""
        check_numbers(self, "epsilon", least=1e-12, most=1)
        check_activation(self)

    @abstractmethod
    def count(self, channels: int) -> int:
        """Return how many groups so many channels form."""

    def plan(self, x: Shape) -> Plan:
        """Return the same shape."""
        c, h, w = need_map(self, x)
        if c % (groups := self.count(c)):
            raise SpecError(f"{groups} groups do not divide {c} channels; {divisor(c, groups)} would")
        return Plan(x, _affine(c), 4 * c * h * w)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> Any:
        """Return a map of the same shape."""
        assert isinstance(run.input, Map)
        c, h, w = run.input
        groups = self.count(c)
        size = c // groups * h * w
        y = standardise(ops, ops.reshape(x, (-1, groups, size)), size, self.epsilon)
        return activate(ops, _scaled(ops, ops.reshape(y, (-1, c, h, w)), p, c), self.activation)


@dataclass(frozen=True)
class GroupNorm(ImageNorm):
    """Every group of channels of an image at mean 0 and variance 1 (Wu, He 2018), then scaled and shifted."""

    groups: int
    epsilon: float = 1e-5
    activation: str = "none"

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self, "groups")
        super().__post_init__()

    def count(self, channels: int) -> int:
        """Return `groups`."""
        return self.groups


@dataclass(frozen=True)
class InstanceNorm(ImageNorm):
    """Every channel of an image at mean 0 and variance 1 (Ulyanov et al. 2016), then scaled and shifted."""

    epsilon: float = 1e-5
    activation: str = "none"

    def count(self, channels: int) -> int:
        """Return one group for every channel."""
        return channels


@dataclass(frozen=True)
class LayerNorm(ImageNorm):
    """All features of an image at mean 0 and variance 1 (Ba et al. 2016), then each channel scaled and shifted."""

    epsilon: float = 1e-5
    activation: str = "none"

    def count(self, channels: int) -> int:
        """Return one group for all channels."""
        return 1
