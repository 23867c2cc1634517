"""Checkpoints of unknown networks: a spec says the network, a mapping which array is which parameter.

A mapping is JSON, from their names to ours: {"fc.weight": "capsules.0.weight"}. An array that lies differently has an
object instead of a name, whose steps are taken in the order in which they stand:

    {"conv/kernel": {"to": "stem.0.weight", "transpose": [3, 2, 0, 1]}}

Steps are "transpose" (the axes), "reshape" (the sizes, one of them -1 for the rest), "scale" (a number to multiply by)
and "last_first" (a number of types or channels: rows in the order (y, x, type) become (type, y, x)). Null leaves an
array out. An array that is called as a parameter is, and is not mapped, is that parameter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import permutations
from typing import Any

import numpy as np

from capscore.errors import ModelFileError, short
from capscore.net import CapsNetSpec

from .family import Found
from .layouts import Array, first

Shape = tuple[int, ...]


def _number(value: Any, dtype: np.dtype[Any]) -> Array:
    """Return a finite number, or raise an error of arithmetic."""
    number = np.asarray(float(value), dtype)
    if not np.isfinite(number):
        raise ArithmeticError("it is not finite")
    return number


SHOWN = 12  # lines of a report on each side
USUAL = [(3, 2, 0, 1), (1, 0), (1, 0, 2, 3), (1, 0, 3, 2), (0, 2, 3, 1)]  # transposes that are likely to be meant

STEPS: dict[str, Callable[[Array, Any], Array]] = {
    "transpose": lambda array, axes: array.transpose(axes),
    "reshape": lambda array, sizes: array.reshape(sizes),
    "scale": lambda array, factor: array * _number(factor, array.dtype),
    "last_first": first,
}


def read_mapping(text: str | bytes) -> dict[str, Any]:
    """Read a mapping from JSON, or raise ModelFileError."""
    try:
        mapping = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"the mapping is not JSON: {error}") from None
    if not isinstance(mapping, dict):
        raise ModelFileError(f"the mapping must be an object of names, not {short(mapping)}")
    return mapping


def mapped(spec: CapsNetSpec, mapping: Mapping[str, Any], tensors: Mapping[str, Array]) -> Found:
    """Return the network with the parameters that the mapping finds in `tensors`.

    Biases that the checkpoint does not have are zero, and scales of norms one, if nothing else is left over.
    ModelFileError says what is left over on both sides, and which arrays would fit which parameters.
    """
    if strange := [name for name in mapping if name not in tensors]:
        raise ModelFileError(f"the mapping names {short(strange[0])}, which is not in the file: {listed(tensors)}")
    params: dict[str, Array] = {}
    left: dict[str, Array] = {}
    for name, array in tensors.items():
        rule = mapping.get(name, name)
        target, result = _apply(name, rule, array)
        if target in params:
            raise ModelFileError(f"{short(target)} is mapped to twice, the second time by {short(name)}")
        if target in spec.parameters:
            params[target] = result
        elif target is not None:
            if name in mapping:
                raise ModelFileError(f"{name} is mapped to {short(target)}; the spec has {', '.join(spec.parameters)}")
            left[name] = array
    missing = {name: shape for name, shape in spec.parameters.items() if name not in params}
    wrong = {name: a for name, a in params.items() if a.shape != spec.parameters[name]}
    neutral = {name: _neutral(name, shape) for name, shape in missing.items()}
    if left or wrong or any(value is None for value in neutral.values()):
        raise ModelFileError(_report(spec, missing, wrong, left))
    notes = [f"{name} is {value:g}: the file has nothing for it" for name, value in neutral.items()]
    params |= {name: np.full(missing[name], value) for name, value in neutral.items() if value is not None}
    return Found(spec, params, tuple(notes))


def _apply(name: str, rule: Any, array: Array) -> tuple[str | None, Array]:
    """Return what a mapping makes of an array: the name of the parameter (None: nothing), and its numbers."""
    if rule is None or isinstance(rule, str):
        return rule, array
    known = ", ".join(STEPS)
    if not isinstance(rule, dict) or not isinstance(rule.get("to"), str) or not rule.keys() - {"to"} <= STEPS.keys():
        raise ModelFileError(f'{name}: {short(rule)} is neither a name nor null nor {{"to": name, …}} with {known}')
    for step, setting in rule.items():
        if step != "to":
            try:
                with np.errstate(all="raise"):
                    array = STEPS[step](array, setting)
            except (TypeError, ValueError, ArithmeticError) as error:
                raise ModelFileError(
                    f"{name}: {step} {short(setting)} of {array.shape} is not possible: {error}"
                ) from None
    return rule["to"], array


def _neutral(name: str, shape: Shape) -> float | None:
    """Return the number with which a parameter changes nothing; None if there is none."""
    return {"bias": 0.0, "weight": 1.0 if len(shape) == 1 else None}.get(name.rpartition(".")[2])


def _report(spec: CapsNetSpec, missing: dict[str, Shape], wrong: dict[str, Array], left: dict[str, Array]) -> str:
    """Say what does not fit, and what would."""
    lines = ["the file and the spec do not fit"]
    for name, array in _some(wrong):
        lines.append(
            f"{name} is {array.shape}, wanted {spec.parameters[name]}{_how(array.shape, spec.parameters[name])}"
        )
    for name, shape in _some(missing):
        near = sorted(left, key=lambda theirs: _distance(left[theirs].shape, shape))[:1]
        hint = "".join(
            f"; nearest is {theirs} {left[theirs].shape}{_how(left[theirs].shape, shape)}" for theirs in near
        )
        lines.append(f"{name} {shape} has nothing{hint}")
    for name, array in _some(left):
        lines.append(f"{name} {array.shape} is left over; null in the mapping leaves it out")
    return "\n  ".join(lines)


def _some(names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from list(names.items())[:SHOWN]


def _distance(theirs: Shape, ours: Shape) -> tuple[bool, bool, bool, float]:
    """Return how far a shape is from another: equal, transposed, of as many numbers, or by the ratio of these."""
    sizes = math.prod(theirs), math.prod(ours)
    ratio = abs(math.log(max(sizes[0], 1) / max(sizes[1], 1)))
    return theirs != ours, sorted(theirs) != sorted(ours), sizes[0] != sizes[1], ratio


def _how(theirs: Shape, ours: Shape) -> str:
    """Say how an array of a shape can become one of another, nothing if it cannot."""
    if theirs == ours:
        return ", which fits as it is"
    if len(theirs) == len(ours) <= 6:
        likely = [axes for axes in USUAL if len(axes) == len(ours)]
        for axes in (*likely, *permutations(range(len(ours)))):
            if tuple(theirs[axis] for axis in axes) == ours:
                return f': "transpose": {list(axes)} would fit'
    return f': "reshape": {list(ours)} would fit' if math.prod(theirs) == math.prod(ours) else ""


def listed(tensors: Mapping[str, Array]) -> str:
    """Return the first names and shapes as text."""
    return ", ".join(f"{name} {array.shape}" for name, array in _some(tensors))
