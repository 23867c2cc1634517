"""Draw digits.npz from MNIST: `python -m capscore.data.make_digits <folder of the four MNIST files>`.

The arrays follow from MNIST and the seed alone, the bytes of the file also from the zlib that packs them.
"""

import io
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capscore.data import DIGITS
from capscore.data.dataset import Dataset
from capscore.data.idx import read_idx_folder
from capscore.data.memory import Budget
from capscore.data.source import SOURCES
from capscore.disk import write_atomically


def draw(dataset: Dataset, per_class: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], ...]:
    """Images [N, H, W] and labels [N], both uint8: `per_class` of every class, in the order of `dataset`."""
    members = (np.flatnonzero(dataset.labels == label) for label in range(len(dataset.classes)))
    chosen = np.sort(np.concatenate([rng.choice(m, per_class, replace=False) for m in members]))
    return dataset.images[chosen, 0].astype(np.uint8), dataset.labels[chosen].astype(np.uint8)


def main(mnist: Path, target: Path) -> None:
    """Write 500 training and 100 test images of every digit in the folder `mnist` to `target`."""
    rng = np.random.default_rng(0)
    train, test = read_idx_folder(mnist, SOURCES["mnist"].classes, Budget())
    x_train, y_train = draw(train, 500, rng)
    x_test, y_test = draw(test, 100, rng)
    content = io.BytesIO()
    np.savez_compressed(content, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    write_atomically(target, content.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1]), DIGITS)
