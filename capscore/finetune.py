"""A network for other classes, and one that begins with what another one has learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from numpy.typing import NDArray

from .errors import SpecError
from .layer import Layer, Row
from .modelfile import Model
from .net import CapsNetSpec, init_params


def for_classes(spec: CapsNetSpec, count: int) -> CapsNetSpec:
    """Return the network for another number of classes: the layers that make them make `count`.

    They are the last that have so many as a setting, such as `DenseCaps(10)`, maybe within another layer. SpecError:
    there are none.
    """
    if count == spec.classes:
        return spec
    at, _ = _makers(spec)
    layers = (*spec.layers[:at], _counting(spec.layers[at], spec.classes, count), *spec.layers[at + 1 :])
    found = spec.replace(layers=layers, loss=replace(spec.loss, class_weights=None))
    if found.classes != count:
        raise SpecError(
            f"{type(spec.layers[at]).__name__} with {count} for {spec.classes} makes {found.classes} classes"
        )
    return found


def finetuned(model: Model, classes: Sequence[str], seed: int = 0) -> tuple[CapsNetSpec, dict[str, NDArray[Any]]]:
    """Return a spec for the classes, and its first parameters: the model's wherever they still mean the same.

    The layers that make the classes, see `for_classes`, the first of the decoder, and what has a number for each class
    begin anew, unless the classes are the model's own. Its class weights were of its images: they go. Raises
    SpecError if no layer can make another number of classes.
    """
    spec = for_classes(model.spec, len(classes))
    spec = spec.replace(loss=replace(spec.loss, class_weights=None))
    if tuple(classes) == model.classes:
        return spec, dict(model.params)
    new = init_params(spec, seed)
    _, makers = _makers(spec)
    begin = tuple(f"{row.name}." for row in (*makers, *spec.decoder_rows[:1]))
    kept = {
        name: a
        for name, a in model.params.items()
        if name in new and a.shape == new[name].shape and not name.startswith(begin)
    }
    return spec, new | kept


def _makers(spec: CapsNetSpec) -> tuple[int, list[Row]]:
    """Return the place of the last layer that counts the classes, and those within it that do."""
    for at, top in reversed(list(enumerate(spec.rows))):
        if found := [row for row in top.within if _counts(row.layer, spec.classes)]:
            return at, found
    raise SpecError(
        f"no layer of this network has its {spec.classes} classes as a setting: other classes need one that does, "
        "such as DenseCaps(classes)"
    )


def _counts(layer: Layer, classes: int) -> list[str]:
    """Return the names of the settings by which a layer makes so many capsules or numbers."""
    return [name for name in ("count", "output") if getattr(layer, name, None) == classes]


def _counting(layer: Layer, before: int, count: int) -> Layer:
    """Return the layer with another count, and those within it."""
    changes: dict[str, Any] = dict.fromkeys(_counts(layer, before), count)
    for field in fields(layer):  # type: ignore[arg-type]  # every layer is a dataclass
        inner = getattr(layer, field.name)
        if isinstance(inner, tuple):
            changes[field.name] = tuple(_counting(x, before, count) if isinstance(x, Layer) else x for x in inner)
    return replace(layer, **changes)  # type: ignore[type-var]
