"""A bar for what takes time, on standard error and only where that is a terminal."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def track(items: Sequence[T], what: str) -> Iterator[T]:
    """Go through `items` behind a bar that says `what` they are, and vanishes in the end."""
    from rich import progress

    from capscore.terminal import Terminal

    terminal = Terminal(stderr=True)
    yield from progress.track(items, what, console=terminal, transient=True, disable=not terminal.is_terminal)
