"""Published datasets: where to get them, and where they are kept."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capscore.data.affnist import read_affnist
from capscore.data.cifar import read_cifar
from capscore.data.dataset import Dataset
from capscore.data.idx import read_idx_folder
from capscore.data.memory import Budget
from capscore.data.norb import read_norb
from capscore.data.svhn import read_svhn
from capscore.errors import DataError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@dataclass(frozen=True)
class Source:
    """A published dataset: its classes, what reads its folder, and the addresses that serve its files.

    `read` takes the folder, the classes and the memory and returns (train, test). `checksums` has the SHA-256 of each
    file, or "md5:" and the MD5 where only that was published. Without them nothing is downloaded: `page` is where
    people find the files. `patch` is the side in pixels of the patches that the paper's networks see, None for whole
    images.
    """

    classes: tuple[str, ...]
    read: Callable[[Path, tuple[str, ...], Budget], tuple[Dataset, Dataset]]
    mirrors: tuple[str, ...] = ()
    checksums: dict[str, str] = field(default_factory=dict)
    page: str = ""
    patch: int | None = None


DIGITS = tuple("0123456789")
SOURCES = {
    "mnist": Source(
        read=read_idx_folder,
        classes=DIGITS,
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        checksums={
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion-mnist": Source(
        read=read_idx_folder,
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        checksums={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    "cifar10": Source(
        read=read_cifar,
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        checksums={"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        patch=24,
    ),
    "svhn": Source(
        read=read_svhn,
        classes=DIGITS,
        mirrors=("http://ufldl.stanford.edu/housenumbers/",),
        checksums={
            "train_32x32.mat": "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "md5:eb5a983be6a315427106f1b164d9cef3",
        },
    ),
    "smallnorb": Source(
        read=read_norb,
        classes=("animal", "human", "airplane", "truck", "car"),
        mirrors=("https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/",),
        checksums={
            "smallnorb-5x46789x9x18x6x2x96x96-training-dat.mat.gz": "md5:66054832f9accfe74a0f4c36a75bc0a2",
            "smallnorb-5x46789x9x18x6x2x96x96-training-cat.mat.gz": "md5:23c8b86101fbf0904a000b43d3ed2fd9",
            "smallnorb-5x01235x9x18x6x2x96x96-testing-dat.mat.gz": "md5:e4ad715691ed5a3a5f138751a4ceb071",
            "smallnorb-5x01235x9x18x6x2x96x96-testing-cat.mat.gz": "md5:5aa791cd7e6016cf957ce9bdb93b8603",
        },
        patch=32,
    ),
    "affnist": Source(classes=DIGITS, read=read_affnist, page="https://www.cs.toronto.edu/~tijmen/affNIST/"),
}


def source_folder(name: str, data_dir: str | Path | None) -> Path:
    """Where the files of a source are: below `data_dir`, else below CAPSCORE_DATA, else downloaded to the cache."""
    root = data_dir or os.environ.get("CAPSCORE_DATA")
    return Path(root) / name if root else _download(name)


@dataclass
class _Bar:
    """What pooch asks of a progress bar, drawn by rich."""

    progress: "Progress"
    task: "TaskID"
    total: int = 0

    def update(self, count: int) -> None:
        self.progress.update(self.task, total=self.total, advance=count)

    def reset(self) -> None:
        self.progress.reset(self.task)

    def close(self) -> None:
        self.progress.stop()


@dataclass
class _Http:
    """A download whose file gets the user's usual mode: pooch makes it as a temporary one, for its owner alone."""

    download: Any

    def __call__(self, url: str, output: str, pooch: Any) -> None:
        self.download(url, output, pooch)
        usual = Path(f"{output}.mode")
        usual.touch()
        shutil.copymode(usual, output)
        usual.unlink()


def _download(name: str) -> Path:
    import pooch
    from rich.progress import Progress

    from capscore.terminal import Terminal

    source, folder = SOURCES[name], Path(pooch.os_cache("capscore")) / name
    if not source.checksums:
        raise DataError(
            f"{name} is not downloaded: fetch it from {source.page}, unpack it into a folder {name}/, and name "
            "the folder that holds that one by --data-dir or CAPSCORE_DATA"
        )
    for file, checksum in source.checksums.items():
        failures = []
        for mirror in source.mirrors:
            terminal = Terminal(stderr=True)
            with Progress(console=terminal, disable=not terminal.is_terminal) as progress:
                bar = _Bar(progress, progress.add_task(f"{name} {file}", total=None))
                http = _Http(pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16))
                try:
                    pooch.retrieve(mirror + file, checksum, file, folder, downloader=http)
                    break
                except (OSError, ValueError) as error:  # ValueError: the checksum of what arrived is another
                    failures.append(f"\n  {mirror}{file}: {error}")
        else:
            raise DataError(
                f"{name} could not be downloaded: name the folder that holds {name}/ by --data-dir or "
                f"CAPSCORE_DATA, or use the dataset digits, which needs no network. Tried:{''.join(failures)}"
            )
    return folder
