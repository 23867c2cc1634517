"""Datasets: the embedded digits, MNIST, Fashion-MNIST, folders of images and NumPy archives."""

from pathlib import Path

from capscore.data.archive import read_npz
from capscore.data.dataset import Dataset
from capscore.data.idx import SOURCES, read_idx, read_source
from capscore.data.images import read_folder, read_image
from capscore.errors import DataError

__all__ = ["Dataset", "load", "read_idx", "read_image"]

DIGITS = Path(__file__).with_name("digits.npz")
NAMES = ", ".join(["digits", *SOURCES])


def load(
    name: str, *, data_dir: str | Path | None = None, size: tuple[int, int, int] | None = None, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """Load a dataset as (train, test).

    Parameters
    ----------
    name
        `digits` (5,000 + 1,000 MNIST images inside the package), `mnist`, `fashion-mnist`, a folder of PNG
        and JPEG images, or an .npz file. A folder that is called like one of these is written `./mnist`.
    data_dir
        Folder that holds `mnist/` and `fashion-mnist/`; without it the variable CAPSCORE_DATA, and without
        both the files are downloaded once and kept in the user's cache.
    size
        (C, H, W) that the network takes. Folder images are converted and resized to it; without it the first
        image decides. Every other dataset must already have it.
    seed
        Draws the test images of a folder or archive that has no test set of its own: one in five per class.

    Raises
    ------
    DataError
        The dataset is unknown, missing, damaged, or of another size than `size`.
    """
    try:
        if name == "digits":
            train, test = read_npz(DIGITS, size, seed)
        elif name in SOURCES:
            train, test = read_source(name, data_dir)
        elif Path(name).is_dir():
            train, test = read_folder(Path(name), size, seed)
        elif Path(name).is_file():
            train, test = read_npz(Path(name), size, seed)
        else:
            raise DataError(f"not a name and no such path: use {NAMES}, a folder of images or an .npz file")
        wanted = size or train.size
        for dataset in (train, test):
            if dataset.size != wanted:
                found, needed = ("×".join(map(str, shape)) for shape in (dataset.size, wanted))
                raise DataError(
                    f"images of {found} (C×H×W) where {needed} is needed: use a network with input {found}, "
                    "or a folder of images, which are resized as they are read"
                )
    except DataError as error:
        raise DataError(f"dataset {name}: {error}") from error
    return train, test
