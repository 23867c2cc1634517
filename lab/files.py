"""The files that the lab writes. Each begins with a mark; a file without it is somebody else's and stays as it is."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capscore.disk import write_atomically
from capscore.errors import CapscoreError

MARK = "written by python -m lab"
HEAD = 200  # bytes within which the mark stands: in a PNG it comes before the pixels


def check(path: Path) -> None:
    """Raise CapscoreError if there is a file of this name that the lab has not written."""
    if path.exists() and MARK.encode() not in path.read_bytes()[:HEAD]:
        raise CapscoreError(f"{path} is there and was not {MARK}: move it away, or name another place")


def write(path: Path, content: bytes) -> None:
    """Write a file that begins with the mark, whole or not at all; `check` comes first."""
    check(path)
    write_atomically(path, content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON."""
    write(path, (json.dumps({"note": MARK, **content}, indent=1) + "\n").encode())


def write_figure(path: Path, figure: Any, dpi: int) -> None:
    """Write a matplotlib figure as PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, metadata={"Software": MARK})
    write(path, content.getvalue())
