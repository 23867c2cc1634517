"""Image files with their labels in a list: CSV or JSON, one label each or several."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capscore.data.memory import Budget
from capscore.errors import DataError, short

LISTS = ("labels.csv", "labels.json")  # what a folder's list is called
FILE_COLUMNS = ("file", "filename", "image", "path")  # how a header may call the first column
SEPARATORS = ";|"  # between several labels in one cell
ENTRY = 1024  # bytes that a line of a list takes at most, once it is read
FORM = (
    'CSV with a header such as "file,label", several labels in more columns, parted by ; or as columns of 0 and 1; or '
    'JSON such as {"a.png": "cat", "b.png": ["cat", "dog"]}'
)


class Listed(NamedTuple):
    """Files, their labels as [N] int64 or flags [N, J] bool, and the class names."""

    files: list[Path]
    labels: NDArray[Any]
    classes: tuple[str, ...]


def list_of(folder: Path) -> Path | None:
    """Return the list in a folder; None if it has none."""
    return next((folder / name for name in LISTS if (folder / name).is_file()), None)


def read_list(path: Path, memory: Budget) -> Listed:
    """Read a list. Files are named from its own folder on; classes are in alphabetical order, or that of columns.

    Where every file has one label, and it stands in no list of JSON, labels are [N]; else flags [N, J].
    """
    size = path.stat().st_size
    memory.take(size, path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): write it as UTF-8, {FORM}") from error
    rows, names, single = _of_json(text, path) if path.suffix.lower() == ".json" else _of_csv(text, path)
    memory.take(ENTRY * len(rows), f"{path} with {len(rows):,} lines")
    classes = tuple(names or sorted({label for _, labels in rows for label in labels}))
    if not rows or not classes:
        raise DataError(f"{path} has no labels: write it as {FORM}")
    files = [path.parent / file for file, _ in rows]
    at = {name: j for j, name in enumerate(classes)}
    if single and all(len(labels) == 1 for _, labels in rows):
        return Listed(files, np.array([at[labels[0]] for _, labels in rows], np.int64), classes)
    memory.take(len(rows) * len(classes), f"{path} with {len(classes):,} classes")
    flags = np.zeros((len(rows), len(classes)), np.bool_)
    for i, (_, labels) in enumerate(rows):
        flags[i, [at[label] for label in labels]] = True
    return Listed(files, flags, classes)


Rows = list[tuple[str, Sequence[str]]]  # files and their labels


def _of_csv(text: str, path: Path) -> tuple[Rows, Sequence[str], bool]:
    try:
        table = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text)) if any(row)]
    except csv.Error as error:
        raise DataError(f"{path} cannot be read ({error}): write it as {FORM}") from error
    header: list[str] = []
    if table and (table[0][0].lower() in FILE_COLUMNS or not _names_a_file(path.parent, table[0][0])):
        header, *table = table
    if not table or len(table[0]) < 2:
        raise DataError(f"{path} has no files with labels: write it as {FORM}")
    if ragged := next((row for row in table if len(row) != len(table[0])), None):
        raise DataError(f"{path} has the line {short(','.join(ragged))} with {len(ragged)} cells, not {len(table[0])}")
    if len(table[0]) > 2 and all(cell in ("0", "1") for row in table for cell in row[1:]):
        if len(set(header[1:])) != len(table[0]) - 1:
            raise DataError(f"{path} has columns of 0 and 1: give each a name of its own in the header")
        names = header[1:]
        return (
            [(row[0], [n for n, cell in zip(names, row[1:], strict=True) if cell == "1"]) for row in table],
            names,
            False,
        )
    return [(row[0], list(dict.fromkeys(_labels(row[1:])))) for row in table], (), len(table[0]) == 2


def _names_a_file(folder: Path, cell: str) -> bool:
    return bool(Path(cell).suffix) or (folder / cell).is_file()  # one that is not there is told of, not passed over


def _labels(cells: Sequence[str]) -> list[str]:
    for separator in SEPARATORS:
        cells = [part.strip() for cell in cells for part in cell.split(separator)]
    return [cell for cell in cells if cell]


def _of_json(text: str, path: Path) -> tuple[Rows, Sequence[str], bool]:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error!s:.100}): write it as {FORM}") from error
    if isinstance(told, list):
        told = [(row.get("file"), row.get("labels", row.get("label"))) for row in told if isinstance(row, dict)]
    else:
        told = list(told.items()) if isinstance(told, dict) else []
    rows: Rows = []
    single = True
    for file, labels in told:
        single = single and isinstance(labels, str)
        labels = [labels] if isinstance(labels, str) else labels
        if not isinstance(file, str) or not isinstance(labels, list) or not all(isinstance(x, str) for x in labels):
            raise DataError(f"{path} tells of {short(file)} {short(labels)}: write it as {FORM}")
        rows.append((file, list(dict.fromkeys(labels))))
    return rows, (), single
