"""Datasets: the embedded digits, those of the paper by name, folders of images and NumPy archives."""

from pathlib import Path

from capscore.data.affine import Affine
from capscore.data.affnist import read_affnist_test
from capscore.data.archive import read_npz
from capscore.data.augment import AUGMENTATIONS, Augmentation, augmented
from capscore.data.batch import Batch, targets_of
from capscore.data.classes import absent, alike, balanced, by_name, even_chances, several
from capscore.data.dataset import Dataset, Samples
from capscore.data.device import HOST, Device
from capscore.data.fingerprint import changes, fingerprint
from capscore.data.idx import read_idx, read_idx_folder
from capscore.data.items import Items
from capscore.data.memory import Budget
from capscore.data.pairs import Pairs
from capscore.data.path import read_path
from capscore.data.picture import read_image
from capscore.data.place import Framed, Placed
from capscore.data.resident import Resident, resident
from capscore.data.source import SOURCES, source_folder
from capscore.data.split import ByContent, BySeed, Rule, rule_of, whole
from capscore.data.standardise import standardised
from capscore.data.validation import with_validation
from capscore.data.window import window
from capscore.errors import DataError

__all__ = [
    "AUGMENTATIONS", "HOST", "Affine", "Augmentation", "Batch", "ByContent", "BySeed", "Dataset", "Device", "Framed",
    "Items", "Pairs", "Placed", "Resident", "Samples", "absent", "alike", "augmented", "balanced", "by_name", "changes",
    "even_chances", "fingerprint", "load", "read_idx", "read_image", "resident", "rule_of", "several", "standardised",
    "targets_of", "whole", "window", "with_validation",
]  # fmt: skip

DIGITS = Path(__file__).with_name("digits.npz")
DRAWN = ("multimnist", "mnist-40", "mnist-affnist", "affine-mnist")
NAMES = ("digits", *SOURCES, *DRAWN)
KINDS = f"{', '.join(NAMES)}, a folder of images, or an .npz, .npy, .csv, .json or IDX file"


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    size: tuple[int, int, int] | None = None,
    seed: int = 0,
    split: Rule | None = None,
    memory: int | str | None = None,
) -> tuple[Samples, Samples]:
    """Load a dataset as (train, test).

    Parameters
    ----------
    name
        `digits` (5,000 + 1,000 MNIST images inside the package), a path (a folder of images, a list of them, arrays
        as .npz, .npy, .csv or IDX files, CIFAR's Python form; see `capscore.data.path`), or a dataset of the paper:

        - `mnist`, `fashion-mnist`: 28×28
        - `multimnist`: pairs of overlapping MNIST digits on 36×36, 1,000 for each digit; see `Pairs`
        - `mnist-40`: MNIST on 40×40, which training shifts by up to 6 pixels, and the test set once
        - `affnist`: the official transformed sets, 40×40. They are not downloaded
        - `mnist-affnist`: the training set of `mnist-40` and the test set of `affnist`, as in the paper
        - `affine-mnist`: MNIST under transformations like affNIST's, 40×40; see `Affine`
        - `cifar10`: patches of 24×24 of the 32×32 pixels: the centre, which training shifts by up to 4
        - `smallnorb`: stereo pairs as two channels, halved to 48×48; patches of 32×32, which training shifts by up to 8
        - `svhn`: cropped house numbers, 32×32

        A folder that is called like one of these is written `./mnist`. Intensities are the files' own / 255.
    data_dir
        Folder that holds `mnist/`, `cifar10/` and so on; without it the variable CAPSCORE_DATA, and without
        both the files are downloaded once and kept in the user's cache.
    size
        (C, H, W) that the network takes. Folder images are converted and resized to it; without it the first
        image decides. `cifar10` and `smallnorb` give patches of it. Every other dataset must already have it.
    seed
        Of all that is drawn in `multimnist`, `mnist-40` and `affine-mnist`.
    split
        Parts a folder or archive that has no test set of its own; `ByContent()` if None, about one image in five.
        `rule_of(model.provenance)` is the one that a model was trained with.
    memory
        What reading may hold, copies on the way included: bytes, or text such as "8G". Without it the variable
        CAPSCORE_MEMORY, and without both 4 GiB.

    Warns
    -----
    DataWarning
        Images of a folder have transparency, several frames or nothing to see.

    Raises
    ------
    DataError
        The dataset is unknown, missing, damaged, too large for the memory, or of another size than `size`.
    """
    try:
        train, test = _read(name, data_dir, size, seed, split or ByContent(), Budget(memory))
        for dataset in (train, test):
            _check_size(dataset, size or train.size)
    except DataError as error:
        raise DataError(f"dataset {name}: {error}") from error
    return train, test


def _check_size(dataset: Samples, wanted: tuple[int, int, int]) -> None:
    if dataset.size != wanted:
        found, needed = ("×".join(map(str, shape)) for shape in (dataset.size, wanted))
        raise DataError(
            f"images of {found} (C×H×W) where {needed} is needed: use a network with input {found}, "
            "or a folder of images, which are resized as they are read"
        )


def _read(
    name: str,
    data_dir: str | Path | None,
    size: tuple[int, int, int] | None,
    seed: int,
    rule: Rule,
    memory: Budget,
) -> tuple[Samples, Samples]:
    if name == "digits":
        return read_npz(DIGITS, size, rule, memory)
    if not name:
        raise DataError(f"the name is empty: use {KINDS}")
    if name in SOURCES:
        source = SOURCES[name]
        train, test = source.read(source_folder(name, data_dir), source.classes, memory)
        if source.patch is None:
            return train, test
        _, height, width = size or (0, source.patch, source.patch)
        held = min(height, train.size[1]), min(width, train.size[2])  # a patch is never larger than the image
        return Framed(train, *held), Framed(test, *held)
    if name in DRAWN:
        train, test = read_idx_folder(source_folder("mnist", data_dir), SOURCES["mnist"].classes, memory)
        match name:
            case "multimnist":
                return Pairs(train, (seed, 0)), Pairs(test, seed + 1)
            case "affine-mnist":
                return Affine(train, seed=(seed, 0)), Affine(test, seed=seed + 1)
            case "mnist-40":
                return Framed(train, 40, 40), Placed(test, seed=seed + 1)
            case _:
                folder = source_folder("affnist", data_dir)
                return Framed(train, 40, 40), read_affnist_test(folder, SOURCES["affnist"].classes, memory)
    if Path(name).exists():
        return read_path(Path(name), size, rule, memory)
    raise DataError(f"not a name and no such path: use {KINDS}")
