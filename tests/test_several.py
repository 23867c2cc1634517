"""Images that show several classes or none, and classes of few images: data, training, measures, answers."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NUMPY, need
from PIL import Image
from test_plain_train import run

from capscore import PRESETS, CapsNetSpec, Conv, CrossEntropy, DenseCaps, MarginLoss, PrimaryCaps, SpreadLoss, modelfile
from capscore.cli.choices import choose_loss
from capscore.cli.shared import read_spec
from capscore.data import ByContent, Dataset, alike, balanced, by_name, even_chances, fingerprint, load, whole
from capscore.errors import DataError, TrainingError
from capscore.train import BEST, LAST, Recipe, batches, train


def flags(count: int, classes: int = 3, seed: int = 0) -> Dataset:
    """Images with a bright stripe for each class that they show."""
    rng = np.random.default_rng(seed)
    labels = rng.random((count, classes)) < 0.4
    images = rng.integers(0, 60, (count, 1, 4 * classes, 12), np.uint8)
    images += np.repeat(labels, 4, 1)[:, None, :, None].astype(np.uint8) * 180
    return Dataset(images, labels, tuple(f"row {j}" for j in range(classes)))


def test_flags_go_through_all_that_a_dataset_meets() -> None:
    data = flags(60)
    assert data.batch(slice(0, 5))[1].dtype == np.bool_
    turned, _ = by_name(data, data.classes[::-1], "test")
    np.testing.assert_array_equal(turned.labels, data.labels[:, ::-1])
    wider, note = by_name(data, ("more", *data.classes), "test")
    assert wider.labels.shape == (60, 4)
    assert "more" in note
    learn, test = ByContent()(data)
    assert len(learn) + len(test) == 60
    assert learn.labels.any(0).all()
    assert test.labels.any(0).all()
    assert fingerprint(data)["content"] != fingerprint(turned)["content"]
    moved = data.moved(slice(0, 2), 0, np.zeros(2, int), np.zeros(2, int))
    np.testing.assert_array_equal(moved.targets, data.labels[:2])
    counts = data.labels.sum(0)
    np.testing.assert_allclose(balanced(data), counts.sum() / 3 / counts)
    with pytest.raises(DataError, match=r"bool \(60, 3\) where they show several"):
        Dataset(data.images, data.labels[:, :2], data.classes)


def write_list(folder: Path, data: Dataset, form: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:03}.png" for i in range(len(data))]
    for name, image in zip(names, data.images, strict=True):
        Image.fromarray(image[0]).save(folder / name)
    shown = [[data.classes[j] for j in np.flatnonzero(row)] for row in data.labels]
    text = {
        "json": json.dumps(dict(zip(names, shown, strict=True))),
        "rows": json.dumps([{"file": n, "labels": s} for n, s in zip(names, shown, strict=True)]),
        "cells": "file,labels\n" + "".join(f"{n},{';'.join(s)}\n" for n, s in zip(names, shown, strict=True)),
        "flags": "\n".join(
            [",".join(["file", *data.classes])]
            + [",".join([n, *("01"[x] for x in row)]) for n, row in zip(names, data.labels.tolist(), strict=True)]
        ),
    }[form]
    (folder / f"labels.{'json' if form in ('json', 'rows') else 'csv'}").write_text(text)
    return folder


@pytest.mark.parametrize("form", ["json", "rows", "cells", "flags"])
def test_lists_of_several_labels(form: str, tmp_path: Path) -> None:
    data = flags(30)
    folder = write_list(tmp_path / "images", data, form)
    for name in (folder, next(folder.glob("labels.*"))):
        found, _ = load(str(name), split=whole)
        assert found.classes == data.classes
        np.testing.assert_array_equal(found.labels, data.labels)
        np.testing.assert_array_equal(found.images, data.images)


def test_a_list_of_single_labels_is_one_class_an_image(tmp_path: Path) -> None:
    data = flags(20)
    write_list(tmp_path, data, "cells")
    (tmp_path / "mine.csv").write_text("".join(f"{i:03}.png,{'ab'[i % 2]}\n" for i in range(20)))
    found, _ = load(str(tmp_path / "mine.csv"), split=whole)
    assert (found.classes, found.labels.tolist()) == (("a", "b"), [0, 1] * 10)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "", "no files with labels"),
        ("x.csv", "file,label\na.png\n", "no files with labels"),
        ("x.csv", "file,label\na.png,b\nc.png\n", "with 1 cells, not 2"),
        ("x.csv", "file,a,a\na.png,0,1\n", "give each a name of its own"),
        ("x.csv", "file,label\nnowhere.png,b\n", "nowhere.png is not there"),
        ("x.csv", "gone.png,b\nnowhere.png,b\n", "gone.png is not there"),
        ("x.json", "{", "is not JSON"),
        ("x.json", "3", "has no labels"),
        ("x.json", '{"a.png": 3}', "tells of 'a.png' 3"),
        ("x.json", '[{"name": "a.png"}]', "tells of None None"),
    ],
)
def test_a_list_that_is_wrong_is_told(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / name))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of images that show several classes or none."""
    root = tmp_path_factory.mktemp("several")
    data = flags(240)
    np.savez(root / "flags.npz", images=data.images, labels=data.labels, classes=list(data.classes))
    spec = {"stem": [], "primary": {"types": 4, "dim": 4, "kernel": 4, "stride": 4}, "decoder": None}
    spec |= {"input": [1, 12, 12], "capsules": [{"count": 3, "dim": 8}]}
    (root / "spec.json").write_text(json.dumps(spec))
    run("train", "--data", root / "flags.npz", "--spec", root / "spec.json", "--out", root / "run", "--epochs", 30,
        "--batch", 16, "--rate", 0.01, "--shift", 0, "--backend", "numpy")  # fmt: skip
    return root


def test_several_labels_are_learned_measured_and_exported(trained: Path, tmp_path: Path) -> None:
    model = trained / "run" / BEST
    told = modelfile.read(model).provenance
    assert told["several"] is True
    assert told["held_out_accuracy"] > 0.9
    said = run("eval", model, "--data", trained / "flags.npz", "--report", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["accuracy"] == pytest.approx(told["held_out_accuracy"])
    assert min(each["f1"] for each in report["classes"].values()) > 0.9
    assert "confusion" not in report
    assert f"accuracy {report['accuracy']:.2%}" in said
    assert "epoch 31/31" in run("train", "--resume", trained / "run", "--epochs", 31)
    need("capscore.export.runtime", "onnx")
    run("export", model, tmp_path / "m.onnx")
    assert run("eval", tmp_path / "m.onnx", "--data", trained / "flags.npz").splitlines()[-1] in said
    run("explore", model, "--data", trained / "flags.npz", "--out", tmp_path / "pictures")


def test_predict_writes_answers_of_a_folder_without_labels(trained: Path, tmp_path: Path) -> None:
    data = flags(20, seed=9)
    folder = write_list(tmp_path / "images", data, "json")
    (folder / "deeper").mkdir()
    (folder / "000.png").rename(folder / "deeper" / "000.png")
    model = trained / "run" / BEST
    for kind in ("csv", "json", "jsonl"):
        assert "20 answers" in run("predict", model, folder, "--out", tmp_path / f"a.{kind}")
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert json.loads((tmp_path / "a.json").read_text()) == lines
    right = 0
    for row, line in zip(rows, lines, strict=True):
        assert row["file"] == line["file"]
        said = set(line["classes"])
        assert set(filter(None, row["classes"].split(";"))) == said
        assert said == {name for name in data.classes if line["lengths"][name] > 0.5 and float(row[name]) > 0.5}
        shown = data.labels[int(Path(row["file"]).stem)]
        right += said == {name for name, x in zip(data.classes, shown, strict=True) if x}
    assert right > 16
    assert "a.txt" in run("predict", model, folder, "--out", tmp_path / "a.txt", code=1)
    assert run("predict", model, folder / "*.png", "--json").count("\n") == 19
    assert "has no images" in run("predict", model, folder / "*.gif", code=1)
    assert "row 0" in run("predict", model, folder)


# -------------------------------------------------------------------------------------------- classes of few images


def rare(path: Path) -> Path:
    """Two patterns under noise that hides them often; one in twenty to learn from is of the second."""
    rng = np.random.default_rng(3)
    sets = {}
    for part, count in (("train", 1000), ("test", 400)):
        labels = (np.arange(count) % (20 if part == "train" else 2) == 0).astype(np.int64)
        pattern = np.where(np.arange(4) < 2, 10, -10) * np.where(labels, -1, 1)[:, None, None]
        coarse = 128 + pattern + rng.normal(0, 40, (count, 4, 4))
        sets[f"{part}_images"] = np.kron(coarse, np.ones((4, 4))).clip(0, 255).astype(np.uint8)
        sets[f"{part}_labels"] = labels
    np.savez(path, **sets, classes=["usual", "rare"])
    return path


def test_class_weights_find_a_class_of_five_in_a_hundred(tmp_path: Path) -> None:
    data = rare(tmp_path / "rare.npz")
    spec = {"input": [1, 16, 16], "stem": [], "primary": {"types": 4, "dim": 4, "kernel": 4, "stride": 4}}
    (tmp_path / "spec.json").write_text(json.dumps(spec | {"capsules": [{"count": 2, "dim": 4}], "decoder": None}))
    found = {}
    for name, options in {
        "none": [], "balanced": ["--class-weights", "balanced"], "numbers": ["--class-weights", "0.5,10"],
        "sampled": ["--sampling", "balanced"],
    }.items():  # fmt: skip
        out = tmp_path / name
        run("train", "--data", data, "--spec", tmp_path / "spec.json", "--out", out, "--epochs", 12, "--batch", 25,
            "--shift", 0, "--rate", 0.003, *options, "--backend", "numpy")  # fmt: skip
        run("eval", out / LAST, "--data", data, "--report", out / "report")
        found[name] = json.loads((out / "report" / "report.json").read_text())["balanced_accuracy"]
    for name in ("balanced", "numbers", "sampled"):
        assert found[name] >= found["none"] + 0.15, found


def test_balanced_sampling_draws_all_classes_alike() -> None:
    labels = np.array([0] * 95 + [1] * 5)
    data = Dataset(np.zeros((100, 1, 2, 2), np.uint8), labels, ("a", "b"))
    np.testing.assert_allclose(even_chances(data), np.where(labels, 0.1, 0.5 / 95))
    recipe = Recipe(batch=50, balanced=True, shift=0)
    seen = [batch.targets.sum(0) for epoch in range(40) for batch in batches(data, recipe, epoch)]
    assert np.sum(seen, 0)[1] == pytest.approx(2000, abs=150)
    alike = [batch.targets.sum(0)[1] for batch in batches(data, Recipe(batch=50, shift=0), 0)]
    assert sum(alike) == 5
    chances: Any = even_chances(flags(30))
    assert chances.sum() == pytest.approx(1)
    assert chances.min() > 0


def test_weights_that_do_not_fit_are_told(trained: Path, tmp_path: Path) -> None:
    told = ["train", "--data", trained / "flags.npz", "--spec", trained / "spec.json", "--out", tmp_path / "run"]
    assert "2 numbers for 3 classes" in run(*told, "--class-weights", "1,2", code=1)
    assert "takes balanced or numbers" in run(*told, "--class-weights", "even", code=1)
    assert "--sampling takes balanced" in run(*told, "--sampling", "even", code=1)


def test_a_cross_entropy_is_of_each_class_where_images_show_several() -> None:
    """And of the scale that is right for the network's scores: logits of 10 times their size are certain of all."""
    for data, exclusive in ((load("digits")[0], True), (flags(20), False)):
        for name in (None, "cross-entropy"):
            assert choose_loss(PRESETS["small-inverted"], data, name, None) == CrossEntropy(1.0, exclusive)
        assert choose_loss(PRESETS["small"], data, "cross-entropy", None) == CrossEntropy(10.0, exclusive)
        assert choose_loss(PRESETS["small"], data, None, None) == PRESETS["small"].loss


def test_a_loss_that_ranks_cannot_teach_how_many_classes_an_image_shows(trained: Path, tmp_path: Path) -> None:
    """A spread loss left every activation above 0.5: none of the images that show one, two or no digits was right."""
    assert choose_loss(PRESETS["small-em"], flags(20), None, None) == MarginLoss()
    assert choose_loss(PRESETS["small-em"], load("digits")[0], None, None) == PRESETS["small-em"].loss
    told = ["train", "--data", trained / "flags.npz", "--spec", trained / "spec.json", "--out", tmp_path / "run"]
    assert "SpreadLoss ranks the classes of an image" in run(*told, "--loss", "spread", code=1)
    assert not (tmp_path / "run").exists()
    spec = read_spec(trained / "spec.json")
    for loss in (SpreadLoss(), CrossEntropy()):
        net = NUMPY.CapsNet(spec.replace(loss=loss))
        with pytest.raises(TrainingError, match=r"learn by MarginLoss\(\)"):
            train(
                net, NUMPY.Learner(net), flags(20), flags(20, seed=1), Recipe(shift=0), tmp_path / "run", reporters=()
            )


def test_one_class_that_an_image_shows_or_not_is_learned(tmp_path: Path) -> None:
    data = flags(160, classes=1)
    np.savez(tmp_path / "x.npz", images=data.images, labels=data.labels, classes=np.array(data.classes))
    spec = CapsNetSpec((1, 4, 12), (Conv(8, 3, padding=1), PrimaryCaps(4, 4, 3), DenseCaps(1, 4)), decoder=None)
    (tmp_path / "spec.json").write_text(spec.to_json())
    said = run("train", "--data", tmp_path / "x.npz", "--spec", tmp_path / "spec.json", "--out", tmp_path / "run",
               "--epochs", 30, "--batch", 8, "--rate", 0.005, "--shift", 0, "--backend", "numpy")  # fmt: skip
    assert "an image may show the class or not" in said
    assert "100.00%: 0 of" in run("eval", tmp_path / "run" / BEST, "--data", tmp_path / "x.npz")


@pytest.mark.parametrize("shown", [(), (1,), (0, 2)])
def test_flags_that_are_alike_are_no_training(shown: tuple[int, ...]) -> None:
    labels = np.zeros((20, 3), np.bool_)
    labels[:, shown] = True
    assert alike(Dataset(flags(20).images, labels, ("a", "b", "c")))
    labels[0, 1] ^= True
    assert not alike(Dataset(flags(20).images, labels, ("a", "b", "c")))
