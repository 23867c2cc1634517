"""Layers one after another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from capscore.errors import SpecError, short
from capscore.layer import Layer, Row, Shape


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
        x = rows[-1].output
    return tuple(rows)


def place(layer: Layer, x: Shape, name: str) -> Row:
    """Return the layer in its place; a SpecError tells the place."""
    try:
        return Row(name, layer, x, layer.plan(x))
    except SpecError as error:
        raise SpecError(f"{name}: {error}") from None
