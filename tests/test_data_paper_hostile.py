"""Damaged and malicious files in the formats of the paper's datasets: refused with a DataError, in bounded memory."""

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import peak_below
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capscore.data import load
from capscore.data.mat import read_mat
from capscore.data.norb import read_matrix
from capscore.errors import DataError

MIB = 1 << 20
many = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of `originals` with bytes overwritten, cut out, put in, or missing at the end."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(content), draw(st.sampled_from([300, 1 << 30])))))
        match draw(st.sampled_from(["overwrite", "insert", "delete", "truncate"])):
            case "overwrite":
                patch = draw(st.binary(min_size=1, max_size=4))
                content[at : at + len(patch)] = patch
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "delete":
                del content[at : at + draw(st.integers(1, 16))]
            case "truncate":
                del content[at:]
    return bytes(content)


# ------------------------------------------------------------------------------------------------------ mat


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def small(kind: int, data: bytes) -> bytes:
    return struct.pack("<HH4s", kind, len(data), data)


def matrix(name: str, array: np.ndarray, kind: int = 9, stored: int = 2, flags: int = 0) -> bytes:
    head = element(6, bytes([kind, flags]) + bytes(6)) + element(5, np.array(array.shape, "<i4").tobytes())
    return element(14, head + element(1, name.encode()) + element(stored, array.tobytes(order="F")))


def structure(name: str, **fields: bytes) -> bytes:
    """A struct whose fields are matrices without names."""
    head = element(6, bytes([2]) + bytes(7)) + element(5, struct.pack("<ii", 1, 1)) + element(1, name.encode())
    labels = b"".join(label.encode().ljust(32, b"\0") for label in fields)
    return element(14, head + small(5, struct.pack("<i", 32)) + element(1, labels) + b"".join(fields.values()))


def packed(content: bytes) -> bytes:
    data = zlib.compress(content)
    return struct.pack("<II", 15, len(data)) + data  # the only elements that are not padded


def mat(*variables: bytes) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + b"".join(variables)


X = RNG.integers(0, 256, (2, 3, 4), np.uint8)
Y = np.array([[1.0], [10.0]])
VARIABLES = (matrix("X", X), matrix("y", Y, kind=6, stored=9))
AFFNIST = structure("s", image=matrix("", X), label=matrix("", Y, kind=6, stored=9), text=matrix("", X, kind=4))
MATS = [mat(*VARIABLES), mat(*map(packed, VARIABLES)), mat(AFFNIST), mat(packed(AFFNIST))]


@pytest.mark.parametrize("content", MATS[:2])
def test_read_mat(folder: Path, content: bytes) -> None:
    (folder / "x.mat").write_bytes(content)
    x, y = read_mat(folder / "x.mat", "X", "y")
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


@pytest.mark.parametrize("content", MATS[2:])
def test_read_mat_of_a_struct(folder: Path, content: bytes) -> None:
    (folder / "x.mat").write_bytes(content)
    label, image = read_mat(folder / "x.mat", "s.label", "s.image")
    np.testing.assert_array_equal(image, X)
    np.testing.assert_array_equal(label, Y)


def nested(depth: int) -> bytes:
    inner = matrix("", X)
    for _ in range(depth):
        inner = structure("X", X=inner)
    return inner


HUGE = struct.pack("<II", 14, 0x3FFFFFFF)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no MATLAB file of version 5"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + b"\x89HDF", "begins with b'MATLAB 7.3 .*-v7"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\1\0MI", "little endian"),
        (mat(), "no array of numbers X and no y"),
        (mat(VARIABLES[0]), "no array of numbers y"),
        (mat(matrix("X", X, kind=4), VARIABLES[1]), "no array of numbers X"),  # text
        (mat(matrix("X", X, flags=8), VARIABLES[1]), "no array of numbers X"),  # complex
        (mat(*VARIABLES)[:-5], "damaged.*5 bytes too early"),
        (mat(b"few"), "damaged"),
        (mat(element(9, bytes(8))), "kind 9"),
        (mat(HUGE), "1,073,741,823 bytes too early"),
        (mat(struct.pack("<II", 14, 0x40000001)), "1,073,741,825 bytes too early"),
        (mat(packed(struct.pack("<II", 14, 0xFFFFFFFF))), "4,294,967,295 bytes of memory .* limit is 4,294,967,296"),
        (mat(packed(HUGE)), "too early"),
        (mat(packed(packed(VARIABLES[0]))), "kind 15"),
        (mat(packed(VARIABLES[0] + b"more")), "longer or shorter than it says"),
        (mat(packed(VARIABLES[0])[:-9]), "damaged"),
        (mat(packed(VARIABLES[0])[:-1]), "longer or shorter"),  # the checksum is not whole
        (mat(struct.pack("<II", 15, 9) + b"\xff" * 9), "damaged.*-3"),
        (mat(matrix("X", X, stored=77)), "damaged.*77"),
        (mat(element(14, element(6, bytes([9]) + bytes(7)))), "damaged"),
        (mat(element(14, element(6, b"") + element(5, b"") + element(1, b"X"))), "damaged"),
        (mat(element(14, struct.pack("<II", 6, 99))), "claims 99 bytes where 0 are left"),
        (mat(matrix("X", X).replace(struct.pack("<ii", 3, 4), struct.pack("<ii", 3, -1))), "damaged"),
        (
            mat(matrix("X", X).replace(struct.pack("<iii", 2, 3, 4), struct.pack("<iii", 2**20, 2**20, 2**20))),
            "damaged",
        ),
        (mat(nested(3000)), "no array of numbers X"),
    ],
)
def test_read_mat_refuses(folder: Path, content: bytes, message: str) -> None:
    (folder / "x.mat").write_bytes(content)
    with peak_below(4 * MIB), pytest.raises(DataError, match=message) as caught:
        read_mat(folder / "x.mat", "X", "y")
    assert "x.mat" in str(caught.value)


@many
@given(content=damaged(MATS))
def test_damaged_mat(folder: Path, content: bytes) -> None:
    (folder / "x.mat").write_bytes(content)
    for names in (("X", "y"), ("s.image", "s.label")):
        with suppress(DataError), peak_below(2 * MIB):
            assert len(read_mat(folder / "x.mat", *names)) == 2


def test_mat_bomb_is_not_unpacked(folder: Path) -> None:
    (folder / "x.mat").write_bytes(mat(packed(matrix("X", X) + bytes(64 * MIB))))
    with peak_below(2 * MIB), pytest.raises(DataError, match="longer or shorter than it says"):
        read_mat(folder / "x.mat", "X")


SVHN_X = np.zeros((32, 32, 3, 2), np.uint8)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (SVHN_X[..., 0], Y, r"X is uint8 \(32, 32, 3\), not"),
        (SVHN_X[:31], Y, r"X is uint8 \(31, 32, 3, 2\)"),
        (SVHN_X, Y[:1], r"y is float64 \(1, 1\) for 2 images"),
        (SVHN_X, Y + 0.5, "y holds 1.5, not 1 to 10"),
        (SVHN_X, Y - 1, "y holds 0.0, not"),
        (SVHN_X, Y * np.nan, "y holds nan"),
        (SVHN_X[..., :0], Y[:0], "y is .* for 0 images"),
    ],
)
def test_svhn_refuses(tmp_path: Path, x: np.ndarray, y: np.ndarray, message: str) -> None:
    (tmp_path / "svhn").mkdir()
    (tmp_path / "svhn/train_32x32.mat").write_bytes(mat(matrix("X", x), matrix("y", y, kind=6, stored=9)))
    with pytest.raises(DataError, match=rf"train_32x32\.mat: {message}"):
        load("svhn", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (np.zeros((1600, 2), np.uint8), Y, "label_int holds 10.0, not 0 to 9"),
        (np.zeros((1599, 2), np.uint8), Y, r"image is uint8 \(1599, 2\)"),
    ],
)
def test_affnist_refuses(tmp_path: Path, image: np.ndarray, label: np.ndarray, message: str) -> None:
    (tmp_path / "affnist/training_batches").mkdir(parents=True)
    fields = {"image": matrix("", image), "label_int": matrix("", label, kind=6, stored=9)}
    (tmp_path / "affnist/training_batches/1.mat").write_bytes(mat(packed(structure("affNISTdata", **fields))))
    with pytest.raises(DataError, match=rf"1\.mat: {message}"):
        load("affnist", data_dir=tmp_path)


# ----------------------------------------------------------------------------------------------------- norb


def norb(dims: tuple[int, ...], body: bytes, magic: int = 0x1E3D4C55, rank: int | None = None) -> bytes:
    return struct.pack(f"<{2 + len(dims)}I", magic, len(dims) if rank is None else rank, *dims) + body


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with 0x00000000"),
        (norb((1, 1, 1), b"x", magic=0x1E3D4C51), "0x1E3D4C51"),
        (norb((1, 1, 1), b"x", magic=0x554C3D1E), "0x554C3D1E"),  # big endian
        (norb((1, 1, 1), b"x", rank=0), "0 dimensions"),
        (norb((1, 1, 1), b"x", rank=2**31), "2,147,483,648 dimensions"),
        (norb((5, 5), b"", rank=2), "within its header"),
        (norb((5, 5, 5, 5), b"", rank=8), "within its header"),
        (norb((5, 0, 1), b"", rank=2), r"\(5, 0\)"),
        (norb((5, 2**32 - 1, 1), b"", rank=2), r"\(5, -1\)"),
        (norb((2**31 - 1,) * 4, b"few"), "bytes of memory beside"),
        (norb((2**31 - 1, 1, 1), b"few", rank=1), "ends 2,147,483,644 bytes too early"),
        (norb((5, 1, 1), b"few", rank=1), "ends 2 bytes too early"),
        (norb((2, 1, 1), b"few", rank=1), "more than it declares"),
        (norb((2, 1, 1), bytes(5), rank=1, magic=0x1E3D4C54), "ends 3 bytes too early"),
    ],
)
def test_read_matrix_refuses(folder: Path, content: bytes, message: str, pack: Callable[[bytes], bytes]) -> None:
    (folder / "x.mat").write_bytes(pack(content))
    with peak_below(2 * MIB), pytest.raises(DataError, match=rf"x\.mat.*{message}"):
        read_matrix(folder / "x.mat")


@many
@given(content=damaged([norb((3, 2, 1), bytes(6)), gzip.compress(norb((3, 2, 1), bytes(6)))]))
def test_damaged_matrix(folder: Path, content: bytes) -> None:
    (folder / "x.mat").write_bytes(content)
    with suppress(DataError), peak_below(2 * MIB):
        read_matrix(folder / "x.mat")


def test_matrix_bomb_is_not_unpacked(folder: Path) -> None:
    (folder / "x.mat").write_bytes(gzip.compress(norb((2, 1, 1), bytes(64 * MIB), rank=1)))
    with peak_below(2 * MIB), pytest.raises(DataError, match="more than it declares"):
        read_matrix(folder / "x.mat")


PICTURES = norb((2, 2, 96, 96), bytes(2 * 2 * 96 * 96))
CATEGORIES = norb((2, 1, 1), struct.pack("<ii", 0, 4), magic=0x1E3D4C54, rank=1)


@pytest.mark.parametrize(
    ("pictures", "categories", "message"),
    [
        (norb((2, 1, 96, 96), bytes(2 * 96 * 96)), CATEGORIES, r"dat\.mat holds uint8 \(2, 1, 96, 96\)"),
        (CATEGORIES, CATEGORIES, r"dat\.mat holds int32 \(2,\)"),
        (PICTURES[:-1], CATEGORIES, r"dat\.mat ends 1 bytes too early"),
        (PICTURES + b"x", CATEGORIES, r"dat\.mat holds more"),
        (PICTURES, PICTURES, r"cat\.mat holds uint8 \(2, 2, 96, 96\)"),
        (PICTURES, norb((2, 1, 1), b"\0\5", rank=1), r"cat\.mat holds .* from 0 to 5: 2 pairs"),
        (PICTURES, CATEGORIES.replace(b"\4", b"\xff"), r"cat\.mat holds .* to 255"),
        (PICTURES, norb((3, 1, 1), b"\0\1\2", rank=1), r"cat\.mat holds uint8 \(3,\)"),
    ],
)
def test_smallnorb_refuses(tmp_path: Path, pictures: bytes, categories: bytes, message: str) -> None:
    (tmp_path / "smallnorb").mkdir()
    stem = tmp_path / "smallnorb/smallnorb-5x46789x9x18x6x2x96x96-training"
    stem.with_name(f"{stem.name}-dat.mat").write_bytes(pictures)
    stem.with_name(f"{stem.name}-cat.mat").write_bytes(categories)
    with pytest.raises(DataError, match=message):
        load("smallnorb", data_dir=tmp_path)


def test_huge_norb_claim_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "smallnorb").mkdir()
    for kind in ("dat", "cat"):
        path = tmp_path / f"smallnorb/smallnorb-5x46789x9x18x6x2x96x96-training-{kind}.mat.gz"
        path.write_bytes(gzip.compress(norb((100_000, 2, 96, 96), b"few")))
    with peak_below(4 * MIB), pytest.raises(DataError, match=r"dat\.mat\.gz ends [\d,]+ bytes too early"):
        load("smallnorb", data_dir=tmp_path)


# ---------------------------------------------------------------------------------------------------- cifar

RECORDS = {f"data_batch_{i}.bin": bytes(3073) for i in range(1, 6)} | {"test_batch.bin": bytes(2 * 3073)}


def archive(files: dict[str, bytes], **kinds: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            member.type = kinds.get(name.removesuffix(".bin"), tarfile.REGTYPE)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def lying_pax() -> bytes:
    """An extended header that claims, and unpacks to, far more than any archive of the dataset."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 400 * MIB
    packer = zlib.compressobj(1, wbits=31)
    return b"".join(
        [packer.compress(header.tobuf()), *(packer.compress(bytes(MIB)) for _ in range(400)), packer.flush()]
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"cannot be read"),
        (gzip.compress(b"no archive"), r"cannot be read"),
        (archive(RECORDS)[:-20], r"cannot be read"),
        (archive({}), "has no data_batch_1.bin, data_batch_2.bin"),
        (archive({k: v for k, v in RECORDS.items() if k != "data_batch_4.bin"}), "has no data_batch_4.bin:"),
        (archive(RECORDS, test_batch=tarfile.SYMTYPE), "has no test_batch.bin"),
        (archive(RECORDS | {"data_batch_2.bin": bytes(3072)}), "data_batch_2.bin holds 3,072 bytes"),
        (archive(RECORDS | {"data_batch_2.bin": b""}), "data_batch_2.bin holds 0 bytes"),
        (archive(RECORDS | {"test_batch.bin": b"\x0a" + bytes(3072)}), "test_batch.bin has a label 10"),
    ],
)
def test_cifar_archive_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10/cifar-10-binary.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=rf"cifar-10-binary\.tar\.gz.*{message}"):
        load("cifar10", data_dir=tmp_path)


def test_cifar_archive_bomb_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10/cifar-10-binary.tar.gz").write_bytes(lying_pax())
    with peak_below(600 * MIB), pytest.raises(DataError, match="more than 268,435,456 bytes"):
        load("cifar10", data_dir=tmp_path)


@given(content=damaged([archive(RECORDS)]))
@settings(many, max_examples=60)
def test_damaged_cifar_archive(folder: Path, content: bytes) -> None:
    (folder / "cifar10").mkdir(exist_ok=True)
    (folder / "cifar10/cifar-10-binary.tar.gz").write_bytes(content)
    with suppress(DataError), peak_below(16 * MIB):
        load("cifar10", data_dir=folder)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "0 bytes"), (bytes(3074), "3,074"), (b"\x0b" * 3073, "label 11")]
)
def test_cifar_file_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "cifar10").mkdir()
    for name, record in RECORDS.items():
        (tmp_path / "cifar10" / name).write_bytes(record)
    (tmp_path / "cifar10/data_batch_5.bin").write_bytes(content)
    with pytest.raises(DataError, match=rf"data_batch_5\.bin .*{message}"):
        load("cifar10", data_dir=tmp_path)


# --------------------------------------------------------------------------------------------------- missing


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10", "has neither test_batch.bin nor cifar-10-batches-bin/ nor cifar-10-binary.tar.gz"),
        ("svhn", "train_32x32.mat is missing"),
        ("smallnorb", "has no smallnorb-5x46789x9x18x6x2x96x96-training-dat.mat or .*gz"),
        ("affnist", "has no training_and_validation_batches or training_batches .*fetch the transformed set"),
        ("multimnist", "has no train-images-idx3-ubyte"),
        ("mnist-affnist", "has no train-images-idx3-ubyte"),
    ],
)
@pytest.mark.parametrize("empty", [True, False])
def test_missing_files(tmp_path: Path, name: str, message: str, empty: bool) -> None:
    if empty:
        (tmp_path / name / "training_batches").mkdir(parents=True)
    with pytest.raises(DataError, match=f"dataset {name}: .*{message}"):
        load(name, data_dir=tmp_path)


def test_missing_batch_of_cifar(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10/test_batch.bin").write_bytes(RECORDS["test_batch.bin"])
    with pytest.raises(DataError, match=r"data_batch_1\.bin.* cannot be read"):
        load("cifar10", data_dir=tmp_path)
