"""The datasets of the paper: generators, and readers on small files in the published formats."""

import gzip
import hashlib
import io
import os
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
from conftest import need
from hypothesis import given
from hypothesis import strategies as st

from capscore.data import Affine, Dataset, Framed, Pairs, Placed, Samples, load, standardised, window
from capscore.data.affine import ROTATION, SCALE, SHEAR, poses, transform
from capscore.data.dataset import positions
from capscore.data.draws import draws, integers_below, uniform
from capscore.data.norb import read_matrix
from capscore.data.progress import track
from capscore.data.source import SOURCES

RNG = np.random.default_rng(0)
MNIST = Path(os.environ.get("CAPSCORE_DATA", "")) / "mnist"
needs_mnist = pytest.mark.skipif(
    not (os.environ.get("CAPSCORE_DATA") and MNIST.is_dir()), reason="CAPSCORE_DATA has no mnist/"
)
DIGITS = load("digits")[1]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPSCORE_DATA", raising=False)


def pictures(count: int = 12, height: int = 5, width: int = 4, classes: int = 3, channels: int = 1) -> Dataset:
    images = RNG.integers(1, 256, (count, channels, height, width), np.uint8)
    return Dataset(images, np.arange(count) % classes, tuple(f"class {i}" for i in range(classes)))


GENERATORS: dict[str, Callable[[int], Samples]] = {
    "pairs": lambda seed: Pairs(pictures_once, seed, per_digit=5),
    "placed": lambda seed: Placed(pictures_once, 9, seed),
    "affine": lambda seed: Affine(pictures_once, 12, seed),
}
pictures_once = pictures(channels=2)


# ------------------------------------------------------------------------------------------------- windows


@given(st.data())
def test_window_is_what_loops_cut(data: st.DataObject) -> None:
    height, width = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    corners = data.draw(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=0, max_size=4))
    images = RNG.random((len(corners), 2, 4, 3), np.float32)
    top, left = np.array(corners, np.int64).reshape(-1, 2).T
    cut = window(images, top, left, height, width)
    expected = np.zeros((len(corners), 2, height, width), np.float32)
    for i, (y, x) in enumerate(corners):
        for row in range(height):
            for column in range(width):
                if 0 <= y + row < 4 and 0 <= x + column < 3:
                    expected[i, :, row, column] = images[i, :, y + row, x + column]
    np.testing.assert_array_equal(cut, expected)


def test_frame_of_a_larger_image_is_its_centre_and_the_margin_what_lies_around_it() -> None:
    data = pictures(3, 8, 10)
    framed = Framed(data, 4, 6)
    images, labels = framed.batch(slice(None))
    np.testing.assert_array_equal(images, data.batch(slice(None))[0][:, :, 2:6, 2:8])
    np.testing.assert_array_equal(labels, data.labels)
    np.testing.assert_array_equal(framed.batch(np.array([2]), 2)[0], data.batch(np.array([2]))[0])
    assert framed.batch(slice(None), 3)[0].shape == (3, 1, 10, 12)
    assert framed.size == (1, 4, 6)
    assert framed.shift == 2
    assert (len(framed), framed.classes) == (3, data.classes)


def test_frame_of_a_smaller_image_has_zeros_around_it() -> None:
    data = pictures(2)
    framed = Framed(data, 9, 10)
    images, _ = framed.batch(slice(None))
    np.testing.assert_array_equal(images[:, :, 2:7, 3:7], data.batch(slice(None))[0])
    assert np.count_nonzero(images) == data.images.size
    assert framed.shift == 2  # as far as the image stays within the frame


# --------------------------------------------------------------------------------------------------- draws


def test_draws_depend_on_seed_and_position_alone() -> None:
    whole = draws(3, np.arange(50), 4)
    np.testing.assert_array_equal(draws(3, np.array([7, 49, 7]), 4), whole[:, [7, 49, 7]])
    assert len(np.unique(np.concatenate([whole, draws(4, np.arange(50), 4), draws((3, 1), np.arange(50), 4)]))) > 590
    assert draws(0, np.array([2**40]), 1).shape == (1, 1)


def test_splitmix64_is_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Zero:
        def __init__(self, _: Any) -> None: ...

        def generate_state(self, *_: Any) -> np.ndarray:
            return np.zeros(1, np.uint64)

    monkeypatch.setattr(np.random, "SeedSequence", Zero)
    # The first three outputs of the reference implementation from state 0.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert draws(0, np.arange(3), 1)[0].tolist() == expected
    assert draws(0, np.array([0]), 3)[:, 0].tolist() == expected


def test_draws_fill_their_ranges_evenly() -> None:
    bits = draws(0, np.arange(60_000), 1)[0]
    counts = np.bincount(integers_below(bits, 6), minlength=6)
    assert counts.min() > 9_500  # 10,000 each but for chance, six deviations
    assert counts.sum() == 60_000
    assert integers_below(bits[:3], np.array([1, 1, 1])).tolist() == [0, 0, 0]
    numbers = uniform(bits, -2, 3)
    assert -2 <= numbers.min() < -1.99 < 2.99 < numbers.max() < 3
    assert abs(numbers.mean() - 0.5) < 0.03


def test_positions() -> None:
    assert positions(slice(1, None, 2), 6).tolist() == [1, 3, 5]
    assert positions(np.array([0, -1], np.int8), 300).tolist() == [0, 299]
    assert positions(np.array([], np.int64), 3).tolist() == []
    for wrong in (np.array([3]), np.array([-4]), np.array([True, False, True]), np.array([[0]])):
        with pytest.raises(IndexError):
            positions(wrong, 3)


# ---------------------------------------------------------------------------------------------- generators


@pytest.mark.parametrize("name", GENERATORS)
@given(data=st.data())
def test_generators_are_functions_of_seed_and_position(name: str, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32))
    samples = GENERATORS[name](seed)
    index = np.array(data.draw(st.lists(st.integers(0, len(samples) - 1), max_size=5)), np.int64)
    whole, labels = samples.batch(slice(None))
    some, some_labels = GENERATORS[name](seed).batch(index)
    np.testing.assert_array_equal(some, whole[index])
    np.testing.assert_array_equal(some_labels, labels[index])
    np.testing.assert_array_equal(labels, samples.labels)
    assert whole.shape == (len(samples), *samples.size)
    assert whole.dtype == np.float32
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert np.any(GENERATORS[name](seed + 1).batch(slice(None))[0] != whole)


@pytest.mark.parametrize("name", GENERATORS)
def test_margin_adds_zeros_around_what_is_drawn(name: str) -> None:
    samples = GENERATORS[name](0)
    inner, _ = samples.batch(slice(None))
    outer, _ = samples.batch(slice(None), 2)
    np.testing.assert_array_equal(outer[:, :, 2:-2, 2:-2], inner)
    assert np.count_nonzero(outer) == np.count_nonzero(inner)


@given(seed=st.integers(0, 1000), reach=st.integers(0, 4))
def test_pairs_show_two_classes_within_their_reach(seed: int, reach: int) -> None:
    data = pictures(9, classes=4)
    pairs = Pairs(data, seed, 6, reach)
    parts, labels = pairs.parts(slice(None))
    images, _ = pairs.batch(slice(None))
    assert len(pairs) == 54
    assert pairs.size == (1, 5 + 2 * reach, 4 + 2 * reach)
    assert np.all(labels[:, 0] != labels[:, 1])
    np.testing.assert_array_equal(labels[:, 0], np.tile(data.labels, 6))
    np.testing.assert_array_equal(images, np.minimum(parts[:, 0] + parts[:, 1], 1))
    whole = data.batch(slice(None))[0]
    for k in range(len(pairs)):
        for part, label in zip(parts[k], labels[k], strict=True):
            rows, columns = np.nonzero(part.any(0).any(1))[0], np.nonzero(part.any(0).any(0))[0]
            found = part[:, rows[0] : rows[0] + 5, columns[0] : columns[0] + 4]
            assert found.shape == (1, 5, 4)  # nothing was cut off
            assert any(np.array_equal(found, image) for image in whole[data.labels == label])
    np.testing.assert_array_equal(parts[:9].max((2, 3, 4)) > 0, True)


def test_pairs_draw_every_partner_and_every_place_evenly() -> None:
    data = pictures(6, 1, 1, classes=3)
    data = replace(data, images=np.arange(1, 7, dtype=np.uint8).reshape(6, 1, 1, 1))
    parts, _ = Pairs(data, 0, per_digit=4000, reach=1).parts(slice(None))
    first, second = (np.rint(parts[:, i] * 255).astype(int) for i in (0, 1))
    for i in range(6):
        chosen = second[first.max((1, 2, 3)) == i + 1].max((1, 2, 3))
        others = [j + 1 for j in range(6) if j % 3 != i % 3]
        counts = np.bincount(chosen, minlength=7)
        assert set(np.flatnonzero(counts)) == set(others)
        assert counts[others].min() > 850  # 1,000 each
    for part in (first, second):
        places = (part > 0).sum(0)[0]
        assert places.min() > 2300  # 24,000 / 9 each
        assert places.sum() == 24_000


def test_pairs_of_a_set_are_the_first_of_a_larger_one() -> None:
    few, many = Pairs(DIGITS, per_digit=2), Pairs(DIGITS)
    assert len(many) == 1_000_000
    for a, b in zip(few.batch(slice(1990, 2000)), many.batch(slice(1990, 2000)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert many.labels.shape == (1_000_000, 2)
    assert replace(many, per_digit=3).size == (1, 36, 36)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pairs(replace(pictures(), labels=np.ones(12, np.int64))),
        lambda: Pairs(Pairs(pictures())),
        lambda: Pairs(pictures(), per_digit=0),
        lambda: Pairs(pictures(), reach=-1),
        lambda: Placed(pictures(), 4),
        lambda: Framed(pictures(), 0, 3),
        lambda: Affine(pictures(), 0),
    ],
)
def test_generators_refuse(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"pairs|canvas|frame"):
        make()


def test_placed_images_are_whole_and_everywhere() -> None:
    data = pictures(2000)
    images, labels = Placed(data, 7, seed=1).batch(slice(None))
    np.testing.assert_array_equal(labels, data.labels)
    starts = np.stack([images.any((1, 3)).argmax(1), images.any((1, 2)).argmax(1)])
    np.testing.assert_array_equal(window(images, *starts, 5, 4), data.batch(slice(None))[0])
    assert np.unique(starts, axis=1).shape == (2, 3 * 4)


# -------------------------------------------------------------------------------------------------- affine


def test_transform_is_scipys() -> None:
    ndimage = need("scipy.ndimage", "scipy")
    images = RNG.random((20, 2, 9, 7), np.float32)
    matrix, origin = poses(images, draws(5, np.arange(20), 6), 11)
    moved = transform(images, matrix, origin, 11)
    for i in range(20):
        inverse = np.linalg.inv(matrix[:, :, i])
        offset = np.array([4, 3]) - inverse @ origin[:, i]
        for channel in (0, 1):
            expected = ndimage.affine_transform(
                images[i, channel].astype(float), inverse, offset, (11, 11), order=1, mode="grid-constant"
            )
            np.testing.assert_allclose(moved[i, channel], expected, rtol=0, atol=1e-6)


def test_identity_and_moves_keep_the_pixels() -> None:
    images = RNG.random((3, 1, 5, 5), np.float32)
    matrix = np.tile(np.eye(2)[:, :, None], 3)
    origin = np.array([[2.0, 3, 4], [2, 3, 2]])
    expected = window(images, np.array([0, -1, -2]), np.array([0, -1, 0]), 7, 7)
    np.testing.assert_allclose(transform(images, matrix, origin, 7), expected, rtol=0, atol=1e-7)


def test_poses_are_of_the_family() -> None:
    images = np.ones((4000, 1, 3, 3), np.float32)
    matrix, _ = poses(images, draws(0, np.arange(4000), 6), 40)
    down, right = matrix[:, 0], matrix[:, 1]  # images of the unit vectors
    turn = np.rad2deg(np.arctan2(-right[0], right[1]))
    wide = np.hypot(*right)
    tall = np.linalg.det(matrix.transpose(2, 0, 1)) / wide
    slant = (down * right).sum(0) / wide / tall
    for values, (low, high) in ((turn, (-ROTATION, ROTATION)), (wide, SCALE), (tall, SCALE), (slant, (-SHEAR, SHEAR))):
        room = (high - low) / 100
        assert low - 1e-9 <= values.min() < low + room
        assert high - room < values.max() <= high + 1e-9
        assert abs(values.mean() - (low + high) / 2) < room * 3


def test_affine_keeps_all_ink_on_the_canvas_and_uses_all_of_it() -> None:
    data = Affine(DIGITS, seed=2)
    images, labels = data.batch(slice(None))
    beyond, _ = data.batch(slice(None), 5)
    assert images.shape == (1000, 1, 40, 40)
    np.testing.assert_array_equal(labels, DIGITS.labels)
    np.testing.assert_allclose(beyond.sum((1, 2, 3)), images.sum((1, 2, 3)), rtol=1e-6)
    ink = images.sum((1, 2, 3)) / DIGITS.batch(slice(None))[0].sum((1, 2, 3))
    assert 0.6 < ink.min() < 0.7  # 0.8² = 0.64 to 1.2² = 1.44 times the area
    assert 1.35 < ink.max() < 1.5
    seen = images.any((0, 1))
    assert seen[0].any()
    assert seen[-1].any()
    assert seen[:, 0].any()
    assert seen[:, -1].any()


def test_affine_of_blank_and_of_too_large_images() -> None:
    blank = Dataset(np.zeros((5, 1, 4, 4), np.uint8), np.zeros(5, np.int64), ("a",))
    assert not Affine(blank).batch(slice(None))[0].any()
    full = Dataset(np.full((5, 1, 60, 60), 255, np.uint8), np.zeros(5, np.int64), ("a",))
    images, _ = Affine(full).batch(slice(None))
    assert images[:, :, 12:28, 12:28].min() > 0.999
    assert Affine(full).batch(np.array([], np.int64))[0].shape == (0, 1, 40, 40)


# -------------------------------------------------------------------------------------------- standardised


def test_standardised_images_have_mean_half_and_deviation_a_sixth() -> None:
    images = RNG.normal(90, 10, (5, 3, 16, 16)).clip(0, 255).astype(np.uint8)
    images[4] = 7
    data = Dataset(images, np.zeros(5, np.int64), ("a",))
    result = standardised(data)
    assert result.images.dtype == np.uint8
    x, _ = result.batch(slice(0, 4))
    np.testing.assert_allclose(x.mean((1, 2, 3)), 0.5, atol=0.003)
    np.testing.assert_allclose(x.std((1, 2, 3)), 1 / 6, atol=0.003)
    assert np.ptp(result.images[4]) == 0
    brighter = standardised(replace(data, images=np.where(images > 200, images, images + 40).astype(np.uint8)))
    assert np.abs(brighter.images[:4].astype(int) - result.images[:4]).max() <= 1


# ------------------------------------------------------------------------------------------------- CIFAR-10

CIFAR = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def write_cifar(folder: Path, counts: tuple[int, ...] = (2, 1, 1, 1, 3, 2)) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    records = {}
    for name, count in zip(CIFAR, counts, strict=True):
        records[name] = RNG.integers(0, 256, (count, 3073), np.uint8)
        records[name][:, 0] %= 10
        (folder / name).write_bytes(records[name].tobytes())
    return records


def pack_cifar(folder: Path) -> Path:
    """The archive as it is published, of the files in `folder`/cifar-10-batches-bin."""
    path = folder / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder / "cifar-10-batches-bin", "cifar-10-batches-bin")
    return path


@pytest.mark.parametrize("layout", ["files", "folder", "archive"])
def test_cifar10(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "cifar10"
    records = write_cifar(folder if layout == "files" else folder / "cifar-10-batches-bin")
    if layout == "archive":
        (folder / "cifar-10-batches-bin/batches.meta.txt").write_text("airplane\n")
        pack_cifar(folder)
        for path in (folder / "cifar-10-batches-bin").iterdir():
            path.unlink()
    train, test = load("cifar10", data_dir=tmp_path)
    assert (len(train), len(test)) == (8, 2)
    assert train.size == (3, 24, 24)
    assert train.shift == 4
    assert train.classes[0] == "airplane"
    written = np.concatenate([records[name] for name in CIFAR[:5]])
    pixels = written[:, 1:].reshape(-1, 3, 32, 32) / 255
    images, labels = train.batch(slice(None))
    np.testing.assert_allclose(images, pixels[:, :, 4:28, 4:28], rtol=1e-6)
    np.testing.assert_array_equal(labels, written[:, 0])
    np.testing.assert_allclose(train.batch(np.array([6]), train.shift)[0], pixels[[6]], rtol=1e-6)
    assert load("cifar10", data_dir=tmp_path, size=(3, 32, 32))[1].batch(slice(None))[0].shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"3×32×32.*3×40×40 is needed"):
        load("cifar10", data_dir=tmp_path, size=(3, 40, 40))


# ------------------------------------------------------------------------------------------------ smallNORB


def norb_bytes(array: np.ndarray) -> bytes:
    magic = 0x1E3D4C55 if array.dtype == np.uint8 else 0x1E3D4C54
    sizes = [*array.shape, 1, 1][: max(3, array.ndim)]
    return struct.pack(f"<{2 + len(sizes)}i", magic, array.ndim, *sizes) + array.tobytes()


def write_norb(folder: Path, count: int = 5, suffix: str = "") -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part in ("5x46789x9x18x6x2x96x96-training", "5x01235x9x18x6x2x96x96-testing"):
        arrays[f"{part}-dat"] = RNG.integers(0, 256, (count, 2, 96, 96), np.uint8)
        arrays[f"{part}-cat"] = np.arange(count, dtype=np.int32) % 5
    for name, array in arrays.items():
        content = norb_bytes(array)
        (folder / f"smallnorb-{name}.mat{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return arrays


@pytest.mark.parametrize(("count", "suffix"), [(5, ".gz"), (130, "")])
def test_smallnorb(tmp_path: Path, count: int, suffix: str) -> None:
    arrays = write_norb(tmp_path / "smallnorb", count, suffix)
    train, test = load("smallnorb", data_dir=tmp_path)
    assert (len(train), train.size, train.shift) == (count, (2, 32, 32), 8)
    pixels = arrays["5x01235x9x18x6x2x96x96-testing-dat"].astype(float)
    halved = (pixels[..., ::2, ::2] + pixels[..., 1::2, ::2] + pixels[..., ::2, 1::2] + pixels[..., 1::2, 1::2]) / 4
    images, labels = test.batch(slice(None))
    np.testing.assert_allclose(images, halved[:, :, 8:40, 8:40] / 255, atol=0.501 / 255)
    np.testing.assert_array_equal(labels, arrays["5x01235x9x18x6x2x96x96-testing-cat"])
    assert train.classes == ("animal", "human", "airplane", "truck", "car")
    assert load("smallnorb", data_dir=tmp_path, size=(2, 48, 48))[0].size == (2, 48, 48)


def test_read_matrix_of_integers(tmp_path: Path) -> None:
    info = RNG.integers(-9, 9, (6, 4), np.int32)  # as in the -info files: written with a third size, 1
    (tmp_path / "x").write_bytes(norb_bytes(info))
    np.testing.assert_array_equal(read_matrix(tmp_path / "x"), info)


# ------------------------------------------------------------------------------------------ SVHN and affNIST


def savemat(path: Path, variables: dict[str, Any], compressed: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    need("scipy.io", "scipy").savemat(path, variables, do_compression=compressed)


@pytest.mark.parametrize("compressed", [True, False])
def test_svhn(tmp_path: Path, compressed: bool) -> None:
    written = {}
    for part, count in (("train", 11), ("test", 3)):
        x = RNG.integers(0, 256, (32, 32, 3, count), np.uint8)
        written[part] = x
        y = (np.arange(count) % 10 + 1.0)[:, None]
        savemat(tmp_path / f"svhn/{part}_32x32.mat", {"other": "text", "X": x, "y": y}, compressed)
    train, test = load("svhn", data_dir=tmp_path, size=(3, 32, 32))
    assert train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    images, _ = test.batch(slice(None))
    for i in range(3):
        for channel in range(3):
            np.testing.assert_allclose(images[i, channel], written["test"][:, :, channel, i] / 255, rtol=1e-6)


def affnist_struct(images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The struct of the published files around images [N, 40, 40] and labels [N]."""
    count = len(images)
    fields = {
        "affine_params": RNG.random((6, count)),
        "human_readable_transform": RNG.random((6, count)),
        "image": images.reshape(count, 1600).T,
        "label_one_of_n": np.eye(10, dtype=np.uint8)[:, labels],
        "label_int": labels[None].astype(np.uint8),
        "original_id": np.arange(count, dtype=np.int32)[None],
    }
    return {"affNISTdata": fields}


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("layout", ["official", "other"])
def test_affnist(tmp_path: Path, layout: str, compressed: bool) -> None:
    folder = tmp_path / "affnist"
    images, labels = RNG.integers(0, 256, (12, 40, 40), np.uint8), RNG.permutation(12) % 10
    trained = "training_and_validation_batches" if layout == "official" else "training_batches"
    tested = ["test.mat"] if layout == "official" else ["test_batches/1.mat", "test_batches/2.mat"]
    for i in range(3):
        some = affnist_struct(images[4 * i : 4 * i + 4], labels[4 * i : 4 * i + 4])
        savemat(folder / trained / f"{i + 1}.mat", some, compressed)
    for file in tested:
        savemat(folder / file, affnist_struct(images[:3], labels[:3]), compressed)
    train, test = load("affnist", data_dir=tmp_path, size=(1, 40, 40))
    np.testing.assert_array_equal(train.images[:, 0], images)
    np.testing.assert_array_equal(train.labels, labels)
    assert len(test) == 3 * len(tested)
    np.testing.assert_allclose(test.batch(slice(0, 3))[0][:, 0], images[:3] / 255, rtol=1e-6)


def test_affnist_batches_of_different_sizes(tmp_path: Path) -> None:
    for i, count in ((1, 3), (2, 2)):
        images, labels = np.zeros((count, 40, 40), np.uint8), np.arange(count)
        savemat(tmp_path / f"affnist/training_batches/{i}.mat", affnist_struct(images, labels), True)
    with pytest.raises(ValueError, match=r"2\.mat has 2 images but 1\.mat has 3"):
        load("affnist", data_dir=tmp_path)


def test_affnist_is_not_downloaded() -> None:
    with pytest.raises(
        ValueError, match=r"affnist is not downloaded: fetch it from https://www\.cs\.toronto.*CAPSCORE"
    ):
        load("affnist")


# -------------------------------------------------------------------------------------------------- by name


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A small MNIST, and affNIST's test.mat."""
    (tmp_path / "mnist").mkdir()
    for part, some in (("train", slice(0, 1000, 40)), ("t10k", slice(1, 1000, 50))):
        (tmp_path / f"mnist/{part}-images-idx3-ubyte").write_bytes(idx_bytes(DIGITS.images[some, 0]))
        (tmp_path / f"mnist/{part}-labels-idx1-ubyte").write_bytes(idx_bytes(DIGITS.labels[some].astype(np.uint8)))
    savemat(tmp_path / "affnist/test.mat", affnist_struct(np.zeros((2, 40, 40), np.uint8), np.array([7, 1])), True)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "size", "shift", "counts"),
    [
        ("multimnist", (1, 36, 36), 0, (25_000, 20_000)),
        ("mnist-40", (1, 40, 40), 6, (25, 20)),
        ("mnist-affnist", (1, 40, 40), 6, (25, 2)),
        ("affine-mnist", (1, 40, 40), 0, (25, 20)),
    ],
)
def test_drawn_datasets_by_name(
    data_dir: Path, name: str, size: tuple[int, int, int], shift: int, counts: tuple[int, int]
) -> None:
    sets = load(name, data_dir=data_dir, size=size, seed=3)
    assert tuple(map(len, sets)) == counts
    assert sets[0].shift == shift
    again = load(name, data_dir=data_dir, seed=3)
    for one, other in zip(sets, again, strict=True):
        assert one.size == size
        for a, b in zip(one.batch(slice(0, 20)), other.batch(slice(0, 20)), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="is needed"):
        load(name, data_dir=data_dir, size=(1, 28, 28))


def test_training_on_40_pixels_finds_the_digit_anywhere(data_dir: Path) -> None:
    train, test = load("mnist-40", data_dir=data_dir)
    images, _ = train.batch(slice(None), train.shift)
    small = Dataset(DIGITS.images[0:1000:40], DIGITS.labels[0:1000:40], DIGITS.classes)
    np.testing.assert_array_equal(images[:, :, 12:40, 12:40], small.batch(slice(None))[0])
    assert np.any(test.batch(slice(None))[0] != load("mnist-40", data_dir=data_dir, seed=1)[1].batch(slice(None))[0])


@needs_mnist
def test_multimnist_is_as_large_as_the_papers() -> None:
    train, test = load("multimnist", data_dir=MNIST.parent)
    assert (len(train), len(test)) == (60_000_000, 10_000_000)
    index = np.array([0, 59_999_999, 31_415_926])
    images, labels = train.batch(index)
    assert images.shape == (3, 1, 36, 36)
    assert labels[0, 0] == 5
    assert np.all(labels[:, 0] != labels[:, 1])


# ----------------------------------------------------------------------------------- downloads and progress


@pytest.mark.parametrize("name", ["cifar10", "smallnorb"])
def test_download(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    served, cache = tmp_path / "served", tmp_path / "cache"
    if name == "cifar10":
        write_cifar(served / "cifar-10-batches-bin")
        pack_cifar(served)
    else:
        write_norb(served, suffix=".gz")
    algorithm = "sha256" if name == "cifar10" else "md5"
    checksums = {
        file: f"{algorithm}:{hashlib.new(algorithm, (served / file).read_bytes()).hexdigest()}"
        for file in SOURCES[name].checksums
    }
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], mirrors=(server,), checksums=checksums))
    monkeypatch.setattr(pooch, "os_cache", lambda project: cache / project)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert len(load(name)[0]) > 0
    assert sorted(path.name for path in (cache / "capscore" / name).iterdir()) == sorted(checksums)
    (tmp_path / "usual").touch()
    modes = {path.stat().st_mode for path in (cache / "capscore" / name).iterdir()}
    assert modes == {(tmp_path / "usual").stat().st_mode}

    file = next(iter(checksums))
    (cache / "capscore" / name / file).unlink()
    (served / file).write_bytes((served / file).read_bytes()[:-9])  # a transfer that was cut: nothing may stay
    with pytest.raises(ValueError, match=f"(?s){name} could not be downloaded.*{file}"):
        load(name)
    assert sorted(path.name for path in (cache / "capscore" / name).iterdir()) == sorted({*checksums} - {file})


def test_every_download_has_a_checksum_of_the_right_length() -> None:
    for source in SOURCES.values():
        assert bool(source.checksums) == bool(source.mirrors) != bool(source.page)
        for checksum in source.checksums.values():
            assert len(bytes.fromhex(checksum.removeprefix("md5:"))) == (16 if checksum.startswith("md5:") else 32)


def test_track_draws_a_bar_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from capscore import terminal as module

    plain = module.Terminal
    for terminal in (True, False):
        screen = io.StringIO()
        monkeypatch.setattr(module, "Terminal", lambda stderr: plain(file=screen, force_terminal=terminal))  # noqa: B023
        assert list(track(range(3), "batches of affnist")) == [0, 1, 2]
        assert ("batches of affnist" in screen.getvalue()) == terminal
