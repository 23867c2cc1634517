"""The ONNX form of fast convolutions: the transforms of `capscore.fast.cook_toom` as matrix products of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from capscore.backends import numpy as reference
from capscore.fast.cook_toom import Tiling, Transform, WritableTransform


def record(ops: Any, x: Any, weight: Any, bias: Any | None, tiling: Tiling) -> Any:
    """Do the convolution of a tiling, all rows of points at once; weights are known now, and so transformed now."""
    exact = ops.to_numpy(weight).astype(np.float64)
    kernels = WritableTransform(reference, tiling, exact.shape, exact).all_kernels(exact)  # [P, O, F·C]
    t = Transform(ops, tiling, exact.shape)
    # For ONNX Runtime, which moves one axis five times faster than several, and packs the right side of a product,
    # which had better not be the kernels.
    x = ops.transpose(ops.reshape(x, (-1, t.c, t.height * t.width)), (0, 2, 1))
    x = ops.transpose(ops.reshape(x, (-1, t.height, t.width * t.c)), (1, 0, 2))
    points = ops.transpose(t.map_x(t.map_y(x), t.ny), (0, 2, 1))  # [P, F·C, B·T]
    m = ops.matmul(ops.asarray(kernels), points)  # [P, O, B·T]
    y = ops.matmul(ops.asarray(t.inverse(slice(0, t.ny))), ops.reshape(m, (t.ny * t.nx, -1)))
    y = t.outputs(ops.transpose(ops.reshape(y, (t.my * t.mx, t.o, -1)), (0, 2, 1)))  # of [my·mx, B·T, O]
    return ops.transpose(y if bias is None else y + bias, (0, 3, 1, 2))
