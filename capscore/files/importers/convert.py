"""From a stranger's checkpoint to a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capscore.errors import CapscoreError, ModelFileError, short
from capscore.modelfile import Model, check_classes, check_params
from capscore.net import CapsNetSpec
from capscore.values import sizes

from . import efficient, escvm_original, gram_ai, guo_keras, guo_pytorch, heinsen, heinsen_vectors
from .family import Family, Found, Hints, Size
from .layouts import Array
from .mapping import listed, mapped
from .tensors import read_tensors

FAMILIES: tuple[Family, ...] = tuple(
    module.FAMILY for module in (guo_keras, guo_pytorch, gram_ai, escvm_original, efficient, heinsen, heinsen_vectors)
)


def convert(
    path: str | os.PathLike[str],
    spec: CapsNetSpec | None = None,
    mapping: Mapping[str, Any] | None = None,
    *,
    input: Size | None = None,
    iterations: int | None = None,
    classes: Any = None,
    memory: int | str | None = None,
) -> Model:
    """Return the model that a checkpoint of other code holds; `capscore.modelfile.save` writes it.

    Without a spec, the names and shapes of the arrays tell which code wrote them: one of FAMILIES.

    Parameters
    ----------
    path : a .h5, .keras, .pt, .pth, .safetensors or .npz file
    spec : the network, if it is of no known family
    mapping : with a spec, from their names to ours, see `capscore.files.importers.mapping`
    input : (channels, height, width) of the images, where a known family's weights leave that open
    iterations : of the routing of a known family, which weights do not tell; 3 unless given
    classes : names of the classes, "0", "1", … when None
    memory : how much the arrays may take, as for `capscore.data.load`

    Raises
    ------
    ModelFileError
        The file cannot be read, or it is of no known family, or does not fit the spec and the mapping.
    """
    tensors = read_tensors(path, memory)
    try:
        if spec is None:
            if mapping is not None:
                raise ModelFileError("a mapping needs a spec, whose parameters it names; give --spec too")
            name, found = _recognised(tensors, Hints(_size(input), iterations))
        elif input is not None or iterations is not None:
            raise ModelFileError("the spec says the input and the iterations; leave both out, or the spec")
        else:
            name, found = "a spec", mapped(spec, mapping or {}, tensors)
        params = check_params(found.spec, found.params)
        about = {"imported": {"file": Path(path).name, "by": name, "notes": list(found.notes)}}
        return Model(found.spec, params, check_classes(found.spec, classes), about)
    except CapscoreError as error:
        raise ModelFileError(f"cannot import {path}: {error}") from None
    except (ValueError, IndexError) as error:  # of NumPy, where a family takes arrays apart
        raise ModelFileError(
            f"cannot import {path}: its arrays do not fit one another ({error}); give a spec and a mapping"
        ) from None


def _size(input: Any) -> Size | None:
    """Return what somebody says is the size of images, checked."""
    if input is None:
        return None
    size = sizes(input, "input")
    if len(size) != 3:
        raise ModelFileError(f"input must be (channels, height, width), not {short(input)}")
    return size[0], size[1], size[2]


def _recognised(tensors: Mapping[str, Array], hints: Hints) -> tuple[str, Found]:
    """Return the network of a known family, and the name of the family."""
    for family in FAMILIES:
        if (found := family.recognise(tensors, hints)) is not None:
            return family.name, found
    raise ModelFileError(
        f"its arrays are those of no family that capscore knows ({'; '.join(family.name for family in FAMILIES)}): "
        f"give a spec, and a mapping of these names: {listed(tensors)}"
    )
