"""Damaged files of every data format: read, or refused with a DataError, within the memory that was allowed.

CAPSCORE_FUZZ says how many for each format; `make fuzz` takes many. The file that a crash leaves behind is in
pytest's temporary folder.
"""

import gzip
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutate import survives
from PIL import Image
from test_data_hostile import ARCHIVES, CLASSES, IDX, IMAGES, LABELS, npz
from test_data_memory import png
from test_data_paper_hostile import MATS, RECORDS, VARIABLES, archive, mat, norb, packed
from test_data_pictures import png16

from capscore.data import Dataset, load, read_idx, read_image
from capscore.data.mat import read_mat
from capscore.data.memory import Budget
from capscore.data.norb import read_matrix
from capscore.errors import DataError

MIB = 1 << 20
LIMIT = 64 * MIB
SLACK = 32 * MIB  # of a process that has read many files
PEAK = Path("/proc/self/status")
RNG = np.random.default_rng(0)
Read = Callable[[bytes], Any]

pytestmark = pytest.mark.filterwarnings("ignore::capscore.errors.DataWarning")


def picture(kind: str, mode: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (9, 8, 3), np.uint8)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def with_checksums(content: bytes) -> bytes:
    """Make the checksums of a PNG's chunks right, as far as it has chunks."""
    whole, at = bytearray(content), 8
    while at + 12 <= len(whole):
        length = struct.unpack_from(">I", whole, at)[0]
        if at + 12 + length > len(whole):
            break
        struct.pack_into(">I", whole, at + 8 + length, zlib.crc32(whole[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(whole)


def frames(kind: str) -> bytes:
    return picture(kind, "RGB", save_all=True, append_images=[Image.new("RGB", (8, 9))])


PNGS = [picture("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]
PNGS += [frames("PNG"), png(8, 9, 6, 9), *(png16(np.full((9, 8, n), 99), 12) for n in (2, 3, 4))]
FORMATS: dict[str, list[bytes]] = {
    "png": PNGS,
    "jpeg": [picture("JPEG", mode) for mode in ("L", "RGB", "CMYK")] + [picture("JPEG", "RGB", progressive=True)],
    "bmp": [picture("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")],
    "gif": [picture("GIF", mode) for mode in ("L", "P")] + [frames("GIF")],
    "webp": [picture("WEBP", "RGBA", lossless=how) for how in (False, True)] + [frames("WEBP")],
    "tiff": [
        *[picture("TIFF", mode) for mode in ("1", "L", "LA", "P", "RGB", "CMYK", "I", "F")],
        *[picture("TIFF", "RGB", compression=f"tiff_{how}") for how in ("lzw", "deflate")],
        frames("TIFF"),
    ],
}

IDX_PAIR = [b"\0\0\x08\x03" + struct.pack(">3I", 9, 2, 2) + bytes(range(36))]
IDX_PAIR += [b"\0\0\x08\x01" + struct.pack(">I", 9) + bytes(i % 2 for i in range(9))]
PIXELS = "\n".join(f"{i % 2}," + ",".join(str((i * 7 + j) % 256) for j in range(16)) for i in range(12)).encode()
LISTS = [  # of several images, so that one can be held out
    "".join(["file,label\n", *(f"{i}.png,{'xy'[i % 2]}\n" for i in range(8))]).encode(),
    "".join(["file,x,y\n", *(f"{i}.png,{i % 2},1\n" for i in range(8))]).encode(),
    json.dumps({f"{i}.png": ["x", "y"][: i % 3] for i in range(8)}).encode(),
]
PICKLES = [
    pickle.dumps({b"label_names": [b"class %d" % i for i in range(10)]}, 2),
    pickle.dumps({b"data": RNG.integers(0, 256, (2, 3072), np.uint8), b"labels": [1, 2]}, 2),
]


def targets(folder: Path) -> dict[str, tuple[Read, list[bytes]]]:
    """Every format: what reads a file of these bytes, and sound ones."""

    def at(name: str, read: Callable[[Path], Any], pack: Callable[[bytes], bytes] = bytes) -> Read:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)

        def write_and_read(content: bytes) -> None:
            path.write_bytes(pack(content))
            result = read(path)
            assert isinstance(result, np.ndarray | list) or all(isinstance(part, Dataset) for part in result)

        return write_and_read

    def dataset(path: Path) -> Any:
        return load(str(path), memory=LIMIT)

    def one(path: Path) -> Any:
        return read_image(path, memory=LIMIT)

    def cifar(path: Path) -> Any:
        return [part.source for part in load("cifar10", data_dir=path.parents[1], memory=LIMIT)]

    def variables(path: Path) -> Any:
        return read_mat(path, "X", "y", memory=Budget(LIMIT))

    def fields(path: Path) -> Any:
        return read_mat(path, "s.image", "s.label", memory=Budget(LIMIT))

    def member(which: str) -> Callable[[bytes], bytes]:
        sound = {"images": IMAGES, "labels": LABELS, "classes": CLASSES}
        return lambda content: npz(sound | {which: content}, zipfile.ZIP_STORED)

    for name in "ab":
        (folder / "tree" / name).mkdir(parents=True)
        (folder / "tree" / name / "sound.png").write_bytes(PNGS[1])
    for file, record in RECORDS.items():
        (folder / "files/cifar10").mkdir(parents=True, exist_ok=True)
        (folder / "files/cifar10" / file).write_bytes(record)
    for file, content in {
        "npy/images.npy": IMAGES, "npy/labels.npy": LABELS, "pair/x-images-idx3-ubyte": IDX_PAIR[0],
        "pair/x-labels-idx1-ubyte": IDX_PAIR[1],
        **{f"list/{i}.png": picture("PNG", "L") for i in range(8)},
        "pickles/batches.meta": PICKLES[0], "pickles/test_batch": PICKLES[1],
        **{f"pickles/data_batch_{i}": PICKLES[1] for i in range(1, 6)},
    }.items():  # fmt: skip
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    matrices = [norb((3, 2, 1), bytes(6)), norb((2, 1, 1), bytes(8), 0x1E3D4C54, 1)]
    tar = archive(RECORDS)
    return {
        "idx": (at("idx", lambda path: read_idx(path, LIMIT)), [IDX, gzip.compress(IDX)]),
        "idx-gzipped": (at("idx", lambda path: read_idx(path, LIMIT), gzip.compress), [IDX]),
        "npz": (at("x.npz", dataset), ARCHIVES),
        "npz-images": (at("x.npz", dataset, member("images")), [IMAGES]),
        "npz-labels": (at("x.npz", dataset, member("labels")), [LABELS]),
        "npz-classes": (at("x.npz", dataset, member("classes")), [CLASSES]),
        "mat": (at("x.mat", variables), MATS[:2]),
        "mat-struct": (at("x.mat", fields), MATS[2:]),
        "mat-compressed": (at("x.mat", variables, lambda x: mat(packed(x), packed(VARIABLES[1]))), [VARIABLES[0]]),
        "norb": (at("x", lambda path: read_matrix(path, Budget(LIMIT))), [*matrices, gzip.compress(matrices[0])]),
        "cifar": (at("files/cifar10/data_batch_3.bin", cifar), [bytes(3073), gzip.compress(bytes(3073))]),
        "cifar-archive": (at("archive/cifar10/cifar-10-binary.tar.gz", cifar), [tar]),
        "cifar-tar": (at("tar/cifar10/cifar-10-binary.tar.gz", cifar), [gzip.decompress(tar)]),
        "npy": (at("npy/images.npy", dataset), [IMAGES]),
        "npy-labels": (at("npy/labels.npy", dataset), [LABELS]),
        "idx-pair": (at("pair/x-labels-idx1-ubyte", dataset), [IDX_PAIR[1]]),
        "pixels": (at("pixels.csv", dataset), [PIXELS]),
        "list-csv": (at("list/labels.csv", dataset), LISTS[:2]),
        "list-json": (at("list/labels.json", dataset), LISTS[2:]),
        "pickle": (at("pickles/data_batch_3", lambda path: dataset(path.parent)), [PICKLES[1]]),
        "pickle-meta": (at("pickles/batches.meta", lambda path: dataset(path.parent)), [PICKLES[0]]),
        **{name: (at(f"x.{name}", one), seeds) for name, seeds in FORMATS.items()},
        "png-checksums": (at("x.png", one, with_checksums), PNGS),
        "folder": (at("tree/a/x.tif", lambda path: dataset(path.parents[1])), [f[0] for f in FORMATS.values()]),
    }


NAMES = (
    *("idx", "idx-gzipped", "npz", "npz-images", "npz-labels", "npz-classes", "mat", "mat-struct", "mat-compressed"),
    *("norb", "cifar", "cifar-archive", "cifar-tar", *FORMATS, "png-checksums", "folder"),
    *("npy", "npy-labels", "idx-pair", "pixels", "list-csv", "list-json", "pickle", "pickle-meta"),
)


def peak() -> int:
    return 1024 * int(PEAK.read_text().partition("VmHWM:")[2].split()[0]) if PEAK.exists() else 0


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    read, seeds = targets(tmp_path)[name]
    for seed in seeds:
        read(seed)
    if PEAK.exists():
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak()
    assert survives(read, seeds, DataError) > 0
    assert peak() - before < LIMIT + SLACK
