"""The files that the lab writes. Each begins with a mark; a file without it is somebody else's and stays as it is."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from capscore.disk import write_atomically
from capscore.errors import CapscoreError

MARK = "written by python -m lab"
COLOURS, LARGEST = (64, 32, 16, 8), 145_000  # of a sheet, and its bytes
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


def write_sheet(path: Path, figures: Sequence[Any], dpi: int) -> None:
    """Write matplotlib figures of one width, one below the other, as a PNG of few colours, of LARGEST bytes at most."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image, PngImagePlugin

    rows = []
    for figure in figures:
        figure.set_dpi(dpi)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        rows.append(np.asarray(canvas.buffer_rgba())[..., :3])
    whole, marked = Image.fromarray(np.concatenate(rows)), PngImagePlugin.PngInfo()
    marked.add_text("Software", MARK)
    for colours in COLOURS:
        content = io.BytesIO()
        few = whole.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # rare colours are kept
        few.save(content, "PNG", pnginfo=marked, optimize=True)
        if content.tell() <= LARGEST:
            break
    write(path, content.getvalue())


def write_figure(path: Path, figure: Any, dpi: int) -> None:
    """Write a matplotlib figure as PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, metadata={"Software": MARK})
    write(path, content.getvalue())
