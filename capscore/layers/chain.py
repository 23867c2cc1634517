"""Layers one after another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from capscore.errors import SpecError, short
from capscore.layer import Layer, Plan, Row, Run, Shape
from capscore.ops import Ops, scope

MAX_NUMBERS = 2**30  # of a layer's output for one image, or of a parameter: a spec may come from a stranger


def check_layers(value: Any, field: str) -> None:
    """Raise SpecError unless the field holds layers; any sequence is taken as a tuple."""
    layers = getattr(value, field)
    if not isinstance(layers, list | tuple) or not all(isinstance(layer, Layer) for layer in layers):
        raise SpecError(f"{type(value).__name__}: {field} must be a tuple of layers, not {short(layers)}")
    object.__setattr__(value, field, tuple(layers))


def plan_chain(layers: Iterable[Layer], x: Shape, name: str) -> tuple[Row, ...]:
    """Return every layer in its place, called `{name}.{i}`, from the input shape on."""
    rows: list[Row] = []
    for i, layer in enumerate(layers):
        rows.append(place(layer, x, f"{name}.{i}"))
        check_sizes(rows[-1])
        x = rows[-1].output
    return tuple(rows)


def check_sizes(row: Row) -> None:
    """Raise SpecError if the layer's output or one of its parameters is larger than any network needs."""
    check_size(f"{row.name}: output", row.output.dims)
    for name, param in row.parameters.items():
        check_size(name, param.shape)


def check_size(what: str, shape: tuple[int, ...]) -> None:
    """Raise SpecError if an array of this shape holds more than `MAX_NUMBERS`."""
    if math.prod(shape) > MAX_NUMBERS:
        raise SpecError(
            f"{what} of shape {shape} holds {math.prod(shape):,} numbers, more than the {MAX_NUMBERS:,} allowed; "
            "a smaller input, fewer channels or capsules, or a larger stride would fit"
        )


def place(layer: Layer, x: Shape, name: str) -> Row:
    """Return the layer in its place; a SpecError tells the place."""
    try:
        return Row(name, layer, x, layer.plan(x))
    except SpecError as error:
        raise SpecError(f"{name}: {error}") from None


def plan_of(rows: Sequence[Row], output: Shape) -> Plan:
    """Return the plan of a layer that is made of others and makes `output`."""
    params = {name: param for row in rows for name, param in row.parameters.items()}
    return Plan(output, params, sum(row.plan.multiply_adds for row in rows))


def through(ops: Ops[Any], rows: Iterable[Row], params: Mapping[str, Any], x: Any, run: Run) -> Any:
    """Run one layer after another."""
    for row in rows:
        with scope(ops, row.name):
            x = row.run(ops, params, x, run)
    return x
