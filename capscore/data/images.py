"""PNG and JPEG files, alone or in one folder per class."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capscore.data.dataset import Dataset
from capscore.data.split import Rule
from capscore.data.survey import fitting_size, lost, own_sizes, skipped
from capscore.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
LAYOUT = "images belong in <folder>/<class>/, or in <folder>/train/<class>/ and <folder>/test/<class>/"


def read_image(path: str | Path, size: tuple[int, int, int] | None = None) -> NDArray[np.uint8]:
    """Read a PNG or JPEG file as uint8 [C, H, W], in the colour and size (C, H, W) asked for or in its own.

    C is 1 for grey and 3 for RGB; resizing is bilinear. Transparency is laid on black, 16-bit greys are
    scaled to 8 bits, and the orientation that a camera noted is applied. Raises DataError if the file is
    missing, damaged or so large that PIL takes it for a decompression bomb, or if C is neither 1 nor 3.
    """
    from PIL import Image, ImageOps

    if not Path(path).is_file():
        raise DataError(f"{path} is {'a folder' if Path(path).is_dir() else 'not there'}: name files, PNG or JPEG")
    if size and size[0] not in (1, 3):
        raise DataError(f"size {size} asks for {size[0]} channels: images are read with 1 (grey) or 3 (RGB)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as file:
                image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16-bit grey, which PIL's own convert would clip at 255
            image = Image.fromarray(((np.asarray(image, np.uint32) + 128) // 257).astype(np.uint8))
        grey = size[0] == 1 if size else image.mode in ("1", "L", "LA")
        if image.mode.endswith("A") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
        image = image.convert("L" if grey else "RGB")
        if size:
            image = image.resize((size[2], size[1]), Image.Resampling.BILINEAR)
        return np.array(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1), order="C")
    except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
        raise DataError(f"{path} cannot be read as PNG or JPEG ({error}): replace or remove it") from error


def read_folder(root: Path, size: tuple[int, int, int] | None, rule: Rule) -> tuple[Dataset, Dataset]:
    """Read (train, test) from root/train/<class>/ and root/test/<class>/, or split root/<class>/ by `rule`.

    Classes are the folders in alphabetical order. Hidden files are passed over; so is what is no image by its name,
    and the notes of the datasets say how much, and what the images lost in `size`.
    """
    if not _has_test_set(root):
        return rule(_read_classes(root, size))
    train = _read_classes(root / "train", size)
    test = _read_classes(root / "test", train.size, train.classes)
    beside = skipped([path for path in _visible(root) if path.name not in ("train", "test")], root, SUFFIXES)
    return replace(train, notes=(*train.notes, *filter(None, [beside]))), test


def size_that_fits(root: Path) -> tuple[int, int, int] | None:
    """Return the (C, H, W) in which to read a folder's images when nothing asks for another; None without images.

    It is the size that most of them have, up to 64 pixels a side, in colour if any is.
    """
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


def _read_classes(root: Path, size: tuple[int, int, int] | None, classes: tuple[str, ...] | None = None) -> Dataset:
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
        files += found
        labels += [classes.index(folder.name)] * len(found)
    first = read_image(files[0], size)
    channels, height, width = first.shape
    images = np.empty((len(files), *first.shape), np.uint8)
    for i, file in enumerate(files):
        images[i] = read_image(file, (channels, height, width))
    notes = skipped(others, root, SUFFIXES), lost(own_sizes(files, FORMATS), (channels, height, width))
    return Dataset(images, np.array(labels, np.int64), classes, notes=tuple(filter(None, notes)))


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error}): {LAYOUT}") from error
