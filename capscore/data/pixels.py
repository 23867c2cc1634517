"""CSV files of pixels, as MNIST often comes: a label and the values of an image in every line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capscore.data.dataset import Dataset
from capscore.data.labels import settled
from capscore.data.memory import Budget
from capscore.data.split import Rule
from capscore.errors import DataError

LABELS = ("label", "class", "target", "y")  # how a header may call the column of labels
LEAST = 16  # pixels: shorter lines are a list of files


def are_pixels(path: Path) -> bool:
    """Whether a CSV file has lines of numbers, not names of files."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            file.readline()
            cells = file.readline().split(",")
    except OSError:
        return False
    return len(cells) > LEAST and all(cell.strip().isdigit() for cell in cells)


def read_pixels(path: Path, rule: Rule, memory: Budget) -> tuple[Dataset, Dataset]:
    """Read (train, test) from lines of a label and H·W or 3·H·W values from 0 to 255.

    The label comes first, or in the column that the header calls so (LABELS).
    Images are square. Where the name has "train" in it and a file beside it "test" instead, that is the test set;
    else `rule` parts the images.
    """
    other = path.with_name(path.name.replace("train", "test"))
    parts = [_read(each, memory) for each in ([path, other] if other != path and other.is_file() else [path])]
    classes, labels, notes = settled([labels for _, labels in parts], None, memory)
    sets = [Dataset(x, y, classes, notes=notes) for (x, _), y in zip(parts, labels, strict=True)]
    return (sets[0], sets[1]) if len(sets) == 2 else rule(sets[0])


def _read(path: Path, memory: Budget) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    memory.take(4 * path.stat().st_size, path)  # a value is two characters at least, and four bytes at most
    with open(path, encoding="utf-8", errors="replace") as file:
        head = [cell.strip().strip('"') for cell in file.readline().split(",")]
    named = not head[0].lstrip("-").isdigit()
    at = next((i for i, name in enumerate(head) if named and name.lower() in LABELS), 0)
    if named and head[at].lower().startswith("pixel"):
        raise DataError(f"{path} has no column of labels, only {head[0]} to {head[-1]}: call it {' or '.join(LABELS)}")
    try:
        table = np.loadtxt(path, np.int32, delimiter=",", skiprows=int(named), ndmin=2)
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({error!s:.200}): each line is a label and whole numbers") from error
    values, labels = np.delete(table, at, 1), table[:, at].astype(np.int64)
    channels = next((c for c in (1, 3) if math.isqrt(values.shape[1] // c) ** 2 * c == values.shape[1]), 0)
    if not channels or values.min() < 0 or values.max() > 255:
        raise DataError(
            f"{path} has {values.shape[1]:,} values a line, from {values.min()} to {values.max()}: square images of 1 "
            "or 3 channels are needed, from 0 to 255"
        )
    side = math.isqrt(values.shape[1] // channels)
    return values.astype(np.uint8).reshape(-1, channels, side, side), labels
