"""What inference computes from parameters alone, kept for as long as they stay as they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from .ops import Writable

MOST = 8  # entries; the one unused for the longest goes first
T = TypeVar("T")

_kept: OrderedDict[tuple[Any, ...], tuple[Any, Any]] = OrderedDict()


def prepared(ops: Writable[Any], name: str, weight: Any, make: Callable[[], T]) -> T:
    """Return make(), or what it returned the last time if `weight` has not changed since then."""
    key = name, type(weight), tuple(weight.shape), str(weight.dtype), str(weight.device)
    mark, made = _kept.get(key, (None, None))
    if mark is None or not ops.unchanged(weight, mark):
        mark, made = ops.mark(weight), make()
        _kept[key] = mark, made
    _kept.move_to_end(key)
    if len(_kept) > MOST:
        _kept.popitem(last=False)
    return made  # type: ignore[no-any-return]
