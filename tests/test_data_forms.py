"""Data in the forms that people have them in: arrays, lines of pixels, pickles, IDX files, datasets of PyTorch."""

import pickle
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import need
from PIL import Image

from capscore import PRESETS
from capscore.backends import numpy as caps
from capscore.data import Dataset, Items, Pairs, fingerprint, load, rows, whole
from capscore.errors import DataError, ShapeError
from capscore.finetune import for_classes
from capscore.train import Recipe, batches, train

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 5, 6), np.uint8)
LABELS = np.arange(30) % 3


def both(path: Path, **options: Any) -> Dataset:
    found = load(str(path), split=whole, **options)[0]
    assert isinstance(found, Dataset)
    return found


# ------------------------------------------------------------------------------------------------------- labels


def test_labels_of_one_column_and_one_hot(tmp_path: Path) -> None:
    for name, labels in {
        "column": LABELS[:, None],
        "hot": np.eye(3)[LABELS],
        "flags": np.eye(3, dtype=bool)[LABELS],
    }.items():
        np.savez(tmp_path / f"{name}.npz", images=IMAGES, labels=labels)
        found = both(tmp_path / f"{name}.npz")
        assert found.labels.tolist() == LABELS.tolist()
        assert found.classes == ("0", "1", "2")
        assert ("one-hot" in "".join(found.notes)) == (name != "column")
    for labels, message in (
        (LABELS / 2, "store integers"),
        (np.full((30, 3), 2), "rows must be 3 numbers that are 0 or 1"),
        (np.zeros((30, 2, 2), int), r"labels are int64 \(30, 2, 2\)"),
    ):
        np.savez(tmp_path / "wrong.npz", images=IMAGES, labels=labels)
        with pytest.raises(DataError, match=message):
            load(str(tmp_path / "wrong.npz"))


@pytest.mark.parametrize(
    ("shape", "size"),
    [((30, 2, 9, 8), (2, 9, 8)), ((30, 9, 8, 2), (2, 9, 8)), ((30, 4, 9, 9), (4, 9, 9)), ((30, 9, 9, 5), (5, 9, 9))],
)
def test_channels_are_where_there_are_fewest(shape: tuple[int, ...], size: tuple[int, ...], tmp_path: Path) -> None:
    images = RNG.integers(0, 256, shape, np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=LABELS)
    found = both(tmp_path / "x.npz")
    assert found.size == size
    np.testing.assert_array_equal(found.images, images if shape[1] == size[0] else images.transpose(0, 3, 1, 2))


def test_channels_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((30, 8, 8, 8), np.uint8), labels=LABELS)
    with pytest.raises(DataError, match="fewer channels than pixels"):
        load(str(tmp_path / "x.npz"))
    assert both(tmp_path / "x.npz", size=(8, 8, 8)).size == (8, 8, 8)


# -------------------------------------------------------------------------------------------------------- forms


def test_npy_pairs(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "labels.npy", LABELS)
    for path in (tmp_path, tmp_path / "images.npy"):
        found = both(path)
        np.testing.assert_array_equal(found.images[:, 0], IMAGES)
        assert found.labels.tolist() == LABELS.tolist()
    for name, array in {
        "x_train": IMAGES / 255,
        "y_train": LABELS,
        "x_test": IMAGES[:3] / 255,
        "y_test": LABELS[:3],
    }.items():
        (tmp_path / "four").mkdir(exist_ok=True)
        np.save(tmp_path / "four" / f"{name}.npy", array)
    learn, test = load(str(tmp_path / "four"))
    assert (len(learn), len(test)) == (30, 3)
    (tmp_path / "labels.npy").write_bytes((tmp_path / "labels.npy").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"labels\.npy declares"):
        load(str(tmp_path))
    np.save(tmp_path / "labels.npy", np.array([{}] * 30, object))
    with pytest.raises(DataError, match="store numbers"):
        load(str(tmp_path))


def test_lines_of_pixels(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (30, 36), np.uint8)
    table = np.column_stack([LABELS, images])
    np.savetxt(tmp_path / "bare.csv", table, "%d", ",")
    header = "label," + ",".join(f"pixel{i}" for i in range(36))
    np.savetxt(tmp_path / "headed_train.csv", table, "%d", ",", header=header, comments="")
    for name in ("bare", "headed_train"):
        found = both(tmp_path / f"{name}.csv")
        np.testing.assert_array_equal(found.images, images.reshape(30, 1, 6, 6))
        assert found.labels.tolist() == LABELS.tolist()
    np.savetxt(tmp_path / "headed_test.csv", table[:4], "%d", ",", header=header, comments="")
    assert [len(part) for part in load(str(tmp_path / "headed_train.csv"))] == [30, 4]
    last, pixels = np.roll(table, -1, 1), ",".join(f"pixel{i}" for i in range(36))
    np.savetxt(tmp_path / "last.csv", last, "%d", ",", header=f"{pixels},class", comments="")
    found = both(tmp_path / "last.csv")
    np.testing.assert_array_equal(found.images, images.reshape(30, 1, 6, 6))
    assert found.labels.tolist() == LABELS.tolist()
    np.savetxt(tmp_path / "none.csv", last, "%d", ",", header=f"{pixels},pixel36", comments="")
    with pytest.raises(DataError, match="no column of labels, only pixel0 to pixel36: call it label or class"):
        load(str(tmp_path / "none.csv"))
    np.savetxt(tmp_path / "odd.csv", table[:, :-1], "%d", ",")
    with pytest.raises(DataError, match="35 values a line"):
        load(str(tmp_path / "odd.csv"))


def cifar(folder: Path, protocol: int = 2) -> np.ndarray:
    images = RNG.integers(0, 256, (12, 3072), np.uint8)
    for i, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        told = {b"data": images[2 * i : 2 * i + 2], b"labels": [i, 9], b"batch_label": b"x"}
        (folder / name).write_bytes(pickle.dumps(told, protocol))
    names = [f"class {i}".encode() for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol))
    return images


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar_in_its_python_form(protocol: int, tmp_path: Path) -> None:
    images = cifar(tmp_path, protocol)
    learn, test = load(str(tmp_path))
    np.testing.assert_array_equal(learn.batch(slice(None))[0], images[:10].reshape(-1, 3, 32, 32) / np.float32(255))
    assert (test.labels.tolist(), test.classes[9]) == ([5, 9], "class 9")


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def test_a_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cifar(tmp_path)
    sound = (tmp_path / "data_batch_2").read_bytes()
    big = np.zeros((2, 3072), np.uint8)
    for wrong, message in (
        (pickle.dumps({b"data": Evil(), b"labels": [1]}), "cannot be read"),
        (sound[:-40], "cannot be read|fetch"),
        (pickle.dumps({b"data": big.astype(np.int16), b"labels": [1, 1]}, 2), "no array of unsigned bytes"),
        (pickle.dumps({b"data": big, b"labels": [1, 77]}, 2), "and 2 labels"),
        (pickle.dumps({b"data": big}, 2), "has no labels"),
        (pickle.dumps([1]), "has no data"),
    ):
        (tmp_path / "data_batch_2").write_bytes(wrong)
        with pytest.raises(DataError, match=message):
            load(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def test_any_pair_of_idx_files(tmp_path: Path) -> None:
    (tmp_path / "emnist-letters-train-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (tmp_path / "emnist-letters-train-labels-idx1-ubyte").write_bytes(idx(LABELS + 1))
    for path in (tmp_path, tmp_path / "emnist-letters-train-images-idx3-ubyte"):
        found = both(path)
        assert (found.classes, found.labels.tolist()) == (("1", "2", "3"), LABELS.tolist())
    (tmp_path / "emnist-letters-test-images-idx3-ubyte").write_bytes(idx(IMAGES[:6]))
    (tmp_path / "emnist-letters-test-labels-idx1-ubyte").write_bytes(idx(LABELS[:6] + 1))
    assert [len(part) for part in load(str(tmp_path))] == [30, 6]


# ------------------------------------------------------------------------------------------- more than memory holds


def test_many_images_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(RNG.integers(0, 256, (9, 8), np.uint8)).save(tmp_path / "images" / name / f"{i}.png")
    held = load(str(tmp_path / "images"))
    np.save(tmp_path / "images.npy", np.moveaxis(RNG.integers(0, 256, (30, 3, 9, 8), np.uint8), 1, 3))
    np.save(tmp_path / "labels.npy", LABELS)
    array = load(str(tmp_path / "images.npy"))
    monkeypatch.setattr(rows, "HELD", 100)
    monkeypatch.setattr("capscore.data.arrays.HELD", 100)
    for before, path in ((held, tmp_path / "images"), (array, tmp_path / "images.npy")):
        for memory, disk in zip(before, load(str(path)), strict=True):
            assert isinstance(disk, Dataset)
            assert isinstance(disk.images, rows.Rows)
            assert disk.images.nbytes == 8 * len(disk)
            for index in (slice(None), slice(3, 1), np.array([2, 0, 2]), slice(0, 9, 2)):
                for a, b in zip(memory.batch(index, 1), disk.batch(index, 1), strict=True):
                    np.testing.assert_array_equal(a, b)
    learn, test = load(str(tmp_path / "images"))
    net = caps.CapsNet(
        PRESETS["small"].replace(input=(1, 9, 8), layers=small_layers(), decoder=None), classes=("a", "b")
    )
    recipe = Recipe(epochs=1, batch=8, shift=1)
    assert train(net, caps.Learner(net, recipe.reconstruction), learn, test, recipe, tmp_path / "run")


def test_reading_and_batching_many_images_takes_the_memory_of_a_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(120):
            image = RNG.integers(0, 256, (128, 128, 3), np.uint8)
            Image.fromarray(image).save(tmp_path / name / f"{i}.png", compress_level=0)
    peaks = []
    for held in (rows.HELD, 0):
        monkeypatch.setattr(rows, "HELD", held)
        load(str(tmp_path))  # what is loaded and made once
        tracemalloc.start()
        learn, test = load(str(tmp_path))
        fingerprint(learn)
        for batch in batches(learn, Recipe(batch=2, shift=2), 0):
            assert len(batch.images) in (1, 2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    size = (len(learn) + len(test)) * 3 * 128 * 128
    assert peaks[0] > size
    assert peaks[1] < 0.3 * size


def small_layers() -> tuple[Any, ...]:
    from capscore import DenseCaps, PrimaryCaps

    return PrimaryCaps(2, 4, 5, stride=2), DenseCaps(2, 4)


# --------------------------------------------------------------------------------------------------------- PyTorch


def test_a_dataset_gives_its_images_one_by_one() -> None:
    data = Dataset(IMAGES[:, None], LABELS, ("a", "b", "c"))
    assert [label for _, label in data] == LABELS.tolist()
    image, label = data[-1]
    assert (image.shape, image.dtype, label) == ((1, 5, 6), np.float32, 2)
    assert Pairs(data)[3][1].shape == (2,)
    with pytest.raises(IndexError, match="there is no image 30: there are 30"):
        data[30]


def test_datasets_of_pytorch_train_and_ours_go_into_its_loader(tmp_path: Path) -> None:
    torch = need("torch", "torch")
    from capscore.backends import torch as torch_caps

    digits, test = load("digits")
    images, labels = digits.batch(slice(0, 200))
    theirs = torch.utils.data.TensorDataset(torch.tensor(images), torch.tensor(labels))
    recipe = Recipe(epochs=1, batch=50, shift=0)

    def trained(data: Any, folder: str) -> Any:
        net = torch_caps.CapsNet(PRESETS["small"], classes=digits.classes)
        train(net, torch_caps.Learner(net, recipe.reconstruction), data, test, recipe, tmp_path / folder)
        return net.predict(images[:20])

    own = trained(Dataset(images, labels, digits.classes), "own")
    np.testing.assert_array_equal(trained(theirs, "dataset"), own)
    np.testing.assert_array_equal(trained(torch.utils.data.DataLoader(theirs, batch_size=9), "loader"), own)
    (batch, told) = next(iter(torch.utils.data.DataLoader(test, batch_size=8)))
    np.testing.assert_array_equal(batch.numpy(), test.batch(slice(0, 8))[0])
    assert told.tolist() == test.labels[:8].tolist()


class Theirs:
    """As torchvision's: `targets` are what lies in the file, items what its transforms make of it."""

    classes = ("a", "b", "c")

    def __init__(self, target: Any = None, transform: Any = None, count: int = 40) -> None:
        self.targets, self.asked = (np.arange(count) % 3).tolist(), 0
        self.target_transform, self.transform, self.rng = target, transform, np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        self.asked, label = self.asked + 1, self.targets[i]
        for change in filter(None, (self.target_transform, self.transform)):
            label = change(label)
        return self.rng.random((1, 28, 28), np.float32), label


def after(label: int) -> int:
    return (label + 1) % 3


def test_labels_are_those_that_the_items_have() -> None:
    told = np.array(Theirs().targets)
    np.testing.assert_array_equal(Items(Theirs()).labels, told)
    for theirs in (Theirs(target=after), Theirs(transform=after)):
        np.testing.assert_array_equal(Items(theirs).labels, after(told))
    with pytest.raises(DataError, match="labels reach from 0 to 2 but there are 2 classes"):
        Items(Theirs(), ["even", "odd"])
    many = Theirs(count=4000)
    Items(many)
    assert many.asked < 40


def test_a_dataset_that_augments_its_images_is_taken_up_again(tmp_path: Path) -> None:
    learn = Items(Theirs())
    assert fingerprint(learn) == fingerprint(learn)
    assert fingerprint(learn) != fingerprint(Items(Theirs(after)))
    recipe = Recipe(epochs=1, batch=20, shift=0)
    for resume in (False, True):
        net = caps.CapsNet(for_classes(PRESETS["small"], 3), classes=learn.classes)
        learner = caps.Learner(net, recipe.reconstruction)
        rows = train(net, learner, learn, learn, replace(recipe, epochs=1 + resume), tmp_path, resume, ())
    assert [row["epoch"] for row in rows] == [1, 2]


def test_what_is_no_dataset_is_told(tmp_path: Path) -> None:
    net = caps.CapsNet(PRESETS["small"])
    learner = caps.Learner(net)
    with pytest.raises(DataError, match=r"item 0 of the dataset is a str: it must be \(image, label\)"):
        Items(["a"])
    with pytest.raises(DataError, match="image 0 of the dataset is int64"):
        Items([(np.zeros((1, 28, 28), int), 0)])
    with pytest.raises(ShapeError, match=r"give a capscore\.data\.Dataset"):
        train(net, learner, IMAGES, IMAGES, Recipe(), tmp_path)  # type: ignore[arg-type]
