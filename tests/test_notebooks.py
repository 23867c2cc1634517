"""The notebooks run, and show what the stored ones show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import need

BOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def shown(cell: Any) -> set[str]:
    """The kinds of what a cell shows; nothing of progress, which comes in as many lines as the machine takes time."""
    outputs = cell.get("outputs", [])
    return {kind for each in outputs if each.output_type != "display_data" for kind in each.get("data", {"text": ""})}


def printed(cell: Any) -> str:
    """What a cell prints, its numbers apart: those of another machine differ."""
    text = "".join(each.text for each in cell.get("outputs", []) if each.get("name") == "stdout")
    return re.sub(r"\d[\d.,]*(e-\d+)?", "#", text)


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_stored(path: Path, tmp_path: Path) -> None:
    need("ipykernel", "docs")
    need("torch", "torch")
    need("onnxruntime", "onnx")
    nbformat, nbclient = need("nbformat", "docs"), need("nbclient", "docs")
    stored, book = nbformat.read(path, 4), nbformat.read(path, 4)
    nbformat.validate(stored)
    place = {"metadata": {"path": tmp_path}}
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources=place).execute()
    for before, now in zip(stored.cells, book.cells, strict=True):
        assert (shown(before), printed(before)) == (shown(now), printed(now)), now.source
    assert not any(each.get("name") == "stderr" for cell in book.cells for each in cell.get("outputs", []))


def test_the_notebook_of_a_newcomer_learns_and_exports() -> None:
    nbformat = need("nbformat", "docs")
    (path,) = [path for path in BOOKS if path.stem == "digits"]
    book = nbformat.read(path, 4)
    said = "".join(each.text for cell in book.cells for each in cell.get("outputs", []) if "text" in each)
    learned, exported = (
        re.search(r"([\d.]+)% of 1,000 digits are right", said),
        re.search(r"([\d.]+)% are right in", said),
    )
    assert learned
    assert exported
    assert learned[1] == exported[1]
    assert float(learned[1]) > 95
    assert sum("image/png" in each.get("data", {}) for cell in book.cells for each in cell.get("outputs", [])) >= 5
