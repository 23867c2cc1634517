"""Layers of capsules that route at the same time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from capscore.errors import SpecError
from capscore.layer import Capsules, Grid, Layer, Plan, Row, Run, Shape, misplaced
from capscore.ops import A, Ops, scope
from capscore.routing import Routing
from capscore.values import check_whole

from .chain import check_layers, plan_chain, plan_of
from .routed import RoutedCaps


@dataclass(frozen=True)
class Concurrent(Layer):
    """Layers of capsules whose iterations are simultaneous (Tsai et al. 2020, section 3.2).

    The first iteration runs one layer after another. Each later one renews the capsules of every layer from those that
    the iteration before left below and in the layer itself; the input stays. (In a network without `Concurrent`,
    a layer ends its iterations before the next begins.)

    Iterations are counted here: the layers' routings have one. What the output does not depend on is not computed:
    the last iteration renews the last layer alone, the one before it the last two.
    """

    layers: tuple[Layer, ...]
    iterations: int = 2

    def __post_init__(self) -> None:
        """Check every setting."""
        check_layers(self, "layers")
        check_whole(self, "iterations", most=100)
        if not self.layers:
            raise SpecError("Concurrent: layers is empty; it needs at least one, such as DenseCaps")
        for layer in self.layers:
            routing: Any = layer.routing if isinstance(layer, RoutedCaps) else None
            if routing is None or not routing.resumes:
                raise SpecError(
                    f"Concurrent: {type(layer).__name__} with routing {routing} is no layer of it; "
                    "give DenseCaps or ConvCaps with routing=InvertedAttention(iterations=1)"
                )
            if routing.iterations != 1:
                raise SpecError(
                    f"Concurrent: the routing of {type(layer).__name__} has {routing.iterations} iterations; "
                    "give it iterations=1, and Concurrent their number"
                )

    @property
    def routing(self) -> Routing:
        """Return that of the last layer, with the iterations that are counted here."""
        last: Any = self.layers[-1]
        routing: Routing = replace(last.routing, iterations=self.iterations)
        return routing

    def rows(self, x: Shape) -> tuple[Row, ...]:
        """Return the layers in their places."""
        return plan_chain(self.layers, x, "layers")

    def _renewed(self, iteration: int) -> range:
        """Return which layers an iteration after the first renews: those from which the output can be reached."""
        count = len(self.layers)
        return range(max(0, count - (self.iterations - iteration)), count)

    def plan(self, x: Shape) -> Plan:
        """Return the last layer's capsules; parameters are `layers.{i}.…`."""
        if not isinstance(x, Grid):
            raise misplaced(self, x, "capsules")
        rows = self.rows(x)
        plan, more = plan_of(rows, rows[-1].output), 0
        for row in rows:
            layer: Any = row.layer
            twice = replace(layer, routing=replace(layer.routing, iterations=2)).plan(row.input)
            often = sum(int(row.name.rpartition(".")[2]) in self._renewed(t) for t in range(1, self.iterations))
            more += often * (twice.multiply_adds - row.plan.multiply_adds)
        return plan._replace(multiply_adds=plan.multiply_adds + more)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: Capsules[A], run: Run) -> Capsules[A]:
        """Turn capsules [B, N, K] into those of the last layer."""
        rows = self.rows(run.input)
        found = [x]
        with scope(ops, "iteration/0"):
            for row in rows:
                found.append(row.run(ops, p, found[-1], run))
        for t in range(1, self.iterations):
            before = tuple(found)
            with scope(ops, f"iteration/{t}"):
                for i in self._renewed(t):
                    found[i + 1] = rows[i].run(ops, p, before[i], run._replace(parents=before[i + 1].pose))
        return found[-1]
