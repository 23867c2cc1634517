"""Augmentation: what each change does to images, that it is drawn anew and the same again, and what training sees."""

from __future__ import annotations

import errno
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import NUMPY, backend, close, need

from capscore import PRESETS, CapsNetSpec, Conv, DenseCaps, PrimaryCaps
from capscore.data import AUGMENTATIONS, Batch, Dataset, Pairs, Resident, augmented, load, resident
from capscore.data.augment import (
    Augmentation,
    ColourJitter,
    Crop,
    Elastic,
    Erasing,
    Flip,
    Mixup,
    Rotation,
    Scale,
    Shear,
    Squeeze,
    Translation,
)
from capscore.errors import DataError, SpecError, TrainingError
from capscore.train import LAST, Recipe, batches, train
from capscore.values import read, write

ALL = (
    Rotation(20), Rotation(20, "normal", 0.5), Scale(0.2), Scale(0.2, apart=True), Squeeze(4), Shear(0.2),
    Translation(2), Crop(2), Flip(), Elastic(1.0), Erasing(4), ColourJitter(0.2, 0.2, 0.2), Mixup(),
)  # fmt: skip
every = pytest.mark.parametrize("change", ALL, ids=lambda change: type(change).__name__)


def batch(channels: int = 3, count: int = 6, size: tuple[int, int] = (12, 15)) -> Batch:
    rng = np.random.default_rng(0)
    return Batch(rng.random((count, channels, *size), np.float32), np.eye(3)[np.arange(count) % 3])


def after(change: Augmentation, given: Batch | None = None, seed: int = 1) -> Batch:
    return augmented(given or batch(), (change,), np.random.default_rng(seed))


@every
def test_it_keeps_shape_dtype_and_range_and_is_drawn_again(change: Augmentation) -> None:
    given = batch()
    kept = given.images.copy()
    found = after(change, given)
    np.testing.assert_array_equal(given.images, kept)  # the data are not written to
    assert found.images.shape == kept.shape
    assert found.images.dtype == np.float32
    assert found.images.min() >= 0
    assert found.images.max() <= 1 + 1e-6
    assert (found.images != kept).any()
    np.testing.assert_array_equal(after(change).images, found.images)
    assert (after(change, seed=2).images != found.images).any()
    each = found.images - kept
    assert not all(np.allclose(each[0], other) for other in each)  # every image by its own draw
    assert read(write(change), "augment") == change


@pytest.mark.parametrize(
    "change",
    [Rotation(0), Rotation(30, share=0), Scale(0), Squeeze(0), Shear(0), Translation(0), Crop(0), Flip(0), Elastic(0)],
)
def test_no_strength_is_no_change(change: Augmentation) -> None:
    close(after(change).images, batch().images, 1e-6)


def test_a_flip_and_a_crop_are_exact() -> None:
    given = batch()
    close(after(Flip(1.0)).images, given.images[..., ::-1], 1e-6)
    moved = after(Crop(3)).images
    padded = np.pad(given.images, ((0, 0), (0, 0), (3, 3), (3, 3)))
    for image, source in zip(moved, padded, strict=True):
        windows = [source[:, y : y + 12, x : x + 15] for y in range(7) for x in range(7)]
        assert any(np.allclose(image, window, atol=1e-6) for window in windows)


def blob(y: float, x: float, size: int = 41) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 8).astype(np.float32)


def place(image: np.ndarray) -> np.ndarray:
    """Row and column of the middle of what is seen, counted from the middle of the image."""
    at = np.mgrid[: len(image), : len(image)] - (len(image) - 1) / 2
    return (at * image).sum((1, 2)) / image.sum()


def moved(change: Augmentation, y: float, x: float, count: int = 400) -> np.ndarray:
    """Where `change` puts a blob at (y, x), [count, 2]."""
    given = Batch(np.broadcast_to(blob(y, x), (count, 1, 41, 41)), np.eye(1)[[0] * count])
    return np.array([place(image[0]) for image in after(change, given).images])


def test_where_things_come_to_lie() -> None:
    turned = moved(Rotation(30), 0, 10)
    close(np.hypot(*turned.T), np.full(400, 10.0), 0.02)
    angles = np.rad2deg(np.arctan2(turned[:, 0], turned[:, 1]))
    assert -30 <= angles.min() < -25
    assert 25 < angles.max() <= 30.1
    normal = np.rad2deg(np.arctan2(*moved(Rotation(30, "normal"), 0, 10).T))
    assert normal.std() == pytest.approx(10, abs=1.5)
    still = moved(Rotation(30, share=0.5), 0, 10)
    assert np.mean(np.abs(still[:, 0]) < 1e-3) == pytest.approx(0.5, abs=0.1)
    scaled = moved(Scale(0.2), 8, 8)
    close(scaled[:, 0], scaled[:, 1], 0.02)
    assert 6.3 < scaled.min() < 6.7
    assert 9.2 < scaled.max() < 9.7
    apart = moved(Scale(0.2, apart=True), 8, 8)
    assert np.abs(np.corrcoef(apart.T)[0, 1]) < 0.2
    squeezed = moved(Squeeze(8), 8, 8)
    assert squeezed.max() < 8.05
    assert 8 * (1 - 8 / 41) - 0.05 < squeezed.min() < 6.6
    assert (np.abs(squeezed - 8).min(1) < 0.02).all()  # along one of the axes alone
    slanted = moved(Shear(0.5), 10, 0)
    close(slanted[:, 0], np.full(400, 10.0), 0.02)
    assert -5.1 < slanted[:, 1].min() < -4.5
    assert 4.5 < slanted[:, 1].max() < 5.1
    shifted = moved(Translation(3), 0, 0)
    assert -3.01 < shifted.min() < -2.9
    assert 2.9 < shifted.max() < 3.01
    assert moved(Elastic(1.5), 0, 0).std(0) == pytest.approx([1.5, 1.5], rel=0.25)


def test_changes_of_shape_are_applied_in_their_order() -> None:
    """A quarter turn (all but exactly, by many draws of ±) after a move along x is a move along y."""
    rng = np.random.default_rng(0)
    given = Batch(np.broadcast_to(blob(0, 0), (200, 1, 41, 41)), np.eye(1)[[0] * 200])
    first = augmented(given, (Shear(0.0), Translation(6), Scale(0.5)), rng).images
    spread = np.array([place(image[0]) for image in first])
    assert spread.max() > 6.5  # moved, then enlarged: by up to 6 · 1.5
    other = augmented(given, (Scale(0.5), Translation(6)), np.random.default_rng(0)).images
    assert np.abs(np.array([place(image[0]) for image in other])).max() < 6.05  # enlarged in place, then moved


def test_a_hole_has_its_size_and_its_image() -> None:
    given = Batch(np.ones((50, 2, 10, 9), np.float32), np.eye(2)[[0] * 50])
    found = after(Erasing(4), given).images
    np.testing.assert_array_equal((found == 0).sum((1, 2, 3)), np.full(50, 2 * 16))
    assert len({tuple(np.argwhere(image[0] == 0)[0]) for image in found}) > 10
    with pytest.raises(DataError, match=r"Erasing\(size=10\) leaves nothing to see of images of 10×9"):
        after(Erasing(10), given)


def test_a_mixture_has_targets_in_proportion() -> None:
    given = batch()
    found = after(Mixup(1.0), given)
    close(found.targets.sum(1), np.ones(6), 1e-12)
    rng = np.random.default_rng(1)
    share, other = rng.beta(1, 1, 6), rng.permutation(6)
    wanted = [s * a + (1 - s) * given.images[o] for s, a, o in zip(share, given.images, other, strict=True)]
    close(found.images, np.array(wanted), 1e-6)


def test_the_parts_of_a_pair_move_with_it() -> None:
    pairs = Pairs(load("digits")[0], reach=4)
    index, still = np.arange(8), np.zeros((2, 8), int)
    given = pairs.moved(index, 0, *still)
    found = augmented(given, (Rotation(20), Scale(0.1)), np.random.default_rng(0))
    drawn = np.minimum(sum(images for _, images in found.parts), 1)
    assert np.abs(drawn - found.images).mean() < 0.01  # the sum was clipped before, here after
    assert np.abs(found.parts[0][1] - given.parts[0][1]).mean() > 0.02
    with pytest.raises(DataError, match="Mixup: these images already show several objects"):
        after(Mixup(), given)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: Rotation(200), "degrees must be a number from 0 to 180"),
        (lambda: Rotation(20, "gauss"), 'spread must be "uniform" or "normal"'),
        (lambda: Scale(1.0), "by must be a number from 0 to 0.9"),
        (lambda: Crop(1.5), "padding must be a whole number"),
        (lambda: Mixup(0), "alpha must be a number from 0.001"),
    ],
)
def test_wrong_settings(make: object, wanted: str) -> None:
    with pytest.raises(SpecError, match=wanted):
        make()  # type: ignore[operator]


def test_a_recipe_takes_them_and_tells_them() -> None:
    recipe = Recipe(augment=AUGMENTATIONS["digits"])
    assert Recipe.of({"recipe": recipe.as_json()}) == recipe
    with pytest.raises(TrainingError, match=r"augment must be of capscore\.data\.augment, such as Flip\(\), not 3"):
        Recipe(augment=(3,))  # type: ignore[arg-type]
    assert Recipe().augment == ()


def test_training_with_them_resumes_to_the_bit(tmp_path: Path) -> None:
    learn, test = load("digits")
    few = [type(d)(d.images[:48], d.labels[:48], d.classes) for d in (learn, test)]
    spec = CapsNetSpec((1, 28, 28), (Conv(4, 5, 2), PrimaryCaps(2, 4, 5, 2), DenseCaps(10, 4)), None)
    recipe = Recipe(epochs=2, batch=16, augment=(*AUGMENTATIONS["digits"], Mixup()))

    def run(folder: Path, **how: object) -> dict[str, np.ndarray]:
        net = NUMPY.CapsNet(spec)
        learner = NUMPY.Learner(net)
        train(net, learner, *few, recipe, folder, **how)
        return dict(net.params)

    whole = run(tmp_path / "whole")

    class Reporter:
        def __getattr__(self, name: str) -> object:
            return lambda *_: None

        def step(self, *_: object) -> None:
            self.steps = self.__dict__.get("steps", 0) + 1
            if self.steps == 4:
                raise BrokenPipeError(errno.EPIPE, "closed")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", reporters=(Reporter(),), checkpoint_seconds=0.0)
    assert (tmp_path / "part" / LAST).exists()
    again = run(tmp_path / "part", resume=True)
    for name, array in whole.items():
        np.testing.assert_array_equal(again[name], array)


def held(name: str, data: Dataset) -> Resident:
    """Images on the device of a backend: of torch here the CPU, of CuPy without a GPU its stand-in."""
    caps = backend(name)
    found = resident(data, 2, caps.images_on(caps.asarray(np.empty(0, np.float32))))
    assert isinstance(found, Resident)
    return found


@pytest.mark.parametrize("name", ["torch", "cupy"])
@pytest.mark.parametrize(
    "changes",
    [*((change,) for change in ALL), ALL],
    ids=lambda changes: "+".join(type(each).__name__ for each in changes),
)
def test_images_on_a_device_are_changed_there_as_those_of_the_host(
    name: str, changes: tuple[Augmentation, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    data = Dataset(rng.integers(0, 256, (40, 3, 28, 24), np.uint8), np.arange(40) % 2, ("a", "b"))
    recipe = Recipe(batch=16, shift=2, augment=changes)
    here = held(name, data)
    with monkeypatch.context() as patch:
        if "fake_cupy" in sys.modules and name == "cupy":  # the stand-in tells what would wait for a GPU

            def read(*_: object) -> None:
                raise AssertionError("the GPU is waited for")

            for asked in ("get", "item", "tolist", "__bool__", "__float__", "__int__"):
                patch.setattr(sys.modules["fake_cupy"].ndarray, asked, read, raising=False)
        there = list(batches(here, recipe, 1))
    caps = backend(name)
    for plain, found in zip(batches(data, recipe, 1), there, strict=True):
        assert type(found.images) is type(caps.asarray(plain.images))
        close(caps.to_numpy(found.images), plain.images, 1e-5)
        np.testing.assert_array_equal(found.targets, plain.targets)


def test_training_changes_images_where_they_are_held(tmp_path: Path) -> None:
    learn, test = load("digits")
    few = [type(d)(d.images[:48], d.labels[:48], d.classes) for d in (learn, test)]
    spec = CapsNetSpec((1, 28, 28), (Conv(4, 5, 2), PrimaryCaps(2, 4, 5, 2), DenseCaps(10, 4)), None)
    recipe = Recipe(epochs=1, batch=16, augment=(*AUGMENTATIONS["digits"], Mixup()))
    losses = {}
    for name in ("numpy", "cupy"):
        caps = backend(name)
        learner = caps.Learner(caps.CapsNet(spec))
        seen, step = [], learner.step

        def kept(images: object, *rest: object, seen: list = seen, step: object = step) -> object:
            seen.append(images)
            return step(images, *rest)  # type: ignore[operator]

        learner.step = kept
        rows = train(learner.net, learner, *few, recipe, tmp_path / name, reporters=())
        losses[name] = rows[0]["loss"]
        assert {type(images) for images in seen} == {type(caps.asarray(few[0].batch(slice(0, 1))[0]))}
    assert losses["cupy"] == pytest.approx(losses["numpy"], rel=1e-4)


def test_the_picture_names_every_change_on_its_page() -> None:
    need("matplotlib", "plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from capscore.figures import augmentations

    for changes in ((), (Flip(),), ALL):
        figure = augmentations(load("digits")[0], changes)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        shown = " ".join(text.get_text() for text in figure.texts)
        assert all(f"{type(change).__name__}(" in shown for change in changes)
        tiles = [ax.get_window_extent() for ax in figure.axes]
        for text in figure.texts:
            box = text.get_window_extent(canvas.get_renderer())
            assert figure.bbox.containsx(box.x1), text
            assert not any(box.overlaps(tile) for tile in tiles), text


def test_of_mixed_images_the_classes_of_the_most_are_right() -> None:
    from capscore.train.score import found_all, found_exactly

    targets = np.array([[0.7, 0.3, 0], [0.2, 0, 0.8], [1, 0, 0]])
    scores = np.array([[0.8, 0.1, 0.2], [0.6, 0.3, 0.4], [0.9, 0.3, 0.2]])
    assert found_all(scores, targets).tolist() == [True, False, True]
    assert found_exactly(scores, targets).tolist() == [True, False, True]


@pytest.mark.parametrize("change", [Translation(9), Crop(9), Erasing(9)])
def test_what_leaves_nothing_to_see_is_refused_before_training(change: Augmentation, tmp_path: Path) -> None:
    change.check(10, 10)
    with pytest.raises(DataError, match="leaves nothing to see of images of 10×9"):
        change.check(10, 9)
    learn, held_out = load("digits")
    net = NUMPY.CapsNet(PRESETS["small"])
    strong = replace(change, **{next(iter(change.settings())): 28})
    with pytest.raises(DataError, match="leaves nothing to see of images of 28×28"):
        train(net, NUMPY.Learner(net), learn, held_out, Recipe(1, 32, augment=(strong,)), tmp_path / "run")


def test_pictures_of_augmentation_show_the_shift_of_training() -> None:
    pytest.importorskip("matplotlib")
    from capscore.figures import augmentations

    shown = [
        np.asarray([image.get_array() for axes in augmentations(load("digits")[0], (), 2, 3, shift=shift).axes
                    for image in axes.get_images()])
        for shift in (0, 3)
    ]  # fmt: skip
    still, moved = shown
    assert (still[1] == still[2]).all()
    assert (moved[0] == still[0]).all()
    assert not (moved[1] == moved[2]).all()
