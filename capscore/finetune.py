"""A network for other classes that begins with what another one has learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from .errors import SpecError
from .layers import DenseCaps, Linear
from .modelfile import Model
from .net import CapsNetSpec, init_params


def finetuned(model: Model, classes: Sequence[str], seed: int = 0) -> tuple[CapsNetSpec, dict[str, NDArray[Any]]]:
    """Return a spec for the classes, and its first parameters: the model's wherever they still mean the same.

    The last layer, which makes the classes, and the first of the decoder begin anew, unless the classes are the
    model's own. Raises SpecError if the last layer cannot make another number of classes.
    """
    spec = model.spec
    if tuple(classes) == model.classes:
        return spec, dict(model.params)
    last = spec.layers[-1]
    if isinstance(last, DenseCaps):
        last = replace(last, count=len(classes))
    elif isinstance(last, Linear):
        last = replace(last, output=len(classes))
    else:
        raise SpecError(f"the model ends in {type(last).__name__}: other classes need DenseCaps or Linear at the end")
    spec = spec.replace(layers=(*spec.layers[:-1], last), loss=replace(spec.loss, class_weights=None))
    new = init_params(spec, seed)
    head = (spec.rows[-1], *spec.decoder_rows[:1])
    fresh = {name for row in head for name in row.parameters}
    return spec, {n: a if n in fresh or n not in model.params else model.params[n] for n, a in new.items()}
