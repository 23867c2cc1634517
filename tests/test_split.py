"""What decides a result travels with the model: what was held out, how the classes are called."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import need
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from capscore import PRESETS, CapsNetSpec, cli, modelfile
from capscore.backends import numpy as caps
from capscore.cli.training import Setup
from capscore.data import Dataset, Framed, Pairs, absent, by_name, changes, fingerprint, load, rule_of, whole
from capscore.data.images import size_that_fits
from capscore.data.split import SHARE, ByContent, BySeed
from capscore.errors import CapscoreError, DataError, TrainingError
from capscore.fit import fitted
from capscore.train import BEST, LAST, Recipe, accuracy, train

RNG = np.random.default_rng(5)
TINY = {"stem": [{"channels": 4, "kernel": 3, "stride": 2}], "primary": {"types": 2, "dim": 4, "kernel": 3}}


def noise(count: int, classes: int = 3, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    names = tuple(f"class {i}" for i in range(classes))
    return Dataset(rng.integers(0, 256, (count, 1, 8, 8), np.uint8), rng.integers(0, classes, count), names)


def held_out(data: Dataset, rule: Callable[[Dataset], Any] = ByContent()) -> set[bytes]:  # noqa: B008
    return {image.tobytes() for image in rule(data)[1].images}


def write(folder: Path, data: Dataset) -> Path:
    for i, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        path = folder / data.classes[label] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(path)
    return folder


def spec_file(folder: Path, size: tuple[int, int, int], classes: int) -> Path:
    spec = TINY | {"input": size, "capsules": [{"count": classes, "dim": 4}], "decoder": None}
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder / "spec.json"


def run(*args: Any, code: int = 0) -> str:
    """Run the command in this process; return what it said, or its error."""
    result = CliRunner().invoke(cli.app, list(map(str, args)))
    if code:
        assert isinstance(result.exception, CapscoreError), result.output
        return str(result.exception)
    if result.exception:
        raise result.exception
    return result.output


# -------------------------------------------------------------------------------------------------- the rule


@given(seed=st.integers(0, 99), more=st.integers(1, 40), order=st.randoms())
def test_added_removed_and_renamed_images_leave_the_others_on_their_side(seed: int, more: int, order: Any) -> None:
    data, added = noise(60, seed=seed), noise(more, seed=seed + 1000)
    images, labels = np.concatenate([data.images, added.images]), np.concatenate([data.labels, added.labels])
    shuffled = order.sample(range(len(images)), len(images))
    larger = replace(data, images=images[shuffled], labels=labels[shuffled])
    rule = rule_of({"split": ByContent()(data)[1].split})
    assert isinstance(rule, ByContent)
    before, after = held_out(data), held_out(larger, rule)
    assert after & {image.tobytes() for image in data.images} == before
    fewer = replace(data, images=data.images[10:], labels=data.labels[10:])
    assert held_out(fewer, rule) == before & {image.tobytes() for image in fewer.images}


@given(seed=st.integers(0, 99), classes=st.integers(1, 30))
def test_every_class_of_two_images_has_both_sides_and_of_one_is_learned(seed: int, classes: int) -> None:
    data = noise(61, classes, seed)
    learn, test = ByContent()(data)
    counts = np.bincount(data.labels, minlength=classes)
    for label, count in enumerate(counts):
        assert (label in learn.labels) == (count > 0)
        assert (label in test.labels) == (count > 1)
    assert len(learn) + len(test) == len(data)


def test_the_share_held_out_is_a_fifth() -> None:
    assert len(ByContent()(noise(5000))[1]) == pytest.approx(5000 * SHARE, abs=4 * (5000 * 0.2 * 0.8) ** 0.5)


def test_equal_images_are_on_the_same_side_however_they_are_stored() -> None:
    data = noise(40)
    twice = replace(data, images=np.tile(data.images, (2, 1, 1, 1)), labels=np.tile(data.labels, 2))
    learn, test = ByContent()(twice)
    assert not {i.tobytes() for i in learn.images} & {i.tobytes() for i in test.images}
    floats = replace(data, images=data.images.astype(np.float32) / 255)
    np.testing.assert_array_equal(ByContent()(floats)[1].images, ByContent()(data)[1].images.astype(np.float32) / 255)


def test_the_rule_stays_what_it_is() -> None:
    """Models of today must find the same images held out for ever."""
    data = Dataset(np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1), np.arange(40) % 2, ("a", "b"))
    assert ByContent()(data)[1].images.ravel().tolist() == HELD_OUT


HELD_OUT = [2, 6, 12, 21, 23, 31, 32, 35, 36]


@pytest.mark.parametrize(
    "told",
    [
        *("content", [], {"rule": "magic"}, {"rule": "seed", "seed": -1}, {"rule": "seed", "seed": "0"}),
        *({"rule": "content", "held_out": 0.5, "moved": []}, {"rule": "content", "held_out": 0.2, "moved": "ab"}),
        *({"rule": "content", "held_out": 0.2, "moved": [17]}, {"rule": "content", "held_out": 0.2, "moved": ["+1"]}),
    ],
)
def test_a_split_that_is_none_is_refused(told: Any) -> None:
    with pytest.raises(DataError, match="train it again"):
        rule_of({"split": told})


def test_what_files_tell_of_their_split() -> None:
    assert rule_of({"split": {"rule": "own"}}) == ByContent()
    assert rule_of({"split": {"rule": "seed", "seed": 4}}) == BySeed(4)
    assert rule_of({"recipe": {"seed": 4}, "data": "/x"}) == BySeed(4)  # by the command line, before splits were kept
    assert rule_of({"recipe": {"seed": 4}}) is None
    assert rule_of({}) is None
    assert len(whole(noise(9))[1]) == 9


# ---------------------------------------------------------------------------------------------- fingerprints


def test_fingerprints_tell_content_and_order_apart() -> None:
    data = noise(20)
    before = fingerprint(data)
    assert changes(before, fingerprint(replace(data))) == ""
    turned = replace(data, images=data.images[::-1], labels=data.labels[::-1])
    assert "another order" in changes(before, fingerprint(turned))
    other = data.images.copy()
    other[3, 0, 0, 0] ^= 1
    assert "not the same ones" in changes(before, fingerprint(replace(data, images=other)))
    assert "not the same ones" in changes(before, fingerprint(replace(data, labels=(data.labels + 1) % 3)))
    fewer = replace(data, images=data.images[1:], labels=data.labels[1:])
    assert "19 images where there were 20" in changes(before, fingerprint(fewer))
    for damaged in (None, [], {"images": "x" * 100}):
        assert changes(damaged, before)


def test_what_is_drawn_has_the_fingerprint_of_its_source_and_settings() -> None:
    data = noise(20)
    drawn = Pairs(data, 0), Pairs(data, 1), Framed(data, 6, 6), Framed(data, 7, 7)
    told = [fingerprint(x)["order"] for x in (data, *drawn)]
    assert len(set(told)) == 5
    assert fingerprint(Pairs(data, 0)) == fingerprint(Pairs(replace(data), 0))


# ------------------------------------------------------------------------------------ the commands and a model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of noise, and a run that has learned some by heart."""
    root = tmp_path_factory.mktemp("trained")
    write(root / "images", noise(80, seed=3))
    run("train", "--data", root / "images", "--spec", spec_file(root, (1, 8, 8), 3), "--out", root / "run", "--epochs",
        40, "--batch", 16, "--rate", 0.01, "--shift", 0, "--seed", 3, "--backend", "numpy")  # fmt: skip
    return root


def scored(said: str) -> tuple[float, int, str]:
    """Share, number and kind of the images that `eval` scored."""
    words = said.splitlines()[-1].replace(",", "").split()
    return float(words[1].rstrip("%:")) / 100, int(words[4]), words[5]


def test_eval_scores_the_images_that_training_held_out(trained: Path) -> None:
    model, data = trained / "run" / LAST, trained / "images"
    rows = modelfile.read(model).provenance["log"]
    told = {split: run("eval", model, "--data", data, "--split", split) for split in ("held-out", "train", "all")}
    assert "note" not in "".join(told.values())
    assert run("eval", model, "--data", data) == told["held-out"]
    (share, count, kind), (learned, others, _), (both, total, _) = map(scored, told.values())
    assert share == pytest.approx(rows[-1]["held_out_accuracy"], abs=1e-4)
    assert (kind, count + others, total) == ("held-out", 80, 80)
    assert learned > share + 0.2  # noise: what was not learned by heart is guessed
    assert both == pytest.approx((share * count + learned * others) / 80, abs=1e-3)
    assert "choose one of held-out" in run("eval", model, "--split", "test", code=1)


def test_other_commands_use_the_same_images(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = trained / "run" / LAST, trained / "images"
    _, expected = load(str(data), size=(1, 8, 8), split=rule_of(modelfile.read(model).provenance))
    seen = []
    monkeypatch.setattr("capscore.figures.explore", lambda net, test, *_: seen.append(test) or [])
    run("explore", model, "--data", data)
    np.testing.assert_array_equal(seen[0].images, expected.images)
    monkeypatch.setattr("capscore.cli.verify.show_agreement", lambda _, images, providers: seen.append(images) or True)
    run("verify", model, "--data", data)
    np.testing.assert_array_equal(seen[1], expected.batch(slice(0, 32))[0])
    need("capscore.export.runtime", "onnx")
    said = run("export", model, tmp_path / "m.onnx", "--data", data, "--no-verify")
    assert f"on {len(expected)} held-out images" in said
    assert scored(run("eval", tmp_path / "m.onnx", "--data", data))[1:] == (len(expected), "held-out")


def test_added_files_are_said_and_change_nothing_else(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "images", tmp_path / "images")
    for i in range(12):
        Image.fromarray(RNG.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "images" / "class 1" / f"0{i}.png")
    said = run("eval", trained / "run" / LAST, "--data", tmp_path / "images")
    before = scored(run("eval", trained / "run" / LAST, "--data", trained / "images"))[1]
    assert 0 < scored(said)[1] - before < 12
    assert f"images where there were {before}" in said


@pytest.mark.parametrize("how", ["renamed", "added", "removed", "changed"])
def test_resuming_notices_files_that_were(how: str, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    some = tmp_path / "images" / "class 0"
    first = min(some.iterdir())
    match how:
        case "renamed":
            first.rename(some / "zzz.png")
        case "added":
            shutil.copy(first, some / "zzz.png")
        case "removed":
            first.unlink()
        case "changed":
            Image.fromarray(255 - np.asarray(Image.open(first))).save(first)
    resumed = "train", "--resume", tmp_path / "run", "--data", tmp_path / "images", "--epochs", 41
    assert "was on other data" in (said := run(*resumed, code=1))
    assert "as they were, or begin a new training" in said
    assert ("were files renamed?" in said) == (how == "renamed")


def test_a_run_and_its_data_can_be_moved_and_no_path_is_passed_on(trained: Path, tmp_path: Path) -> None:
    for name in (BEST, LAST):
        modelfile_bytes = (trained / "run" / name).read_bytes()
        assert (str(trained).encode() in modelfile_bytes) == (name == LAST)
    about = modelfile.read(trained / "run" / BEST).provenance
    assert about["data"] == "images"
    assert "data_dir" not in about
    again = caps.load(trained / "run" / LAST)
    again.save(tmp_path / "copy.safetensors")
    assert str(trained.parent).encode() not in (tmp_path / "copy.safetensors").read_bytes()
    assert str(trained) not in run("inspect", trained / "run" / LAST)
    old = modelfile.read(trained / "run" / BEST)
    old.provenance.update(data="C:\\people\\me\\images", data_dir="/home/me")
    modelfile.save(tmp_path / "old.safetensors", old)
    passed_on = caps.load(tmp_path / "old.safetensors").provenance
    assert passed_on["data"] == "images"
    assert "data_dir" not in passed_on

    shutil.copytree(trained, tmp_path / "there")
    shutil.move(trained / "images", tmp_path / "elsewhere")
    try:
        assert "name their new place by --data" in run("train", "--resume", trained / "run", code=1)
        said = run("train", "--resume", tmp_path / "there" / "run", "--data", tmp_path / "elsewhere", "--epochs", 41)
        assert "epoch 41/41" in said
        assert "epoch 42/42" in run("train", "--resume", tmp_path / "there" / "run", "--epochs", 42)  # it knows now
    finally:
        shutil.move(tmp_path / "elsewhere", trained / "images")


def test_checkpoints_of_before_are_split_as_they_were(tmp_path: Path) -> None:
    """A file as it was written when the seed split the data, and nothing was kept of that."""
    data = noise(60, seed=8)
    write(tmp_path / "images", data)
    sets = load(str(tmp_path / "images"), size=(1, 8, 8), split=BySeed(7))
    spec = CapsNetSpec.from_json(spec_file(tmp_path, (1, 8, 8), 3).read_bytes())
    net = caps.CapsNet(spec, classes=data.classes)
    recipe = Recipe(epochs=1, batch=16, shift=0, seed=7)
    train(net, caps.Learner(net, recipe.reconstruction), *sets, recipe, tmp_path / "run")
    model = modelfile.read(tmp_path / "run" / LAST)
    kept = {k: v for k, v in model.provenance.items() if k not in ("split", "fingerprints", "resume")}
    before = kept | asdict(Setup(str(tmp_path / "images")))
    modelfile.save(tmp_path / "run" / LAST, replace(model, provenance=before))
    said = run("eval", tmp_path / "run" / LAST, "--data", tmp_path / "images")
    assert "split by its seed, as they were" in said
    assert scored(said)[0] == pytest.approx(model.provenance["held_out_accuracy"], abs=1e-4)
    assert "epoch 2/2" in run("train", "--resume", tmp_path / "run", "--epochs", 2)
    assert modelfile.read(tmp_path / "run" / LAST).provenance["split"] == {"rule": "seed", "seed": 7}
    write(tmp_path / "images", noise(61, seed=9))
    modelfile.save(tmp_path / "old.safetensors", replace(model, provenance=before, state={}))
    assert "may have seen some of these" in run("eval", tmp_path / "old.safetensors", "--data", tmp_path / "images")
    modelfile.save(tmp_path / "bare.safetensors", replace(model, provenance={}, state={}))
    assert "does not tell how" in run("eval", tmp_path / "bare.safetensors", "--data", tmp_path / "images")


# --------------------------------------------------------------------------------------------------- classes


def archive(path: Path, data: Dataset, names: list[str] | None, **others: Any) -> Path:
    np.savez(path, images=data.images, labels=data.labels, **({} if names is None else {"classes": names}), **others)
    return path


def test_classes_are_matched_by_name_wherever_data_meet_a_model(trained: Path, tmp_path: Path) -> None:
    model = trained / "run" / LAST
    sets = load(str(trained / "images"), size=(1, 8, 8), split=whole)
    turned = replace(sets[0], labels=2 - sets[0].labels, classes=sets[0].classes[::-1])
    path = archive(tmp_path / "turned.npz", turned, list(turned.classes))
    assert run("eval", model, "--data", path).replace(str(path), "") == run(
        "eval", model, "--data", trained / "images"
    ).replace(str(trained / "images"), "")
    net = caps.load(model)
    assert accuracy(net, turned) == accuracy(net, sets[0]) > 0.5
    resumed = tmp_path / "run"
    shutil.copytree(trained / "run", resumed)
    assert "epoch 41/41" in run("train", "--resume", resumed, "--data", path, "--epochs", 41)
    assert modelfile.read(resumed / LAST).classes == sets[0].classes


def test_names_that_differ_are_said(trained: Path, tmp_path: Path) -> None:
    model, data = trained / "run" / LAST, noise(60, seed=4)
    part = replace(data, labels=np.minimum(data.labels, 1), classes=data.classes[:2])
    said = run("eval", model, "--data", archive(tmp_path / "part.npz", part, list(part.classes)))
    assert "does not know the classes class 2" in said
    said = run("eval", model, "--data", archive(tmp_path / "numbers.npz", data, None))
    assert "taken in this order" in said
    for names in (["class 0", "class 1", "dog"], ["cat", "cow", "dog"], ["class 0", "class 1", "class 2", "dog"]):
        path = archive(tmp_path / "other.npz", data, names)
        for command in ("eval", "explore", "verify"):
            assert "and not " in (said := run(command, model, "--data", path, code=1))
            assert "dog" in said


def test_by_name_renumbers_what_is_drawn_from_other_images() -> None:
    data = noise(30)
    renumbered, note = by_name(Pairs(data), data.classes[::-1], "test")
    assert not note
    assert renumbered.classes == data.classes[::-1]
    np.testing.assert_array_equal(renumbered.source.labels, 2 - data.labels)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------- a network that fits the data


@given(
    size=st.tuples(st.integers(1, 4), st.integers(1, 300), st.integers(1, 300)),
    classes=st.sampled_from([2, 3, 10, 100, 1000]),
)
def test_a_network_fits_images_of_any_size(size: tuple[int, int, int], classes: int) -> None:
    spec = fitted(size, classes)
    assert (spec.input, spec.classes) == (size, classes)
    assert spec.rows[len(spec.stem)].output.dims[0] <= 800
    assert (spec.decoder is None) == (np.prod(size) > 2**15)
    if 8 <= min(size[1:]) < 32 and max(size[1:]) <= 2 * min(size[1:]):
        assert min(spec.rows[-1].input[1:3]) >= (4 if classes <= 100 else 2)
    elif min(size[1:]) >= 32:
        assert spec.rows[-1].input[:3] == (16, 1, 1)  # pooled over the whole map
    assert CapsNetSpec.from_json(spec.to_json()) == spec


def test_small_is_the_network_for_mnist() -> None:
    assert fitted((1, 28, 28), 10) == PRESETS["small"]


def colours(folder: Path, size: int = 64) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 100, (20, 3, size, size + 8), np.uint8)
    for i, image in enumerate(images):
        image[i % 2] += 150
    return write(folder, Dataset(images, np.arange(20) % 2, ("red", "green")))


def test_without_a_name_the_network_fits_the_data_and_is_told(tmp_path: Path) -> None:
    data = colours(tmp_path / "images", 40)
    told = "train", "--data", data, "--epochs", 1, "--backend", "numpy"
    said = run(*told, "--out", tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "spec.json").write_text(json.dumps(settings["network"]))
    spec = CapsNetSpec.from_json((tmp_path / "spec.json").read_bytes())
    assert spec.input == (3, 40, 48)
    assert "note" not in said
    assert modelfile.read(tmp_path / "run" / BEST).spec == spec
    again = run(*told, "--spec", tmp_path / "spec.json", "--out", tmp_path / "again")
    assert f"{spec.parameter_count:,} parameters" in again
    lossy = run(*told, "--preset", "small", "--out", tmp_path / "small")
    lost = "20 in colour became grey, 20 were made smaller, from up to 40×48"
    assert f"note: 20 images were read as 1×28×28: {lost}" in lossy


def test_a_folder_of_photographs_is_read_small(tmp_path: Path) -> None:
    assert size_that_fits(colours(tmp_path / "images", 248)) == (3, 62, 64)
    grey = np.zeros((30, 20), np.uint8)
    for name in "ab":
        for i in range(30):
            Image.fromarray(grey).save(tmp_path / "images" / "red" / f"{name}{i}.png")
    assert size_that_fits(tmp_path / "images") == (3, 30, 20)  # as most are, and in colour as some are


# ------------------------------------------------------------------------------------- what is passed over, said


def test_labels_from_one_add_no_class(tmp_path: Path) -> None:
    data = noise(40)
    one = replace(data, labels=data.labels + 1, classes=("?", *data.classes))
    both = load(str(archive(tmp_path / "x.npz", one, None)), split=whole)[0]
    assert both.classes == ("1", "2", "3")
    np.testing.assert_array_equal(both.labels, data.labels)
    assert "names of the classes" in both.notes[0]
    named = load(str(archive(tmp_path / "y.npz", one, ["cat", "cow", "dog"])), split=whole)[0]
    assert named.classes == ("cat", "cow", "dog")
    np.testing.assert_array_equal(named.labels, data.labels)
    assert "1 is taken for cat" in named.notes[0]
    apart = replace(one, labels=np.where(one.labels == 2, 7, one.labels), classes=tuple("01234567"))
    assert load(str(archive(tmp_path / "z.npz", apart, None)), split=whole)[0].classes == ("1", "3", "7")
    assert not load(str(archive(tmp_path / "x.npz", data, None)), split=whole)[0].notes
    np.savez(tmp_path / "w.npz", x_train=data.images, y_train=one.labels, x_test=data.images[:1], y_test=[2])
    learn, test = load(str(tmp_path / "w.npz"))
    assert (learn.classes, test.labels.tolist()) == (("1", "2", "3"), [1])


def test_a_class_without_images_is_said(tmp_path: Path) -> None:
    data = noise(30)
    path = archive(tmp_path / "x.npz", data, [*data.classes, "ghost"])
    said = run("train", "--data", path, "--out", tmp_path / "run", "--epochs", 1, "--backend", "numpy")
    assert "note: the training set has no images of ghost" in said
    assert absent(Framed(replace(data, classes=(*data.classes, "ghost")), 4, 4)) == ("ghost",)


def test_one_class_is_no_training(tmp_path: Path) -> None:
    data = replace(noise(20), labels=np.zeros(20, np.int64))
    for names in (data.classes, data.classes[:1]):
        path = archive(tmp_path / f"{len(names)}.npz", data, list(names))
        for out in (tmp_path / "run", tmp_path / "run"):  # and nothing is left that would stop another try
            said = run("train", "--data", path, "--out", out, "--backend", "numpy", code=1)
            assert "all show the same (class 0)" in said
    write(tmp_path / "images", data)
    with pytest.raises(TrainingError, match="all show the same"):
        run("train", "--data", tmp_path / "images", "--out", tmp_path / "run", "--backend", "numpy")


def test_files_that_are_passed_over_are_counted_and_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "images", noise(30))
    for i in range(35):
        (folder / "class 1" / f"{i}.{('pcx', 'heic', 'svg')[i % 3]}").write_bytes(b"x")
    (folder / "class 2" / "nested").mkdir()
    (folder / "photo.png").write_bytes(b"x")
    (folder / ".DS_Store").write_bytes(b"x")
    said = run("train", "--data", folder, "--out", tmp_path / "run", "--epochs", 1, "--backend", "numpy")
    (line,) = [line for line in said.splitlines() if "skipped" in line]
    assert line.startswith("note: 37 entries of images were skipped (12 .pcx, 12 .heic, 11 .svg, 1 .png, 1 folders)")
    for part in ("train", "test", "val"):
        write(tmp_path / "parts" / part, noise(30))
    assert "1 entries of parts were skipped (1 folders)" in load(str(tmp_path / "parts"))[0].notes[0]


def test_a_model_of_data_with_a_test_set_doubts_another_split(tmp_path: Path) -> None:
    data = noise(40)
    for part in ("train", "test"):
        write(tmp_path / "images" / part, data)
    spec = spec_file(tmp_path, (1, 8, 8), 3)
    run("train", "--data", tmp_path / "images", "--spec", spec, "--out", tmp_path / "run", "--epochs", 1, "--shift", 0,
        "--backend", "numpy")  # fmt: skip
    model = tmp_path / "run" / BEST
    assert scored(run("eval", model, "--data", tmp_path / "images"))[1:] == (40, "test")
    assert scored(run("eval", model, "--data", tmp_path / "images", "--split", "all"))[1:] == (80, "training")
    assert "may have seen some" in run("eval", model, "--data", tmp_path / "images" / "train")
