"""Damaged and malicious files: each is either read or refused with a DataError, in bounded memory."""

import gzip
import io
import struct
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import peak_below
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data_paper_hostile import damaged

from capscore.data import Dataset, load, read_idx, read_image
from capscore.errors import DataError

MIB = 1 << 20
many = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
few = settings(many, max_examples=100)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def idx(shape: tuple[int, ...], body: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + body


def npy(header: str | bytes, body: bytes = b"", version: int = 1) -> bytes:
    text = header if isinstance(header, bytes) else header.encode("latin1")
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + body


def npz(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def array_bytes(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


IMAGES = array_bytes(RNG.integers(0, 256, (10, 5, 4), np.uint8))
LABELS = array_bytes(np.arange(10) % 2)
CLASSES = array_bytes(np.array(["no", "yes"]))
ARCHIVES = [
    npz({"images": IMAGES, "labels": LABELS, "classes": CLASSES}, method)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
]
IDX = idx((6, 5, 4), RNG.bytes(120))


def picture(kind: str, mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (9, 8, 3), np.uint8)).convert(mode).save(buffer, kind)
    return buffer.getvalue()


PICTURES = [picture("PNG", "RGBA"), picture("PNG", "P"), picture("PNG", "L"), picture("JPEG", "RGB")]


def survives(read: Callable[[str], Any], path: Path, content: bytes) -> None:
    """`read` returns an array or datasets, or raises DataError."""
    path.write_bytes(content)
    for action in ("error", "ignore"):  # warnings as the tests take them, and as a user may
        with suppress(DataError), warnings.catch_warnings():
            warnings.simplefilter(action)
            result = read(str(path))
            assert isinstance(result, np.ndarray) or all(isinstance(part, Dataset) for part in result)


@many
@given(content=damaged([IDX, gzip.compress(IDX)]))
def test_damaged_idx(folder: Path, content: bytes) -> None:
    survives(read_idx, folder / "idx", content)


@many
@given(body=st.binary(max_size=200), shape=st.lists(st.integers(0, 2**32 - 1), max_size=6), zipped=st.booleans())
def test_idx_header_that_lies(folder: Path, body: bytes, shape: list[int], zipped: bool) -> None:
    content = idx(tuple(shape), body)
    with peak_below(2 * MIB):
        survives(read_idx, folder / "idx", gzip.compress(content) if zipped else content)


@pytest.mark.parametrize("shape", [(2**31,), (1 << 15, 1 << 16), (2**31 - 1,), (10_000,) * 3, (2**32 - 1,) * 4])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_huge_idx_claim_costs_nothing(folder: Path, shape: tuple[int, ...], pack: Callable[[bytes], bytes]) -> None:
    (folder / "idx").write_bytes(pack(idx(shape, b"few")))
    with peak_below(2 * MIB), pytest.raises(DataError, match="declares"):
        read_idx(folder / "idx")


def test_gzip_bomb_is_not_unpacked(folder: Path) -> None:
    (folder / "idx").write_bytes(gzip.compress(idx((5,), bytes(64 * MIB))))
    with peak_below(2 * MIB), pytest.raises(DataError, match="holds more"):
        read_idx(folder / "idx")


@many
@given(content=damaged(ARCHIVES))
def test_damaged_npz(folder: Path, content: bytes) -> None:
    survives(load, folder / "x.npz", content)


@many
@given(content=damaged([IMAGES, LABELS]), which=st.sampled_from(["images", "labels", "classes"]))
def test_damaged_npy_in_a_sound_zip(folder: Path, content: bytes, which: str) -> None:
    members = {"images": IMAGES, "labels": LABELS, "classes": CLASSES} | {which: content}
    survives(load, folder / "x.npz", npz(members, zipfile.ZIP_STORED))


DESCRS = ["|u1", "<i8", ">f8", "<f2", "<U0", "<U3", "|O", "|V4", "<M8[s]", "?", "S0", "(2,)u1", "<U999999999"]
NUMBERS = ["0", "1", "-1", "10", "True", "1L", "10**9", "0x" + "F" * 5000, str(2**63), "1.5"]
NONSENSE = ["(" * 9000, "[" * 200 + "]" * 200, "{'a':", "'''", "\\", "-" * 9000 + "1", "{}", "\n 1", "\0"]
headers = st.sampled_from(NONSENSE) | st.builds(
    "{{'descr': {!r}, 'fortran_order': {}, 'shape': ({}), }}\n".format,
    st.sampled_from(DESCRS) | st.text(max_size=12),
    st.sampled_from(["False", "True", "None"]),
    st.lists(st.sampled_from(NUMBERS), max_size=40).map(lambda items: "".join(f"{item}," for item in items)),
)


@many
@given(header=headers, body=st.binary(max_size=50), version=st.sampled_from([1, 2, 3, 9]))
@pytest.mark.parametrize("which", ["images", "classes"])
def test_hostile_npy_header(folder: Path, which: str, header: str, body: bytes, version: int) -> None:
    hostile = npy(header.encode("utf8"), body, version)
    members = {"images": IMAGES, "labels": LABELS} | {which: hostile}
    path, content = folder / "x.npz", npz(members)
    with peak_below(4 * MIB):
        survives(load, path, content)


@pytest.mark.parametrize("shape", ["(1000000, 1000000)", "(10000000000, 100)", "(2000000000,)"])
@pytest.mark.parametrize("descr", ["|u1", "<U0", "<f8"])
def test_huge_npy_claim_costs_nothing(folder: Path, shape: str, descr: str) -> None:
    hostile = npy(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}")
    (folder / "x.npz").write_bytes(npz({"images": hostile, "labels": LABELS}))
    with peak_below(2 * MIB), pytest.raises(DataError, match=r"images\.npy"):
        load(str(folder / "x.npz"))


def test_long_npy_header_is_not_unpacked(folder: Path) -> None:
    hostile = npy(b" " * 64 * MIB, version=2)
    (folder / "x.npz").write_bytes(npz({"images": hostile, "labels": LABELS}))
    del hostile
    with peak_below(2 * MIB), pytest.raises(DataError, match="cannot be read"):
        load(str(folder / "x.npz"))


def lying_sizes(content: bytes, size: int) -> bytes:
    """Claim in the zip directory that each member unpacks to `size` bytes."""
    patched = bytearray(content)
    at = 0
    while (at := patched.find(b"PK\x01\x02", at)) >= 0:
        patched[at + 24 : at + 28] = struct.pack("<I", size)
        at += 4
    return bytes(patched)


def test_zip_directory_that_lies(folder: Path) -> None:
    size = 1 << 30
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (%d,)}"
    text = header % (size - 10 - len(header % size))
    members = {"images": npy(text, b"few"), "labels": npy(text, b"few")}
    (folder / "x.npz").write_bytes(lying_sizes(npz(members), size))
    with peak_below(4 * MIB), pytest.raises(DataError):
        load(str(folder / "x.npz"))


def test_archive_over_the_limit(folder: Path) -> None:
    (folder / "x.npz").write_bytes(lying_sizes(npz({"images": IMAGES, "labels": LABELS}), 3 << 30))
    with pytest.raises(DataError, match=r"needs 6,442,450,944 bytes .* the limit is 4,294,967,296"):
        load(str(folder / "x.npz"))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_bound(folder: Path, method: int) -> None:
    (folder / "x.npz").write_bytes(npz({"images": IMAGES, "labels": LABELS}, method))
    with pytest.raises(DataError, match="zip method"):
        load(str(folder / "x.npz"))


@few
@given(content=damaged(PICTURES))
def test_damaged_picture(folder: Path, content: bytes) -> None:
    survives(read_image, folder / "x.png", content)
