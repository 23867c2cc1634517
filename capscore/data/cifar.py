"""CIFAR-10 in its binary version: records of a label and 32×32 pixels of red, of green and of blue."""

from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from capscore.data.dataset import Dataset
from capscore.data.memory import Budget
from capscore.data.progress import track
from capscore.data.stream import CHUNK, opened, read_up_to
from capscore.errors import DataError

ARCHIVE, INSIDE = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
TRAIN, TEST = tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"
PIXELS = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
BLOCK = 512  # bytes, of which a tar archive is made
MAX_UNPACKED = 1 << 28  # of the archive, which has 184 MB


def read_cifar(folder: Path, classes: tuple[str, ...], memory: Budget) -> tuple[Dataset, Dataset]:
    """Read (train, test), images uint8 [N, 3, 32, 32], from `folder`.

    It holds data_batch_1.bin … data_batch_5.bin and test_batch.bin, in itself or in cifar-10-batches-bin/,
    or cifar-10-binary.tar.gz. Raises DataError if one of them is missing or damaged.
    """
    where = next((place for place in (folder, folder / INSIDE) if (place / TEST).is_file()), None)
    with memory.passing():
        if where is not None:
            records = {name: _read_file(where / name, memory) for name in track((*TRAIN, TEST), "cifar10")}
        elif (folder / ARCHIVE).is_file():
            records = _read_archive(folder / ARCHIVE, memory)
        else:
            raise DataError(
                f"{folder} has neither {TEST} nor {INSIDE}/ nor {ARCHIVE}: put the binary version there, or leave "
                "out --data-dir and CAPSCORE_DATA to download it"
            )
        memory.take(sum(part.nbytes for part in records.values()), folder)
        train, test = _dataset([records[name] for name in TRAIN], classes), _dataset([records[TEST]], classes)
    memory.take(train.images.nbytes + test.images.nbytes, folder)
    return train, test


def _dataset(records: list[NDArray[np.uint8]], classes: tuple[str, ...]) -> Dataset:
    images = np.concatenate([part[:, 1:] for part in records]).reshape(-1, *PIXELS)
    return Dataset(images, np.concatenate([part[:, 0] for part in records]).astype(np.int64), classes)


def _read_file(path: Path, memory: Budget) -> NDArray[np.uint8]:
    with opened(path) as stream:
        return _records(read_up_to(stream, memory.limit, memory, path), str(path))


def _records(data: bytearray, name: str) -> NDArray[np.uint8]:
    """Records [N, 3073]."""
    if not data or len(data) % RECORD:
        raise DataError(f"{name} holds {len(data):,} bytes: it must be records of {RECORD:,}, fetch it again")
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    if records[:, 0].max() > 9:
        raise DataError(f"{name} has a label {records[:, 0].max()}: they are 0 to 9, fetch the binary version again")
    return records


def _read_archive(path: Path, memory: Budget) -> dict[str, NDArray[np.uint8]]:
    """Read the records in a tar archive, gzipped or not.

    Not by tarfile, which reads extended headers and sparse maps into memory, whatever their size.
    """
    records, left = {}, MAX_UNPACKED
    with opened(path) as stream:
        while member := _member(stream.read(BLOCK), path):
            name, size = member
            left -= BLOCK + size
            if left < 0:
                break
            if name in (*TRAIN, TEST):
                data = read_up_to(stream, size, memory, path)
                records[name] = _records(data, f"{path}: {name}")
                size -= len(data)
            _pass_over(stream, size + -member[1] % BLOCK, path)
        while left >= 0 and (chunk := stream.read(CHUNK)):  # to the end, where gzip has its checksum
            left -= len(chunk)
    if left < 0:
        raise DataError(f"{path} unpacks to more than {MAX_UNPACKED:,} bytes: fetch it again")
    if missing := [name for name in (*TRAIN, TEST) if name not in records]:
        raise DataError(f"{path} has no {', '.join(missing)}: fetch the binary version again")
    return records


def _member(header: bytes, path: Path) -> tuple[str, int] | None:
    """Name, without folders, and size of what follows a header of tar; "" for what is no file, None at the end."""
    if header == bytes(BLOCK):
        return None
    kind, octal = header[156:157], [header[at : at + 8 + 4 * (at == 124)].strip(b" \0") for at in (124, 148)]
    try:
        size, checksum = (int(number or b"0", 8) for number in octal)
    except ValueError:
        size = checksum = -1
    if len(header) < BLOCK or size < 0 or checksum != sum(header) - sum(header[148:156]) + 8 * 32:
        raise DataError(f"{path} cannot be read (a header is damaged or missing): fetch it again")
    if kind in (b"0", b"\0"):
        return header[:100].split(b"\0")[0].decode("latin-1").rpartition("/")[2], size
    return "", 0 if kind in b"123456" else size  # links, devices and folders have nothing behind them


def _pass_over(stream: IO[bytes], count: int, path: Path) -> None:
    while count and (chunk := stream.read(min(CHUNK, count))):
        count -= len(chunk)
    if count:
        raise DataError(f"{path} cannot be read (it ends {count:,} bytes too early): fetch it again")
