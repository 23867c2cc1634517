"""Where the capsules that a routing takes in lie on the image: what a client needs to draw them there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from capscore.layer import Grid, Map, Row
from capscore.layers.conv import margins
from capscore.net import CapsNetSpec
from capscore.values import pair


def places(spec: CapsNetSpec, outputs: Iterable[str]) -> dict[str, dict[str, Sequence[float]]]:
    """Return for every output `inputs.{layer}` its grid and where that lies.

    `grid` is (types, height, width): capsule (type · height + y) · width + x is at row y and column x. `first` is the
    pixel (down, across) that the capsule of row and column 0 has in the middle of what it sees, `step` how many pixels
    further the next one looks.
    """
    found = {}
    for name in outputs:
        start, _, layer = name.partition(".")
        if start == "inputs":
            at = next(i for i, row in enumerate(spec.rows) if row.name == f"capsules.{layer}")
            shape = spec.rows[at].input
            assert isinstance(shape, Grid)  # what routes takes capsules
            first, step = _lies(spec.rows[:at], spec.input, shape)
            found[name] = {"grid": shape[:3], "first": first, "step": step}
    return found


def _lies(rows: Sequence[Row], image: Sequence[int], grid: Grid) -> tuple[Sequence[float], Sequence[float]]:
    """Follow the windows of the layers; spread positions evenly where a layer changes the size by other means."""
    first, step = [0.0, 0.0], [1.0, 1.0]
    for row in rows:
        layer: Any = row.layer
        if hasattr(layer, "kernel"):
            kernel, stride, padding = pair(layer.kernel), pair(layer.stride), margins(layer)
            for axis in range(2):
                first[axis] += ((kernel[axis] - 1) / 2 - padding[axis]) * step[axis]
                step[axis] *= stride[axis]
        elif _size(row.input) != _size(row.output):
            step = [image[1] / grid.height, image[2] / grid.width]
            first = [(each - 1) / 2 for each in step]
            break
    return first, step


def _size(shape: Any) -> tuple[int, int] | None:
    return (shape.height, shape.width) if isinstance(shape, Map | Grid) else None
