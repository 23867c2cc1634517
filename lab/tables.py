"""Tables of Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, a line for each row; all have as many cells as there are heads."""
    lines = [heads, ["---"] * len(heads), *rows]
    assert len({len(line) for line in lines}) == 1
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
