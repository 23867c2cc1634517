"""Initial parameters from a seeded NumPy generator: the same bits for every backend.

The numbers are those of the authors' code at the sizes of the paper, carried to other sizes by fan-in. Both
convolutions have a standard deviation of 0.45/√fan_in, which is 0.05 for the stem's 81 inputs and 0.1 · 1/32
for the primary layer's 20,736 (its one-iteration routing over 32 types is the factor 1/32). Capsule weights
have 0.1 · √(1152/N) · J/10, so that s has the same spread under uniform couplings 1/J whatever the sizes. Those of
the decoder have 0.1 at any size.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import check_whole
from .spec import CapsNetSpec


def init_params(spec: CapsNetSpec, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Return every parameter of `spec` by name, float64: weights truncated normal, biases 0.1."""
    check_whole("seed", seed, 0)
    rng = np.random.default_rng(seed)
    return {
        name: np.full(shape, 0.1) if name.endswith("bias") else _truncated_normal(rng, shape, _std(name, shape))
        for name, shape in spec.parameters.items()
    }


def _std(name: str, shape: tuple[int, ...]) -> float:
    match name.split(".")[0]:
        case "stem" | "primary":
            return 0.45 / math.sqrt(math.prod(shape[1:]))
        case "capsules":
            return 0.1 * math.sqrt(1152 / shape[0]) * shape[1] / 10
        case _:
            return 0.1


def _truncated_normal(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> NDArray[Any]:
    """Draw normal numbers, those beyond two standard deviations again."""
    x = rng.standard_normal(shape)
    while np.any(far := np.abs(x) > 2):
        x[far] = rng.standard_normal(int(far.sum()))
    return x * std
