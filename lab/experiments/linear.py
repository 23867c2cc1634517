"""How much a straight line can read: the measure behind the claims on equivariance and on max-pooling."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def read(features: Array, values: Array, unseen: Array, ridge: float = 1e-4) -> Array:
    """Learn to read values [N, V] off features [N, D] linearly; return what it reads off `unseen` [M, D], [M, V].

    Ridge regression in its dual form, which costs N³ whatever D is; `ridge` is relative to the mean of the squares.
    """
    centre, mean = features.mean(0), values.mean(0)
    x, z = (np.asarray(f - centre, np.float64) for f in (features, unseen))
    inner = x @ x.T
    inner[np.diag_indices_from(inner)] += ridge * max(np.trace(inner) / len(x), 1e-30)
    found: Array = z @ (x.T @ np.linalg.solve(inner, values - mean)) + mean
    return found


def r_squared(values: Array, found: Array) -> float:
    """Return R² of values [N] or [N, V]: the share of their variance that the readings explain; 1 is all of it."""
    return float(1 - ((values - found) ** 2).sum() / ((values - values.mean(0)) ** 2).sum())
