"""What must hold between the arrays of a checkpoint: checked before it is written, and after it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


def check_finite(arrays: Arrays) -> None:
    """Raise ValueError if an array holds NaN or infinity."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity")


def check_moments(params: Arrays, state: Arrays, steps: int) -> None:
    """Raise ValueError unless `state` can be what a learner of the parameters keeps after so many steps.

    It holds Adam's two moments of every parameter, in the parameter's own dtype, and may hold how many of the steps
    were that parameter's.
    """
    if not steps:
        if state:
            raise ValueError(f"it tells of no steps, and holds {next(iter(state))}")
        return
    for name, p in params.items():
        for moment in (f"first.{name}", f"second.{name}"):
            if moment not in state:
                raise ValueError(f"{moment} is missing")
            found = state[moment]
            if found.shape != p.shape:
                raise ValueError(f"{moment} has shape {found.shape}; wanted {p.shape}")
            if found.dtype != p.dtype:
                raise ValueError(f"{moment} is stored as {found.dtype}; its parameter is {p.dtype}")
        if (state[f"second.{name}"] < 0).any():
            raise ValueError(f"second.{name} holds negative numbers; it is a mean of squares")
        own = state.get(f"steps.{name}", np.zeros(1))
        if own.shape != (1,) or not 0 <= own[0] <= steps or own[0] % 1:
            raise ValueError(f"steps.{name} is no whole number from 0 to {steps}")
    check_finite(state)
    known = {f"{kind}.{name}" for kind in ("first", "second", "steps") for name in params}
    if unknown := [name for name in state if name not in known]:
        raise ValueError(f"{unknown[0]:.60} belongs to no parameter")
