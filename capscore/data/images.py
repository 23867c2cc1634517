"""Folders of image files, one folder for each class."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capscore.data.dataset import Dataset
from capscore.data.listed import list_of, read_list
from capscore.data.memory import Budget
from capscore.data.picture import FORMATS, Paper, ink, paper_for, read_noting
from capscore.data.pixels import are_pixels
from capscore.data.progress import track
from capscore.data.rows import Rows, Writer
from capscore.data.split import Rule
from capscore.data.survey import fitting_size, own_sizes, skipped, what_reading_loses
from capscore.errors import DataError, DataWarning

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
LAYOUT = (
    "images belong in <folder>/<class>/, or in <folder>/train/<class>/ and <folder>/test/<class>/, or labels.csv "
    "names them"
)
ENTRY = 1024  # bytes that the path of a file takes at most
MANY = 2000  # images, which take a while
SAMPLE = 100  # images whose ink is looked at before a paper is chosen


def read_folder(root: Path, size: tuple[int, int, int] | None, rule: Rule, memory: Budget) -> tuple[Dataset, Dataset]:
    """Read (train, test) from root/train/<class>/ and root/test/<class>/, or split root/<class>/ by `rule`.

    A folder with labels.csv or labels.json is what that list says instead: see `capscore.data.listed`.

    Classes are the folders in alphabetical order. Hidden files are passed over; so is what is no image by its name,
    and the notes of the datasets say how much, and what the images lost in `size`. Transparency is laid on one paper
    everywhere: white if the training images' ink is dark as a whole, else black.
    """
    if listing := list_of(root):
        return read_listed(listing, size, rule, memory)
    if not _has_test_set(root):
        images, _ = _read_classes(root, size, memory)
        memory.take(images.images.nbytes, root)  # the two parts are copies
        return rule(images)
    train, paper = _read_classes(root / "train", size, memory)
    test, _ = _read_classes(root / "test", train.size, memory, paper, train.classes)
    beside = skipped([path for path in _visible(root) if path.name not in ("train", "test")], root, SUFFIXES)
    return replace(train, notes=(*train.notes, *filter(None, [beside]))), test


def size_that_fits(root: Path) -> tuple[int, int, int] | None:
    """Return the (C, H, W) in which to read a folder's or list's images when nothing asks for another; None without.

    It is the size that most of them have, up to 64 pixels a side, in colour if any is.
    """
    listing = list_of(root) if root.is_dir() else root
    if listing and (listing.suffix.lower() not in (".csv", ".json") or are_pixels(listing)):
        return None
    if listing:
        return fitting_size(own_sizes(read_list(listing, Budget()).files, FORMATS))
    files, _ = _files(root / "train" if _has_test_set(root) else root)
    return fitting_size(own_sizes([file for found in files.values() for file in found], FORMATS))


def _has_test_set(root: Path) -> bool:
    return (root / "train").is_dir() and (root / "test").is_dir()


def _files(root: Path) -> tuple[dict[Path, list[Path]], list[Path]]:
    """Return the image files of every class folder, and what is passed over."""
    files, others = {}, [path for path in _visible(root) if not path.is_dir()]
    for folder in _visible(root):
        if folder.is_dir():
            held = _visible(folder)
            files[folder] = [path for path in held if path.suffix.lower() in SUFFIXES]
            others += [path for path in held if path.suffix.lower() not in SUFFIXES]
    return files, others


def _read_classes(
    root: Path,
    size: tuple[int, int, int] | None,
    memory: Budget,
    paper: Paper | None = None,
    classes: tuple[str, ...] | None = None,
) -> tuple[Dataset, Paper]:
    folders, others = _files(root)
    if not folders:
        raise DataError(f"{root} has no class folders: {LAYOUT}")
    classes = classes or tuple(folder.name for folder in folders)
    files, labels = [], []
    for folder, found in folders.items():
        if folder.name not in classes:
            raise DataError(f"{folder} is not a class of the training images: those are {', '.join(classes)}")
        if not found:
            raise DataError(f"{folder} has no {', '.join(SUFFIXES)} files: {LAYOUT}")
        memory.take(ENTRY * len(found), folder)
        files += found
        labels += [classes.index(folder.name)] * len(found)
    images, paper, notes = read_files(files, root, size, memory, paper)
    told = (skipped(others, root, SUFFIXES), *notes)
    return Dataset(images, np.array(labels, np.int64), classes, notes=tuple(filter(None, told))), paper


def read_listed(path: Path, size: tuple[int, int, int] | None, rule: Rule, memory: Budget) -> tuple[Dataset, Dataset]:
    """Read (train, test) from the files that a list names, which `rule` parts."""
    files, labels, classes = read_list(path, memory)
    images, _, notes = read_files(files, path, size, memory)
    memory.take(images.nbytes, path)  # the two parts are copies
    return rule(Dataset(images, labels, classes, notes=notes))


def read_files(
    files: list[Path], root: Path, size: tuple[int, int, int] | None, memory: Budget, paper: Paper | None = None
) -> tuple[NDArray[np.uint8] | Rows, Paper, tuple[str, ...]]:
    """Return images [N, C, H, W] of files, the paper below them, and notes on what they lost."""
    paper = paper or _paper(files, memory)
    first, _ = read_noting(files[0], size, paper, memory)
    channels, height, width = first.shape
    writer = Writer(len(files), (channels, height, width))
    memory.take(writer.nbytes, f"{root} with {len(files):,} images of {channels}×{height}×{width}")
    noted: dict[str, list[Path]] = {}
    for file in track(files, "images") if len(files) > MANY else files:
        image, notes = read_noting(file, (channels, height, width), paper, memory)
        writer.add(image)
        for note in notes:
            noted.setdefault(note, []).append(file)
    for note, those in noted.items():
        which = f"{len(those):,} of {len(files):,} images, first {those[0]}"
        warnings.warn(f"{which}: {note}", DataWarning, stacklevel=2)
    lost = what_reading_loses(own_sizes(files, FORMATS), (channels, height, width))
    return writer.images(), paper, (lost,) if lost else ()


def _paper(files: list[Path], memory: Budget) -> Paper:
    """Choose by the ink of the files together, so that all have the same; of many, a sample from every part."""
    inks = [found for file in files[:: -(-len(files) // SAMPLE)] if (found := ink(file, memory)) is not None]
    return paper_for((sum(brightness for brightness, _ in inks), sum(opacity for _, opacity in inks)))


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error}): {LAYOUT}") from error
