"""IDX files, the format of MNIST and Fashion-MNIST, and where to get those two."""

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from capscore.data.dataset import Dataset
from capscore.errors import DataError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

MAX_BYTES = 2 << 30


@dataclass(frozen=True)
class Source:
    """A published dataset: its classes, the addresses that serve it, and the SHA-256 of each file there."""

    classes: tuple[str, ...]
    mirrors: tuple[str, ...]
    sha256: dict[str, str]


DIGITS = tuple("0123456789")
SOURCES = {
    "mnist": Source(
        classes=DIGITS,
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion-mnist": Source(
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
}


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or not, into an array of the 1 to 4 dimensions it declares.

    Memory grows with what the file really holds, never with what its header claims. Raises DataError if the
    file is missing, damaged, of another type, larger than 2 GiB unpacked, or longer or shorter than declared.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            return _parse(cast(IO[bytes], gzip.GzipFile(fileobj=file)) if zipped else file, path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch the file again") from error


def _parse(stream: IO[bytes], path: str | Path) -> NDArray[np.uint8]:
    magic = read_up_to(stream, 4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DataError(f"{path} is no IDX file, which starts with two zero bytes, not {bytes(magic)!r}")
    if magic[2] != 0x08:
        raise DataError(f"{path} has IDX type 0x{magic[2]:02x}: convert it to 0x08, unsigned bytes")
    header = read_up_to(stream, 4 * magic[3])
    if not 1 <= magic[3] <= 4 or len(header) < 4 * magic[3]:
        raise DataError(f"{path} has no complete header of 1 to 4 dimensions: fetch the file again")
    shape = tuple(np.frombuffer(header, ">u4").tolist())
    size = math.prod(shape)
    if size == 0:
        raise DataError(f"{path} declares the empty shape {shape}: fetch the file again")
    if size > MAX_BYTES:
        raise DataError(f"{path} declares {size:,} bytes {shape}: the limit is {MAX_BYTES:,}, split the file")
    data = read_up_to(stream, size + 1)
    if len(data) != size:
        held = "more" if len(data) > size else f"only {len(data):,}"
        raise DataError(f"{path} declares {size:,} bytes {shape} but holds {held}: fetch the file again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_up_to(stream: IO[bytes], count: int) -> bytearray:
    """Read up to `count` bytes, allocated as they arrive so that a lying header costs no memory."""
    data = bytearray()
    while len(data) < count and (chunk := stream.read(min(1 << 20, count - len(data)))):
        data += chunk
    return data


def read_source(name: str, data_dir: str | Path | None) -> tuple[Dataset, Dataset]:
    """Read (train, test) of a source from `data_dir`, else from CAPSCORE_DATA, else from its mirrors."""
    root = data_dir or os.environ.get("CAPSCORE_DATA")
    return read_idx_folder(Path(root) / name if root else _download(name), SOURCES[name].classes)


def read_idx_folder(folder: Path, classes: tuple[str, ...]) -> tuple[Dataset, Dataset]:
    """Read (train, test) from `folder`/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]."""
    train, test = (
        Dataset(
            np.expand_dims(_read_part(folder, f"{part}-images-idx3-ubyte", 3), 1),
            _read_part(folder, f"{part}-labels-idx1-ubyte", 1).astype(np.int64),
            classes,
        )
        for part in ("train", "t10k")
    )
    return train, test


def _read_part(folder: Path, file: str, rank: int) -> NDArray[np.uint8]:
    path = next((p for p in (folder / f"{file}.gz", folder / file) if p.is_file()), None)
    if path is None:
        raise DataError(
            f"{folder} has no {file} or {file}.gz: put the files there, leave out --data-dir and "
            "CAPSCORE_DATA to download them, or use the dataset digits"
        )
    array = read_idx(path)
    if array.ndim != rank:
        raise DataError(f"{path} has shape {array.shape}: {rank} dimensions are needed, fetch the file again")
    return array


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


def _download(name: str) -> Path:
    import pooch
    from rich.console import Console
    from rich.progress import Progress

    source, folder = SOURCES[name], Path(pooch.os_cache("capscore")) / name
    for file, sha256 in source.sha256.items():
        failures = []
        for mirror in source.mirrors:
            terminal = Console(stderr=True)
            with Progress(console=terminal, disable=not terminal.is_terminal) as progress:
                bar = _Bar(progress, progress.add_task(f"{name} {file}", total=None))
                http = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16)
                try:
                    pooch.retrieve(mirror + file, f"sha256:{sha256}", file, folder, downloader=http)
                    break
                except (OSError, ValueError) as error:  # ValueError: the checksum of what arrived is another
                    failures.append(f"\n  {mirror}{file}: {error}")
        else:
            raise DataError(
                f"{name} could not be downloaded: name the folder that holds {name}/ by --data-dir or "
                f"CAPSCORE_DATA, or use the dataset digits, which needs no network. Tried:{''.join(failures)}"
            )
    return folder
