"""Optimisers and schedules of the learning rate: values with JSON, the same numbers on every backend.

An optimiser is functional: of a parameter, its gradient and its slots (what it remembers of former gradients) it makes
the next ones, over the ops alone. PyTorch's learner uses PyTorch's own optimiser where there is one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import SpecError
from .ops import A, Ops
from .values import Value, check_flags, check_numbers, check_whole, sizes

Slots = dict[str, Any]  # what an optimiser remembers of one parameter: name → array of its shape


@dataclass(frozen=True)
class Optimiser(Value, ABC):
    """How a parameter follows its gradient. Subclasses are frozen dataclasses of JSON values.

    With `clip`, the gradients of all parameters together are shortened to that Euclidean norm where they are longer.
    """

    clip: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check every setting."""
        if self.clip is not None:
            check_numbers(self, "clip", least=1e-12)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of what it remembers of every parameter; all start at zero."""
        return ()

    @property
    def squares(self) -> tuple[str, ...]:
        """Names of those slots that are means of squares: never negative."""
        return ()

    @abstractmethod
    def update(self, ops: Ops[A], p: Any, g: Any, slots: Slots, rate: float, step: int) -> tuple[Any, Slots]:
        """Return the parameter and its slots after a step, counted from 1, with a gradient g."""

    def clipped(self, ops: Ops[A], gradients: Mapping[str, Any]) -> dict[str, Any]:
        """Return the gradients by name, shortened to `clip` if they are longer together."""
        if self.clip is None or not gradients:
            return dict(gradients)
        norms = [ops.norm(ops.reshape(g, (1, -1)), 1) for g in gradients.values()]
        total: Any = ops.norm(ops.concat(norms, 0), 0)
        wanted = (total * 0.0 + self.clip) / (total + 1e-6)
        share: Any = wanted / (ops.relu(wanted - 1.0) + 1.0)  # at most 1
        return {name: g * share for name, g in gradients.items()}


@dataclass(frozen=True)
class Adam(Optimiser):
    """Adam (Kingma, Ba 2015): the mean of the gradients over the root of the mean of their squares."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        """Check every setting."""
        super().__post_init__()
        check_numbers(self, "beta1", "beta2", most=0.9999999)
        check_numbers(self, "epsilon", least=1e-30, most=1)

    @property
    def slots(self) -> tuple[str, ...]:
        """Return the two moments."""
        return "first", "second"

    @property
    def squares(self) -> tuple[str, ...]:
        """Return the second moment."""
        return ("second",)

    def update(self, ops: Ops[A], p: Any, g: Any, slots: Slots, rate: float, step: int) -> tuple[Any, Slots]:
        """Return the parameter and its moments after a step."""
        slow, fast = 1 - self.beta2**step, 1 - self.beta1**step
        m = slots["first"] + (g - slots["first"]) * (1 - self.beta1)
        v = slots["second"] + (g * g - slots["second"]) * (1 - self.beta2)
        p = p - m / (ops.sqrt(v) / slow**0.5 + self.epsilon) * (rate / fast)
        return p, {"first": m, "second": v}


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with weight decay apart from the gradient (Loshchilov, Hutter 2019).

    Weights shrink by rate · decay a step. Parameters of one axis do not: scales, and biases except those of capsules.
    """

    decay: float = 0.01

    def __post_init__(self) -> None:
        """Check every setting."""
        super().__post_init__()
        check_numbers(self, "decay", most=1e3)

    def update(self, ops: Ops[A], p: Any, g: Any, slots: Slots, rate: float, step: int) -> tuple[Any, Slots]:
        """Return the parameter and its moments after a step."""
        if len(p.shape) > 1:
            p = p * (1 - rate * self.decay)
        return super().update(ops, p, g, slots, rate, step)


@dataclass(frozen=True)
class SGD(Optimiser):
    """Gradient descent with momentum, Nesterov's if asked for (as PyTorch has it: no dampening).

    `decay` · weight is added to the gradient of weights, but not of parameters of one axis; see `AdamW`.
    """

    momentum: float = 0.9
    nesterov: bool = False
    decay: float = 0.0

    def __post_init__(self) -> None:
        """Check every setting."""
        super().__post_init__()
        check_numbers(self, "momentum", most=0.9999999)
        check_numbers(self, "decay", most=1e3)
        check_flags(self, "nesterov")
        if self.nesterov and not self.momentum:
            raise SpecError("SGD: nesterov needs a momentum above 0")

    @property
    def slots(self) -> tuple[str, ...]:
        """Return the velocity, if there is any momentum."""
        return ("momentum",) if self.momentum else ()

    def update(self, ops: Ops[A], p: Any, g: Any, slots: Slots, rate: float, step: int) -> tuple[Any, Slots]:
        """Return the parameter and its velocity after a step."""
        if self.decay and len(p.shape) > 1:
            g = g + p * self.decay
        if not self.momentum:
            return p - g * rate, {}
        velocity = slots["momentum"] * self.momentum + g
        return p - (g + velocity * self.momentum if self.nesterov else velocity) * rate, {"momentum": velocity}


@dataclass(frozen=True)
class Schedule(Value, ABC):
    """How the learning rate goes over the steps of a training.

    Over the first `warmup` steps it rises evenly from near 0 to what the schedule says.
    """

    warmup: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self, "warmup", least=0, most=10**9)

    @abstractmethod
    def share(self, step: int, total: int) -> float:
        """Return the rate at step 0, 1, … of `total` as a share of the recipe's."""

    def __call__(self, rate: float, step: int, total: int) -> float:
        """Return the learning rate of a step."""
        return rate * self.share(step, total) * min(1.0, (step + 1) / (self.warmup + 1))


@dataclass(frozen=True)
class Exponential(Schedule):
    """The rate times `decay` every `steps` steps, smoothly, never below `floor` (the authors' code)."""

    decay: float = 0.96
    steps: int = 2000
    floor: float = 1e-6

    def __post_init__(self) -> None:
        """Check every setting."""
        super().__post_init__()
        check_numbers(self, "decay", most=1)
        check_whole(self, "steps", most=10**9)
        check_numbers(self, "floor")

    def share(self, step: int, total: int) -> float:
        """Return the share without the floor."""
        return float(self.decay ** (step / self.steps))

    def __call__(self, rate: float, step: int, total: int) -> float:
        """Return the learning rate of a step."""
        return max(self.floor, super().__call__(rate, step, total))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from the rate to `end` times the rate at the last step (Loshchilov, Hutter 2017)."""

    end: float = 0.0

    def __post_init__(self) -> None:
        """Check every setting."""
        super().__post_init__()
        check_numbers(self, "end", most=1)

    def share(self, step: int, total: int) -> float:
        """Return the share."""
        done = min(1.0, max(0, step - self.warmup) / max(1, total - 1 - self.warmup))
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Half a cosine up from `start` times the rate over the share `rise` of all steps, and one down to `end` times it.

    (Smith, Topin 2018, as PyTorch has it, but without a cycle of the momentum.)
    """

    rise: float = 0.3
    start: float = 0.04
    end: float = 4e-6

    def __post_init__(self) -> None:
        """Check every setting."""
        super().__post_init__()
        check_numbers(self, "rise", "start", "end", most=1)

    def share(self, step: int, total: int) -> float:
        """Return the share."""
        top = self.rise * total - 1
        if step <= top and top > 0:
            low, done = self.start, step / top
        else:
            low, done = self.end, min(1.0, (total - 1 - step) / max(1.0, total - 1 - top))
        return low + (1 - low) * 0.5 * (1 - math.cos(math.pi * done))


@dataclass(frozen=True)
class Steps(Schedule):
    """The rate times `factor` at each of the steps `at`."""

    at: tuple[int, ...]
    factor: float = 0.1

    def __post_init__(self) -> None:
        """Check every setting."""
        super().__post_init__()
        object.__setattr__(self, "at", sizes(self.at, "Steps: at"))
        check_numbers(self, "factor", most=1)

    def share(self, step: int, total: int) -> float:
        """Return the share."""
        return float(self.factor ** sum(step >= at for at in self.at))
