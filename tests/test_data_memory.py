"""What reading holds: at most the limit with files made to hold more, and no more than what is counted with others."""

import gzip
import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data_paper_hostile import element, mat, matrix, norb, packed

from capscore.data import load
from capscore.data.memory import Budget
from capscore.errors import DataError

MIB = 1 << 20
SLACK = 12 * MIB  # buffers, allocators and what is imported on the way
LIMIT = 64 * MIB
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(MIB)}  # what is freed goes back at once, and is not kept by glibc

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the peak that Linux counts")

CHILD = """
import json, sys, warnings
import numpy.linalg, pathlib, zipfile, gzip, rich.progress, rich.console
import PIL.Image, PIL.ImageOps, PIL.ImageStat, PIL.ImageCms
from capscore.data import load, memory, read_image
PIL.Image.init()
warnings.simplefilter("ignore")

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])

most, take = 0, memory.Budget.take
def counting(budget, count, what):
    global most
    take(budget, count, what)
    most = max(most, budget.held)
memory.Budget.take = counting

name, data_dir, size = json.loads(sys.argv[1])
before, error = peak(), None
try:
    read = load(name, data_dir=data_dir, size=size and tuple(size)) if data_dir else read_image(name, size)
except Exception as caught:
    error = f"{type(caught).__name__}: {caught}"
print(json.dumps([error, peak() - before, most]))
"""


def measured(
    name: str, data_dir: Path | None, size: tuple[int, ...] | None, limit: int, **environment: str
) -> tuple[str | None, int, int]:
    """The error, the bytes held at the peak, and those counted, of reading in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([name, data_dir and str(data_dir), size])],
        env=os.environ | {"CAPSCORE_MEMORY": str(limit)} | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    error, peak, counted = json.loads(done.stdout)
    return error, peak, counted


def zeros(count: int, head: bytes = b"") -> bytes:
    """Gzipped: a head, and then `count` zeros."""
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(head), *(packer.compress(bytes(MIB)) for _ in range(count // MIB))]
    return b"".join([*parts, packer.compress(bytes(count % MIB)), packer.flush()])


def npy(shape: tuple[int, ...], descr: str) -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header


def npz(path: Path, **arrays: tuple[tuple[int, ...], str]) -> None:
    """An archive of zeros, of these shapes and dtypes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, (shape, descr) in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                member.write(npy(shape, descr))
                left = int(np.prod(shape)) * np.dtype(descr).itemsize
                while left:
                    left -= member.write(bytes(min(left, MIB)))


def idx_head(*shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def png(width: int, height: int, kind: int, rows: int) -> bytes:
    """A PNG of zeros, with fewer rows than it declares if so asked."""
    channels = {0: 1, 2: 3, 6: 4}[kind]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    body = b"".join([*(packer.compress(bytes(1 + channels * width)) for _ in range(rows)), packer.flush()])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b"")


# ------------------------------------------------------------------------------------- files made to hold more


def cifar_files(folder: Path) -> str:
    (folder / "cifar10").mkdir()
    content = zeros(3073 * 10_000)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        (folder / "cifar10" / name).write_bytes(content)
    return "cifar10"


def cifar_archive(folder: Path) -> str:
    """Extended headers, which a reader might keep."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 200 * MIB
    (folder / "cifar10").mkdir()
    (folder / "cifar10/cifar-10-binary.tar.gz").write_bytes(zeros(200 * MIB, header.tobuf()))
    return "cifar10"


def sparse_archive(folder: Path) -> str:
    """A map of a sparse file, of which a reader might make a list of numbers."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("data_batch_1.bin")
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x"}
        member.size = 60 * MIB
        archive.addfile(member, io.BytesIO(b"9999999\n" + b"0\n" * (30 * MIB)))
    (folder / "cifar10").mkdir()
    (folder / "cifar10/cifar-10-binary.tar.gz").write_bytes(gzip.compress(buffer.getvalue()))
    return "cifar10"


def npz_of_doubles(folder: Path) -> str:
    npz(folder / "x.npz", images=((9000, 28, 28), "<f8"), labels=((9000,), "<i8"))
    return str(folder / "x.npz")


def npz_of_four(folder: Path) -> str:
    sets = {"x_train": ((50_000, 28, 28), "|u1"), "x_test": ((50_000, 28, 28), "|u1")}
    npz(folder / "x.npz", **sets, y_train=((50_000,), "|u1"), y_test=((50_000,), "|u1"))
    return str(folder / "x.npz")


def npz_to_be_parted(folder: Path) -> str:
    npz(folder / "x.npz", images=((45_000, 28, 28), "|u1"), labels=((45_000,), "|u1"))
    return str(folder / "x.npz")


def npz_of_labels(folder: Path) -> str:
    npz(folder / "x.npz", images=((1, 28, 28), "|u1"), labels=((60 * MIB,), "|u1"))
    return str(folder / "x.npz")


def npz_of_names(folder: Path) -> str:
    sets = {"images": ((1, 28, 28), "|u1"), "labels": ((1,), "|u1")}
    npz(folder / "x.npz", **sets, classes=((60_000,), "<U250"))
    return str(folder / "x.npz")


def zip_directory(folder: Path) -> str:
    """A directory of 300,000 files, 50 bytes each, of which zipfile makes objects."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0)
    directory = b"".join(entry + b"%04x" % (i % 65536) for i in range(300_000))
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 65535, 65535, len(directory), 0, 0)
    (folder / "x.npz").write_bytes(directory + end)
    return str(folder / "x.npz")


def idx_labels(folder: Path) -> str:
    (folder / "mnist").mkdir()
    (folder / "mnist/train-images-idx3-ubyte").write_bytes(idx_head(1, 28, 28) + bytes(784))
    (folder / "mnist/train-labels-idx1-ubyte.gz").write_bytes(zeros(60 * MIB, idx_head(60 * MIB)))
    return "mnist"


def idx_images(folder: Path) -> str:
    (folder / "mnist").mkdir()
    count = 50_000
    for part in ("train", "t10k"):
        (folder / f"mnist/{part}-images-idx3-ubyte.gz").write_bytes(zeros(count * 784, idx_head(count, 28, 28)))
        (folder / f"mnist/{part}-labels-idx1-ubyte.gz").write_bytes(zeros(count, idx_head(count)))
    return "mnist"


def mat_variables(folder: Path) -> str:
    (folder / "svhn").mkdir()
    x = packed(matrix("X", np.zeros((32, 32, 3, 15_000), np.uint8)))
    y = packed(matrix("y", np.ones((15_000, 1), np.uint8)))
    for part in ("train", "test"):
        (folder / f"svhn/{part}_32x32.mat").write_bytes(mat(x, y))
    return "svhn"


def mat_of_others(folder: Path) -> str:
    """A variable that no one asked for, and one that ends too early."""
    (folder / "svhn").mkdir()
    other = packed(matrix("Z", np.zeros(200 * MIB, np.uint8)))
    (folder / "svhn/train_32x32.mat").write_bytes(mat(other, element(14, b"")[:4]))
    return "svhn"


def norb_files(folder: Path) -> str:
    (folder / "smallnorb").mkdir()
    stem, count = "smallnorb-5x46789x9x18x6x2x96x96-training", 10_000
    pictures = zeros(count * 18_432, norb((count, 2, 96, 96), b""))
    (folder / f"smallnorb/{stem}-dat.mat.gz").write_bytes(pictures)
    (folder / f"smallnorb/{stem}-cat.mat.gz").write_bytes(zeros(4 * count, norb((count, 1, 1), b"", 0x1E3D4C54, 1)))
    return "smallnorb"


def norb_categories(folder: Path) -> str:
    (folder / "smallnorb").mkdir()
    stem = "smallnorb-5x46789x9x18x6x2x96x96-training"
    (folder / f"smallnorb/{stem}-dat.mat.gz").write_bytes(zeros(18_432, norb((1, 2, 96, 96), b"")))
    (folder / f"smallnorb/{stem}-cat.mat.gz").write_bytes(zeros(200 * MIB, norb((50 * MIB, 1, 1), b"", 0x1E3D4C54, 1)))
    return "smallnorb"


def affnist_files(folder: Path) -> str:
    batches = folder / "affnist/training_batches"
    batches.mkdir(parents=True)
    images, labels = np.zeros((1600, 10_000), np.uint8), np.zeros(10_000, np.uint8)
    head = element(6, bytes([2]) + bytes(7)) + element(5, struct.pack("<ii", 1, 1)) + element(1, b"affNISTdata")
    fields = b"image".ljust(32, b"\0") + b"label_int".ljust(32, b"\0")
    body = struct.pack("<HHi", 5, 4, 32) + element(1, fields) + matrix("", images) + matrix("", labels)
    content = mat(packed(element(14, head + body)))
    for i in range(1, 7):
        (batches / f"{i}.mat").write_bytes(content)
    return "affnist"


def folder_of_images(folder: Path) -> str:
    for name in "ab":
        (folder / name).mkdir()
        for i in range(60):
            (folder / name / f"{i}.png").write_bytes(png(500, 500, 2, 500))
    return str(folder)


BOMBS: list[Callable[[Path], str]] = [
    cifar_files, cifar_archive, sparse_archive, npz_of_doubles, npz_of_four, npz_to_be_parted, npz_of_labels,
    npz_of_names, zip_directory, idx_labels, idx_images, mat_variables, mat_of_others, norb_files, norb_categories,
    affnist_files, folder_of_images,
]  # fmt: skip


@linux
@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_no_dataset_holds_more_than_the_limit(tmp_path: Path, bomb: Callable[[Path], str]) -> None:
    error, peak, _ = measured(bomb(tmp_path), tmp_path, None, LIMIT)
    assert error is not None
    assert error.startswith("DataError")
    assert peak < LIMIT + SLACK


def webp(path: Path) -> None:
    Image.new("RGBA", (4000, 4000), (9, 9, 9, 9)).save(path, "WEBP", lossless=True)


def tile(path: Path) -> None:
    """A TIFF of one pixel in a tile of 256 MiB."""
    tags = {256: 1, 257: 1, 258: 8, 259: 8, 262: 1, 277: 1, 322: 16384, 323: 16384, 324: 0, 325: 0}
    data = zlib.compress(bytes(16384 * 16384))
    tags |= {324: 8, 325: len(data)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    at = 8 + len(data) + len(data) % 2
    content = b"II*\0" + struct.pack("<I", at) + data + bytes(len(data) % 2)
    path.write_bytes(content + struct.pack("<H", len(tags)) + directory + bytes(4))


IMAGES: dict[str, Callable[[Path], object]] = {
    "png": lambda path: path.write_bytes(png(9000, 9000, 6, 9000)),
    "png of few bytes": lambda path: path.write_bytes(png(9400, 9400, 6, 1)),
    "jpeg": lambda path: Image.new("CMYK", (4000, 4000)).save(path, "JPEG", progressive=True),
    "gif": lambda path: Image.new("P", (8000, 8000)).save(path, "GIF"),
    "bmp": lambda path: Image.new("RGB", (3000, 3000)).save(path, "BMP"),
    "tiff": lambda path: Image.new("F", (8000, 8000)).save(path, "TIFF", compression="tiff_deflate"),
    "tile": tile,
    "webp": webp,
}


@linux
@pytest.mark.parametrize("kind", IMAGES)
def test_no_image_holds_more_than_the_limit(tmp_path: Path, kind: str) -> None:
    IMAGES[kind](tmp_path / "x")
    error, peak, _ = measured(str(tmp_path / "x"), None, None, LIMIT)
    assert error is not None
    assert error.startswith("DataError")
    assert peak < LIMIT + SLACK


# ------------------------------------------------------------------------------------------------- what is counted


@linux
@pytest.mark.parametrize("sound", [bomb for bomb in BOMBS if bomb.__name__ in (
    "cifar_files", "npz_of_doubles", "npz_of_four", "npz_to_be_parted", "idx_images", "norb_files", "mat_variables",
    "affnist_files", "folder_of_images",
)], ids=lambda bomb: bomb.__name__)  # fmt: skip
def test_as_much_is_counted_as_is_held(tmp_path: Path, sound: Callable[[Path], str]) -> None:
    _, peak, counted = measured(sound(tmp_path), tmp_path, None, 4 << 30, **GIVEN_BACK)
    assert counted > LIMIT / 2
    assert peak < counted + SLACK


@linux
@pytest.mark.parametrize("size", [None, (3, 28, 28), (3, 4000, 4000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_as_much_is_counted_as_an_image_takes(tmp_path: Path, kind: str, size: tuple[int, ...] | None) -> None:
    ramp = Image.linear_gradient("L").resize((2500, 2500))
    mode = {"JPEG": "CMYK", "GIF": "P", "TIFF": "LA", "BMP": "RGB"}.get(kind, "RGBA")
    picture = Image.merge("RGBA", (ramp, ramp.rotate(90), ramp.rotate(180), ramp)).convert(mode)
    picture.save(tmp_path / "x", kind, **({"progressive": True} if kind == "JPEG" else {}))
    error, peak, counted = measured(str(tmp_path / "x"), None, size, 4 << 30, **GIVEN_BACK)
    assert error is None
    assert peak < counted + SLACK


# --------------------------------------------------------------------------------------------------- the limit


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        (1000, 1000),
        ("1000", 1000),
        ("2K", 2048),
        ("3M", 3 * MIB),
        ("8G", 8 << 30),
        ("1 TiB", 1 << 40),
        ("5gb", 5 << 30),
    ],
)
def test_limit_is_bytes_or_text(monkeypatch: pytest.MonkeyPatch, given: int | str, limit: int) -> None:
    assert Budget(given).limit == limit
    monkeypatch.setenv("CAPSCORE_MEMORY", str(given))
    assert Budget().limit == limit
    assert Budget(7).limit == 7


@pytest.mark.parametrize("given", [0, -1, "", "much", "1.5G", "8X", "G", "9" * 5000])
def test_limit_that_is_none(given: int | str) -> None:
    with pytest.raises(DataError, match=r"a memory limit of .* give a number of bytes, or one such as 500M or 8G"):
        load("digits", memory=given)


def test_default_limit_and_what_raises_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPSCORE_MEMORY", raising=False)
    assert Budget().limit == 4 << 30
    with pytest.raises(DataError, match=r"limit is 1,000,000.*set CAPSCORE_MEMORY to more.*or pass memory="):
        load("digits", memory=10**6)
    monkeypatch.setenv("CAPSCORE_MEMORY", "1M")
    with pytest.raises(DataError, match="limit is 1,048,576"):
        load("digits")
    assert len(load("digits", memory="50M")[0]) == 5000


def test_budget_gives_back_what_was_in_passing() -> None:
    budget = Budget(10)
    budget.take(3, "x")
    with budget.passing():
        budget.take(7, "x")
        with pytest.raises(DataError, match=re.escape("y needs 1 bytes of memory beside the 10 in use")):
            budget.take(1, "y")
    budget.check(7, "x")
    assert budget.held == 3
