"""CIFAR-10 in its binary version: records of a label and 32×32 pixels of red, of green and of blue."""

import gzip
import tarfile
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from capscore.data.dataset import Dataset
from capscore.data.progress import track
from capscore.data.stream import opened, read_up_to
from capscore.errors import DataError

ARCHIVE, INSIDE = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
TRAIN, TEST = tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"
PIXELS = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
MAX_RECORDS = 1_000_000  # in one file, which has 10,000
MAX_UNPACKED = 1 << 28  # of the archive, which has 184 MB


def read_cifar(folder: Path, classes: tuple[str, ...]) -> tuple[Dataset, Dataset]:
    """Read (train, test), images uint8 [N, 3, 32, 32], from `folder`.

    It holds data_batch_1.bin … data_batch_5.bin and test_batch.bin, in itself or in cifar-10-batches-bin/,
    or cifar-10-binary.tar.gz. Raises DataError if one of them is missing or damaged.
    """
    where = next((place for place in (folder, folder / INSIDE) if (place / TEST).is_file()), None)
    if where is not None:
        records = {name: _read_file(where / name) for name in track((*TRAIN, TEST), "cifar10")}
    elif (folder / ARCHIVE).is_file():
        records = _read_archive(folder / ARCHIVE)
    else:
        raise DataError(
            f"{folder} has neither {TEST} nor {INSIDE}/ nor {ARCHIVE}: put the binary version there, or leave "
            "out --data-dir and CAPSCORE_DATA to download it"
        )
    train = np.concatenate([records[name] for name in TRAIN])
    sets = (Dataset(r[:, 1:].reshape(-1, *PIXELS), r[:, 0].astype(np.int64), classes) for r in (train, records[TEST]))
    return next(sets), next(sets)


def _read_file(path: Path) -> NDArray[np.uint8]:
    with opened(path) as stream:
        return _parse(stream, str(path))


def _parse(stream: IO[bytes], name: str) -> NDArray[np.uint8]:
    """Records [N, 3073]."""
    data = read_up_to(stream, RECORD * MAX_RECORDS + 1)
    if not data or len(data) % RECORD or len(data) > RECORD * MAX_RECORDS:
        raise DataError(
            f"{name} holds {len(data):,} bytes: it must be 1 to {MAX_RECORDS:,} records of {RECORD:,}, fetch it again"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    if records[:, 0].max() > 9:
        raise DataError(f"{name} has a label {records[:, 0].max()}: they are 0 to 9, fetch the binary version again")
    return records


class _Limited:
    """A stream that ends in an error rather than in more than `left` bytes."""

    def __init__(self, stream: IO[bytes], left: int) -> None:
        self.stream, self.left = stream, left

    def read(self, count: int) -> bytes:
        data = self.stream.read(count)
        self.left -= len(data)
        if self.left < 0:
            raise tarfile.ReadError(f"it unpacks to more than {MAX_UNPACKED:,} bytes")
        return data


def _read_archive(path: Path) -> dict[str, NDArray[np.uint8]]:
    records: dict[str, NDArray[np.uint8]] = {}
    try:
        with open(path, "rb") as file:
            stream = cast(IO[bytes], _Limited(cast(IO[bytes], gzip.GzipFile(fileobj=file)), MAX_UNPACKED))
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    name = member.name.rpartition("/")[2]
                    content = archive.extractfile(member) if name in (*TRAIN, TEST) and member.isfile() else None
                    if content is not None:
                        records[name] = _parse(content, f"{path}: {member.name}")
    except DataError:
        raise
    except Exception as error:  # tarfile raises nearly anything on a damaged file
        raise DataError(f"{path} cannot be read ({error!s:.200}): fetch it again") from error
    missing = [name for name in (*TRAIN, TEST) if name not in records]
    if missing:
        raise DataError(f"{path} has no {', '.join(missing)}: fetch the binary version again")
    return records
