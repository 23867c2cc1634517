import gzip
import hashlib
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
from PIL import Image

import capscore.data.source
from capscore.data import DIGITS, Dataset, load, make_digits, read_idx, read_image
from capscore.data.source import SOURCES
from capscore.data.split import ByContent, BySeed
from capscore.errors import DataError

MNIST = Path(os.environ.get("CAPSCORE_DATA", "")) / "mnist"
needs_mnist = pytest.mark.skipif(
    not (os.environ.get("CAPSCORE_DATA") and MNIST.is_dir()), reason="CAPSCORE_DATA has no mnist/"
)
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPSCORE_DATA", raising=False)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_source(folder: Path, suffix: str = ".gz") -> dict[str, np.ndarray]:
    """Four IDX files of 6 training and 4 test images, returned by file name."""
    folder.mkdir(parents=True)
    arrays = {}
    for part, count in (("train", 6), ("t10k", 4)):
        arrays[f"{part}-images-idx3-ubyte"] = pixels(count, 5, 4)
        arrays[f"{part}-labels-idx1-ubyte"] = np.arange(count, dtype=np.uint8)
    for name, array in arrays.items():
        packed = gzip.compress(idx_bytes(array), mtime=0) if suffix else idx_bytes(array)
        (folder / (name + suffix)).write_bytes(packed)
    return arrays


def write_image(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


# ------------------------------------------------------------------------------------------------ Dataset


def dataset(**changes: Any) -> Dataset:
    fields: dict[str, Any] = {
        "images": np.zeros((4, 1, 2, 3), np.uint8),
        "labels": np.array([0, 1, 1, 0]),
        "classes": ("a", "b"),
    }
    return Dataset(**(fields | changes))


def test_batch_is_float32_in_the_unit_interval() -> None:
    images = np.full((4, 1, 2, 3), 51, np.uint8)
    images[0] = 255
    x, y = dataset(images=images).batch(np.array([0, 3]))
    assert x.dtype == np.float32
    assert x.shape == (2, 1, 2, 3)
    assert x[0].min() == 1
    np.testing.assert_array_equal(x[1], np.float32(0.2))
    assert y.tolist() == [0, 0]


def test_batch_of_floats_is_a_new_array() -> None:
    data = dataset(images=np.full((4, 1, 2, 3), 0.5, np.float32))
    x, _ = data.batch(slice(1, 3))
    x[...] = 0
    assert data.images.min() == 0.5
    assert len(data) == 4
    assert data.size == (1, 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((4, 1, 2, 3))}, "float64.*store uint8"),
        ({"images": np.zeros((4, 2, 3), np.uint8)}, r"\(4, 2, 3\).*\[N, C, H, W\]"),
        ({"images": np.zeros((0, 1, 2, 3), np.uint8)}, "nothing empty"),
        ({"images": np.full((4, 1, 2, 3), 255, np.float32)}, "255.*divide"),
        ({"images": np.full((4, 1, 2, 3), -0.5, np.float32)}, "-0.5"),
        ({"images": np.full((4, 1, 2, 3), np.nan, np.float32)}, "nan"),
        ({"images": np.full((4, 1, 2, 3), np.inf, np.float32)}, "inf"),
        ({"labels": np.zeros(4, np.int32)}, "int32.*int64"),
        ({"labels": np.zeros(3, np.int64)}, r"\(3,\).*4 images"),
        ({"labels": np.array([0, 1, 2, 0])}, "from 0 to 2 but there are 2 classes"),
        ({"labels": np.array([0, 1, -1, 0])}, "from -1 to 1"),
        ({"classes": ()}, "0 classes"),
        ({"classes": ("a", "a")}, "2 classes are called 'a'"),
    ],
)
def test_dataset_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataset(**changes)


def test_batch_with_a_margin_has_zeros_around_it() -> None:
    x, y = dataset(images=np.full((4, 1, 2, 3), 255, np.uint8)).batch(slice(1, 3), margin=2)
    assert x.shape == (2, 1, 6, 7)
    assert x.sum() == x[:, :, 2:-2, 2:-2].sum() == 2 * 6
    assert y.tolist() == [1, 1]


def test_the_split_of_older_models_is_stratified_seeded_and_keeps_the_order() -> None:
    labels = RNG.permutation(np.repeat(np.arange(4), (1, 2, 10, 50)))
    data = Dataset(np.arange(63, dtype=np.uint8).reshape(63, 1, 1, 1), labels, tuple("abcd"))
    train, test = BySeed(3)(data)
    assert np.bincount(test.labels).tolist() == [0, 1, 2, 10]
    order = np.concatenate([train.images.ravel(), test.images.ravel()])
    assert sorted(order) == list(range(63))
    assert np.all(np.diff(train.images.ravel().astype(int)) > 0)
    np.testing.assert_array_equal(train.labels, labels[train.images.ravel()])
    np.testing.assert_array_equal(BySeed(3)(data)[1].images, test.images)
    assert np.any(BySeed(4)(data)[1].images != test.images)


def test_split_needs_a_class_of_two() -> None:
    with pytest.raises(DataError, match="leave none to test with"):
        BySeed(0)(dataset(images=np.zeros((2, 1, 1, 1), np.uint8), labels=np.array([0, 1])))
    for value in range(6):
        with pytest.raises(DataError, match="leave none to test with"):
            ByContent()(dataset(images=np.array([[[[value]]], [[[value + 1]]]], np.uint8), labels=np.array([0, 1])))


# ------------------------------------------------------------------------------------------------- digits


def test_digits_are_balanced_and_small() -> None:
    train, test = load("digits", size=(1, 28, 28))
    assert train.images.shape == (5000, 1, 28, 28)
    assert test.images.shape == (1000, 1, 28, 28)
    assert np.bincount(train.labels).tolist() == [500] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    assert train.classes == tuple("0123456789")
    assert DIGITS.stat().st_size < 1_300_000


@needs_mnist
def test_digits_can_be_made_again(tmp_path: Path) -> None:
    make_digits.main(MNIST, tmp_path / "digits.npz")
    with np.load(tmp_path / "digits.npz") as made, np.load(DIGITS) as embedded:
        assert made.files == embedded.files
        for name in made.files:
            np.testing.assert_array_equal(made[name], embedded[name])
    again = (tmp_path / "digits.npz").read_bytes()
    make_digits.main(MNIST, tmp_path / "digits.npz")
    assert (tmp_path / "digits.npz").read_bytes() == again


@needs_mnist
def test_mnist() -> None:
    train, test = load("mnist", data_dir=MNIST.parent)
    assert train.images.shape == (60000, 1, 28, 28)
    assert test.images.shape == (10000, 1, 28, 28)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]


# --------------------------------------------------------------------------------------------------- IDX


@pytest.mark.parametrize("shape", [(7,), (2, 3), (4, 3, 2), (2, 3, 4, 5)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_read_idx(tmp_path: Path, shape: tuple[int, ...], pack: Callable[[bytes], bytes]) -> None:
    array = pixels(*shape)
    (tmp_path / "x").write_bytes(pack(idx_bytes(array)))
    np.testing.assert_array_equal(read_idx(tmp_path / "x"), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file"),
        (b"\x89PNG\r\n", "starts with two zero bytes"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "IDX type 0x0d"),
        (b"\0\0\x08\x00", "1 to 4 dimensions"),
        (b"\0\0\x08\x05" + b"\0\0\0\x01" * 5 + b"x", "1 to 4 dimensions"),
        (b"\0\0\x08\x02\0\0\0\x01\0", "no complete header"),
        (b"\0\0\x08\x01\0\0\0\0", "empty shape"),
        (b"\0\0\x08\x03" + b"\0\0\x27\x10" * 3, "1,000,000,000,001 bytes.*the limit is 4,294,967,296"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "5 bytes.*only 3"),
        (b"\0\0\x08\x01\0\0\0\x02abc", "2 bytes.*holds more"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x03abc")[:-6], "cannot be read.*fetch"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x03abc") + b"tail", "cannot be read"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x03abc")[:10] + b"\xff" * 20, "cannot be read"),
    ],
)
def test_read_idx_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "x")


def test_read_idx_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_idx(tmp_path / "x")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("by_environment", [True, False])
def test_source_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, by_environment: bool) -> None:
    arrays = write_source(tmp_path / "fashion-mnist", suffix)
    if by_environment:
        monkeypatch.setenv("CAPSCORE_DATA", str(tmp_path))
    train, test = load("fashion-mnist", data_dir=None if by_environment else tmp_path)
    np.testing.assert_array_equal(train.images[:, 0], arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(test.labels, arrays["t10k-labels-idx1-ubyte"])
    assert train.classes[0] == "T-shirt/top"
    assert train.classes[9] == "Ankle boot"


def test_source_lacking_a_file_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooch, "retrieve", None)
    write_source(tmp_path / "mnist")
    (tmp_path / "mnist/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"has no t10k-labels-idx1-ubyte.*digits"):
        load("mnist", data_dir=tmp_path)
    monkeypatch.setenv("CAPSCORE_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"has no t10k-labels-idx1-ubyte.*CAPSCORE_DATA"):
        load("mnist")


def test_source_with_images_for_labels(tmp_path: Path) -> None:
    arrays = write_source(tmp_path / "mnist", "")
    swapped = idx_bytes(arrays["train-images-idx3-ubyte"])
    (tmp_path / "mnist/train-labels-idx1-ubyte").write_bytes(swapped)
    with pytest.raises(DataError, match=r"shape \(6, 5, 4\): 1 dimensions"):
        load("mnist", data_dir=tmp_path)


def test_download_takes_the_mirrors_in_turn_and_keeps_the_files(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = write_source(tmp_path / "served/good")
    write_source(tmp_path / "served/other")  # the same names with another content: fails the checksum
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "served/good").iterdir()}
    mirrors = tuple(f"{server}{folder}/" for folder in ("absent", "other", "good"))
    monkeypatch.setitem(SOURCES, "mnist", replace(SOURCES["mnist"], mirrors=mirrors, checksums=hashes))
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    train, test = load("mnist")
    np.testing.assert_array_equal(train.images[:, 0], arrays["train-images-idx3-ubyte"])
    assert len(test) == 4

    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: pytest.fail)  # nothing is downloaded twice
    assert len(load("mnist")[0]) == 6
    assert sorted(path.name for path in (tmp_path / "cache/capscore/mnist").iterdir()) == sorted(hashes)


def test_offline_says_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    with pytest.raises(DataError, match="--data-dir") as caught:
        load("mnist")
    for part in ("digits", "CAPSCORE_DATA", "unreachable", *SOURCES["mnist"].mirrors):
        assert part in str(caught.value)


def test_progress_bar_is_drawn_on_a_terminal() -> None:
    from rich.console import Console
    from rich.progress import Progress

    screen = io.StringIO()
    with Progress(console=Console(file=screen, force_terminal=True)) as progress:
        bar = capscore.data.source._Bar(progress, progress.add_task("train-images", total=None))
        bar.total = 10
        bar.update(4)
        bar.reset()
        bar.update(10)
        bar.close()
        assert progress.finished
    assert "train-images" in screen.getvalue()


# ------------------------------------------------------------------------------------------------ images


def test_read_image_in_its_own_colour_and_size(tmp_path: Path) -> None:
    grey, colour = pixels(5, 4), pixels(5, 4, 3)
    np.testing.assert_array_equal(read_image(write_image(tmp_path / "g.png", grey)), grey[None])
    rgb = read_image(write_image(tmp_path / "c.PNG", colour))
    np.testing.assert_array_equal(rgb, colour.transpose(2, 0, 1))
    assert rgb.flags.c_contiguous
    assert read_image(write_image(tmp_path / "c.jpg", colour)).shape == (3, 5, 4)


def test_read_image_in_another_colour_and_size(tmp_path: Path) -> None:
    red = np.full((8, 6, 3), (255, 0, 0), np.uint8)
    red[4:] = 0
    path = write_image(tmp_path / "x.png", red)
    grey = read_image(path, (1, 4, 2))
    assert grey.tolist() == [[[76, 76], [67, 67], [10, 10], [0, 0]]]
    np.testing.assert_array_equal(read_image(path, (3, 4, 2))[:, 0, 0], [255, 0, 0])


def test_read_image_scales_16_bits(tmp_path: Path) -> None:
    deep = np.array([[0, 128, 129, 257, 32767, 65535]], np.uint16)
    assert read_image(write_image(tmp_path / "x.png", deep)).tolist() == [[[0, 0, 1, 1, 127, 255]]]


def test_read_image_of_a_palette_and_of_one_bit(tmp_path: Path) -> None:
    Image.fromarray(np.array([[(9, 8, 7), (200, 0, 0)]], np.uint8)).quantize(2).save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png")[:, 0, 0].tolist() == [9, 8, 7]
    Image.fromarray(np.eye(2, dtype=bool)).save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png").tolist() == [[[255, 0], [0, 255]]]


def test_read_image_turns_as_the_camera_noted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90° clockwise
    path = write_image(tmp_path / "x.png", np.array([[1, 200]], np.uint8), exif=exif)
    assert read_image(path).tolist() == [[[1], [200]]]


def test_read_image_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write_image(tmp_path / "x.png", pixels(5, 4))
    with pytest.raises(DataError, match="2 channels"):
        read_image(good, (2, 5, 4))
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    with pytest.raises(DataError, match=r"cut\.png.*replace"):
        read_image(tmp_path / "cut.png")
    with pytest.raises(DataError, match="absent"):
        read_image(tmp_path / "absent.png")
    write_image(tmp_path / "not.png", pixels(5, 4), format="PPM")
    with pytest.raises(DataError, match=r"cannot be read as PNG, JPEG, BMP.*cannot identify"):
        read_image(tmp_path / "not.png")
    for limit in (15, 5):  # PIL warns above its limit and raises above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(DataError, match="bomb"):
                read_image(good)


def test_folder_is_split_by_class(tmp_path: Path) -> None:
    for name, value in (("cat", 10), ("ant", 20)):
        for i in range(5):
            marked = np.full((4, 4), value + i, np.uint8)
            marked[3, 3] = 255
            write_image(tmp_path / name / f"{i}.png", marked)
    (tmp_path / "ant/.hidden.png").write_bytes(b"")
    (tmp_path / "ant/notes.txt").write_text("not an image")
    (tmp_path / ".git").mkdir()
    (tmp_path / "readme.md").write_text("not a class")
    train, test = load(str(tmp_path))
    assert train.classes == ("ant", "cat")
    assert set(train.labels) == set(test.labels) == {0, 1}
    (note,) = train.notes
    assert "2 entries" in note
    assert "1 .md, 1 .txt" in note
    values = sorted([*train.images[:, 0, 0, 0], *test.images[:, 0, 0, 0]])
    assert values == [10, 11, 12, 13, 14, 20, 21, 22, 23, 24]


def test_folder_of_train_and_test_in_the_size_asked_for(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 2)):
        for name in "ab":
            for i in range(count):
                write_image(tmp_path / part / name / f"{i}.jpeg", pixels(9, 7 + i, 3))
    train, test = load(str(tmp_path), size=(1, 6, 5))
    assert train.images.shape == (6, 1, 6, 5)
    assert test.images.shape == (4, 1, 6, 5)
    assert load(str(tmp_path))[1].images.shape == (4, 3, 9, 7)  # as the first training image


def test_folder_refuses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class folders"):
        load(str(tmp_path))
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"a has no \.png"):
        load(str(tmp_path))
    for part, name in (("train", "a"), ("test", "b")):
        write_image(tmp_path / part / name / "0.png", pixels(2, 2))
    with pytest.raises(DataError, match="b is not a class of the training images: those are a"):
        load(str(tmp_path))
    (tmp_path / "train/a/1.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"1\.png"):
        load(str(tmp_path))


# --------------------------------------------------------------------------------------------------- npz


def test_npz_with_one_set_is_split(tmp_path: Path) -> None:
    images, labels = pixels(10, 5, 4), np.arange(10, dtype=np.uint8) % 2
    path = npz(tmp_path / "x.npz", images=images, labels=labels, classes=["no", "yes"])
    train, test = load(path)
    assert train.classes == ("no", "yes")
    assert train.images.shape[1:] == (1, 5, 4)
    assert len(train) + len(test) == 10
    assert set(train.labels) == set(test.labels) == {0, 1}
    np.testing.assert_array_equal(load(path, seed=5)[1].images, test.images)
    assert load(path, split=BySeed(0))[1].labels.tolist() == [0, 1]


@pytest.mark.parametrize("style", ["{}_images {}_labels", "x_{} y_{}"])
def test_npz_with_two_sets(tmp_path: Path, style: str) -> None:
    arrays = {}
    for part, count in (("train", 4), ("test", 3)):
        images, labels = style.format(part, part).split()
        arrays[images] = np.asfortranarray(RNG.random((count, 5, 4, 3)))
        arrays[labels] = np.arange(count, dtype=">i2")
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    train, test = load(str(tmp_path / "x.npz"))
    assert train.classes == ("0", "1", "2", "3")
    assert train.images.dtype == np.float32
    expected = arrays[style.format("test", "").split()[0]].transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_array_equal(test.images, expected)
    assert test.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("stored", "size", "read"),
    [
        ((4, 1, 5, 6), None, (1, 5, 6)),
        ((4, 5, 6, 3), None, (3, 5, 6)),
        ((4, 3, 5, 3), None, (3, 5, 3)),  # both would fit: channels first
        ((4, 3, 5, 3), (3, 3, 5), (3, 3, 5)),  # unless the size says otherwise
        ((4, 3, 5, 3), (3, 5, 3), (3, 5, 3)),
        ((4, 7, 5, 6), (7, 5, 6), (7, 5, 6)),
        ((4, 5, 6, 7), (7, 5, 6), (7, 5, 6)),
    ],
)
def test_npz_order_of_dimensions(
    tmp_path: Path, stored: tuple[int, ...], size: tuple[int, int, int] | None, read: tuple[int, int, int]
) -> None:
    path = npz(tmp_path / "x.npz", images=pixels(*stored), labels=[0, 0, 1, 1])
    assert load(path, size=size)[0].size == read


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((4, 2, 2), np.int64)}, "int64: store uint8"),
        ({"images": np.full((4, 2, 2), 255.0)}, "255.*divide"),
        ({"images": np.full((4, 2, 2), 1e300)}, "inf"),
        ({"images": np.zeros((4, 2), np.uint8)}, r"\(4, 2\)"),
        ({"images": np.zeros((0, 2, 2), np.uint8)}, "declares uint8"),
        ({"images": np.array([None] * 4)}, "images.npy holds object"),
        ({"images": np.zeros(4, "u1,u1")}, "images.npy holds"),
        ({"labels": np.zeros(4)}, r"labels are float64 \(4,\): store integers"),
        ({"labels": np.zeros((4, 1, 1), np.int64)}, r"labels are int64 \(4, 1, 1\)"),
        ({"labels": np.array([0, 1, 2, -1])}, "from -1"),
        ({"labels": np.array([0, 1, 2, 2**63], np.uint64)}, "from -9"),
        ({"images": np.zeros((70_000, 1, 1), np.uint8), "labels": np.arange(70_000)}, "70,000 classes"),
        ({"classes": np.array([1, 2])}, "classes are int64"),
        ({"classes": np.array([""])}, "from 0 to 1 but there are 1 classes"),
    ],
)
def test_npz_refuses(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arrays = {"images": np.zeros((4, 2, 2), np.uint8), "labels": np.array([0, 0, 1, 1])} | changes
    with pytest.raises(DataError, match=message):
        load(npz(tmp_path / "x.npz", **arrays))


def test_npz_with_other_names_or_no_archive_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has the arrays \['a', 'b'\].*x_train"):
        load(npz(tmp_path / "x.npz", a=1, b=2))
    (tmp_path / "y.npz").write_bytes(b"PK no")
    with pytest.raises(DataError, match="not a zip file"):
        load(str(tmp_path / "y.npz"))


# -------------------------------------------------------------------------------------------------- load


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(DataError, match=r"imagenet.*digits, mnist, fashion-mnist, cifar10.*-mnist, a folder.*\.npz"):
        load("imagenet")


def test_size_mismatch_names_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1×28×28.*3×32×32 is needed.*input 1×28×28"):
        load("digits", size=(3, 32, 32))
    sets = {"x_train": pixels(4, 5, 5), "y_train": [0, 1, 0, 1], "x_test": pixels(2, 5, 6), "y_test": [0, 1]}
    with pytest.raises(DataError, match=r"1×5×6.*1×5×5 is needed"):
        load(npz(tmp_path / "x.npz", **sets))


def test_import_is_cheap() -> None:
    heavy = ["PIL", "pooch", "requests", "rich", "torch", "cupy", "onnx"]
    code = f"import sys, capscore.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
