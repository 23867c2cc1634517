"""More channels, of zeros."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capscore.layer import Layer, Plan, Run, Shape, need_map
from capscore.ops import A, Index, Ops
from capscore.values import check_whole


@dataclass(frozen=True)
class PadChannels(Layer):
    """Zeros as channels before and after those of a map: a shortcut without parameters (He et al. 2016, option A)."""

    before: int = 0
    after: int = 0

    def __post_init__(self) -> None:
        """Check both numbers."""
        check_whole(self, "before", "after", least=0)

    def plan(self, x: Shape) -> Plan:
        """Return a map."""
        x = need_map(self, x)
        return Plan(x._replace(channels=self.before + x.channels + self.after), {}, 0)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> A:
        """Turn a map [B, C, H, W] into [B, before + C + after, H, W]."""
        return ops.take(x, Index([-1] * self.before + list(range(run.input.dims[0])) + [-1] * self.after), 1)
