"""Runs the Python of a documentation page: for the tests, and for figures drawn from the very numbers of a page.

A block whose fence follows the line `<!-- not run: why -->` is passed over. A statement whose last line ends in
`# → text`, or which the line `# → text` follows, must print that text, so that a reader who pastes the block sees it.
Text of several lines goes on in comments indented by as much: `#   text`.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import warnings
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).parent
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>.+?) -->\n+)?^```python[^\n]*\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
RESULT = re.compile(r"#.*?→ (.*)$")
MORE = "#   "


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
        end = statement.end_lineno or 0
        claim = _claim(lines, end)
        ast.increment_lineno(statement, block.line - 1)  # a traceback then tells the line of the page
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(ast.Module([statement], []), path, "exec"), names)
        printed = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
        if claim is not None and printed != claim:
            cure = "" if printed else "; a value is printed by print(…)"
            raise AssertionError(
                f"{path.name}, line {statement.end_lineno}: it prints {printed!r}, not {claim!r}{cure}"
            )


def _claim(lines: list[str], end: int) -> str | None:
    """Return what the statement that ends with line `end`, counted from 1, is said to print."""
    below = lines[end:]
    first = RESULT.search(lines[end - 1])
    if first is None and below and below[0].startswith("# →"):
        first, below = RESULT.search(below[0]), below[1:]
    if first is None:
        return None
    more = [line.removeprefix(MORE).rstrip() for line in takewhile(lambda line: line.startswith(MORE), below)]
    return "\n".join([first[1].rstrip(), *more])
