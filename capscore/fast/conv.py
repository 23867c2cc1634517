"""Ops over ops: convolutions by the transforms of `capscore.fast.cook_toom` where these pay, all else unchanged."""

from __future__ import annotations

from typing import Any

from capscore.errors import BackendError, ShapeError, short

from .cook_toom import TILES, tiling


class FastConv:
    """The ops of `ops`, except that convolutions use `tiles`, "3x3" or "6x6".

    `ops` brings `fast_conv2d(x, weight, bias, tiling)`, which does what `conv2d` does by the transforms of the tiling.
    """

    def __init__(self, ops: Any, tiles: str) -> None:
        if not hasattr(ops, "fast_conv2d"):
            raise BackendError("this backend has no fast_conv; numpy, cupy and torch have it")
        self.ops, self.tiles = ops, tiles

    def __getattr__(self, name: str) -> Any:
        """Return what the ops below have."""
        return getattr(self.ops, name)

    def conv2d(
        self, x: Any, weight: Any, bias: Any, stride: tuple[int, int], padding: tuple[int, int], groups: int = 1
    ) -> Any:
        """Do as `Ops.conv2d`."""
        kernel = weight.shape[2:]
        if groups > 1 or any(len(set(sizes)) > 1 for sizes in (kernel, stride, padding)):
            return self.ops.conv2d(x, weight, bias, stride, padding, groups)
        _, channels, height, width = x.shape
        fast = tiling(self.tiles, channels, height, width, kernel[0], stride[0], padding[0])
        return self.ops.fast_conv2d(x, weight, bias, fast)


def check_tiles(tiles: Any) -> None:
    """Raise ShapeError unless `tiles` is None or names tiles."""
    if tiles not in (None, *TILES):
        raise ShapeError(f"fast_conv must be None, {' or '.join(map(repr, TILES))}, not {short(tiles)}")


def with_tiles(ops: Any, tiles: str | None) -> Any:
    """Return the ops with fast convolutions of these tiles, or as they are for None."""
    return ops if tiles is None else FastConv(ops, tiles)
