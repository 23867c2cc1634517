"""Where images lie, and what the data ask of that place beside the arithmetic of its arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Device(NamedTuple):
    """Host memory, or the memory of a GPU: each backend that keeps images in one has its own."""

    empty: Callable[[tuple[int, ...]], Any]  # an array of floats of a shape, of any content
    put: Callable[[NDArray[Any]], Any]  # an array of the host, brought there; nothing is waited for
    floored: Callable[[Any], tuple[Any, Any]]  # floats as the whole numbers below them, int64, and what is above those


def floored(x: Any) -> tuple[Any, Any]:
    """Split an array of NumPy's, or of a library that follows NumPy's dispatch."""
    below = np.floor(x)
    return below.astype(np.int64), x - below


HOST = Device(lambda shape: np.empty(shape, np.float32), lambda x: x, floored)
