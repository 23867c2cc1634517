"""Where each position of a map lies, as channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from capscore.layer import Layer, Map, Plan, Run, Shape, need_map
from capscore.ops import A, Index, Ops


@dataclass(frozen=True)
class Coordinates(Layer):
    """Two more channels after those of a map: y and x of every position, from -1 to 1 (Liu et al. 2018, CoordConv)."""

    def plan(self, x: Shape) -> Plan:
        """Return a map."""
        x = need_map(self, x)
        return Plan(x._replace(channels=x.channels + 2), {}, 0)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> Any:
        """Turn a map [B, C, H, W] into [B, C + 2, H, W]."""
        assert isinstance(run.input, Map)
        c, h, w = run.input
        places = np.zeros((1, c + 2, h, w))
        places[0, c:] = np.meshgrid(np.linspace(-1, 1, h), np.linspace(-1, 1, w), indexing="ij")
        return ops.take(x, Index([*range(c), -1, -1]), 1) + ops.asarray(places, x)
