"""Runs the Python of a documentation page: for the tests, and for figures drawn from the very numbers of a page.

A block whose fence follows the line `<!-- not run: why -->` is passed over. A statement whose last line ends in
`# → value`, or which the line `# → value` follows, must be an expression of that value, as repr or str, with arrays
as lists.
"""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DOCS = Path(__file__).parent
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>.+?) -->\n+)?^```python[^\n]*\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
RESULT = re.compile(r"#.*?→ (.*)$")


class Block(NamedTuple):
    """One block of Python of a page."""

    line: int  # of its first line within the page
    code: str
    why: str | None  # it is not run


def blocks(page: Path) -> list[Block]:
    """Return the Python blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, found.start("code")) + 1, found["code"], found["why"])
        for found in BLOCK.finditer(text)
    ]


def run(page: Path | str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a page's blocks in order in one namespace, check what they claim, and return the namespace."""
    path = DOCS / page
    names = {} if names is None else names
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in blocks(path):
            if block.why is None:
                _run(block, path, names)
    return names


def _run(block: Block, path: Path, names: dict[str, Any]) -> None:
    lines = block.code.splitlines()
    for statement in ast.parse(block.code).body:
        ast.increment_lineno(statement, block.line - 1)  # a traceback then tells the line of the page
        end = (statement.end_lineno or 0) - block.line
        below = lines[end + 1] if end + 1 < len(lines) and lines[end + 1].startswith("# →") else ""
        claim = RESULT.search(lines[end]) or RESULT.search(below)
        if claim is None:
            exec(compile(ast.Module([statement], []), path, "exec"), names)
            continue
        where = f"{path.name}, line {statement.end_lineno}"
        if not isinstance(statement, ast.Expr):
            raise AssertionError(f"{where}: only an expression has a value to be compared")
        value = eval(compile(ast.Expression(statement.value), path, "eval"), names)
        shown = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        if claim[1].strip() not in (repr(shown), str(shown)):
            raise AssertionError(f"{where}: the page says {claim[1].strip()}, but it is {shown!r}")
