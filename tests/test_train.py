"""Training: one loop for every backend, resumed to the bit, interrupted without loss."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import backend

from capscore import CapsNetSpec, Conv, Decoder, DenseCaps, PrimaryCaps, modelfile
from capscore.data import HOST, Dataset, Framed, Pairs, Resident, load, resident, targets_of
from capscore.data.window import shifted
from capscore.errors import CapscoreError, DataError, ModelFileError, ShapeError, TrainingError, TrainingWarning
from capscore.model import objective
from capscore.train import BEST, LAST, LOG, Recipe, Stopped, accuracy, batches, found_all, locked, train
from capscore.train.ahead import ahead

TINY = CapsNetSpec(
    input=(1, 28, 28),
    stem=(Conv(4, kernel=7, stride=3),),
    primary=PrimaryCaps(types=2, dim=4, kernel=3, stride=2),
    capsules=(DenseCaps(10, dim=6),),
    decoder=Decoder((16,)),
)
RECIPE = Recipe(epochs=2, batch=32, seed=3)


@pytest.fixture(scope="module")
def digits():
    learn, held_out = load("digits")
    some = np.random.default_rng(0).permutation(len(learn))[:150]
    return replace(learn, images=learn.images[some], labels=learn.labels[some]), replace(
        held_out, images=held_out.images[::20], labels=held_out.labels[::20]
    )


def run(name, digits, folder, recipe=RECIPE, resume=False, reporters=(), spec=TINY, stop=0, **options):
    caps = backend(name)
    net = caps.CapsNet(spec, seed=recipe.seed, classes=digits[0].classes)
    learner = stopping(caps.Learner(net, recipe.reconstruction), stop)
    rows = train(net, learner, *digits, recipe, folder, resume, reporters, **options)
    return {key: caps.to_numpy(value).copy() for key, value in net.params.items()}, rows


def stopping(learner, steps):
    """Return the learner, at whose step number `steps` Ctrl-C is pressed."""
    step, count = learner.step, itertools.count(1)

    def counted(*args):
        if next(count) == steps:
            signal.raise_signal(signal.SIGINT)
        return step(*args)

    learner.step = counted
    return learner


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("steps", [1, 3, 5, 7])  # within an epoch, at its last step, within the next
def test_a_resumed_run_ends_with_the_same_bits(name, steps, digits, tmp_path):
    whole, rows = run(name, digits, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(name, digits, tmp_path / "cut", stop=steps)
    resumed, rows_again = run(name, digits, tmp_path / "cut", resume=True)
    for key in whole:
        np.testing.assert_array_equal(whole[key], resumed[key])
    for row, again in zip(rows, rows_again, strict=True):
        for key in ("epoch", "steps", "loss", "accuracy", "held_out_accuracy"):
            assert row[key] == again[key]
    read = [modelfile.read(tmp_path / run / LAST).state for run in ("whole", "cut")]
    assert len(read[0]) == 2 * len(TINY.parameters)
    for key in read[0]:
        np.testing.assert_array_equal(read[0][key], read[1][key])


def test_more_epochs_may_be_asked_for_on_resuming(digits, tmp_path):
    longer, _ = run("numpy", digits, tmp_path / "longer", replace(RECIPE, epochs=3))
    run("numpy", digits, tmp_path / "run")
    resumed, rows = run("numpy", digits, tmp_path / "run", replace(RECIPE, epochs=3), resume=True)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for key in longer:
        np.testing.assert_array_equal(longer[key], resumed[key])


def test_a_killed_run_loses_nothing_before_its_checkpoint(digits, tmp_path):
    """kill -9 at any moment leaves readable files, and resuming ends with the bits of an undisturbed run."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_train as t; from capscore.data import load\n"
        "from dataclasses import replace; import numpy as np\n"
        "a, b = load('digits'); some = np.random.default_rng(0).permutation(len(a))[:150]\n"
        "a = replace(a, images=a.images[some], labels=a.labels[some])\n"
        "b = replace(b, images=b.images[::20], labels=b.labels[::20])\n"
        "t.run('numpy', (a, b), sys.argv[2], replace(t.RECIPE, epochs=400), checkpoint_seconds=0.0)\n"
    )
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", program, os.path.dirname(__file__), str(folder)])
    while not (folder / LOG).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    read = modelfile.read(folder / LAST)
    epochs = read.provenance["training"]["epoch"] + 2
    recipe = replace(RECIPE, epochs=epochs)
    about = read.provenance | {"recipe": read.provenance["recipe"] | {"epochs": epochs}}
    modelfile.save(folder / LAST, replace(read, provenance=about))
    resumed, rows = run("numpy", digits, folder, recipe, resume=True)
    whole, _ = run("numpy", digits, tmp_path / "whole", recipe)
    assert len(rows) == epochs
    for key in whole:
        np.testing.assert_array_equal(whole[key], resumed[key])


def test_what_a_training_leaves_behind(digits, tmp_path):
    params, rows = run("numpy", digits, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([BEST, LAST, LOG])
    assert [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()] == rows
    last, best = modelfile.read(tmp_path / LAST), modelfile.read(tmp_path / BEST)
    assert last.spec == best.spec == TINY
    assert best.classes == digits[0].classes
    assert best.provenance["held_out_accuracy"] == max(row["held_out_accuracy"] for row in rows)
    for key in params:
        np.testing.assert_array_equal(last.params[key], params[key])
    assert not best.state
    net = backend("numpy").load(tmp_path / BEST)
    assert accuracy(net, digits[1]) == best.provenance["held_out_accuracy"]


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_all_learn_the_same_as_numpy(name, digits, tmp_path):
    _, ours = run("numpy", digits, tmp_path / "numpy")
    _, theirs = run(name, digits, tmp_path / name)
    np.testing.assert_allclose([r["loss"] for r in ours], [r["loss"] for r in theirs], rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_training(digits, tmp_path):
    images = digits[0].batch(slice(None))[0].copy()
    bad = Dataset(images, digits[0].labels, digits[0].classes)
    images[7] = np.nan  # after Dataset has looked: as a broken augmentation would
    with pytest.raises(TrainingError, match=r"loss became nan at step \d.*smaller rate \(nothing was saved yet\)"):
        run("numpy", (bad, digits[1]), tmp_path)


def test_a_shift_leaves_something_to_see(digits, tmp_path):
    with pytest.raises(TrainingError, match="a shift of 28 pixels moves images"):
        run("numpy", digits, tmp_path, replace(RECIPE, shift=28))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed was 3"),
        ({"batch": 16}, "batch was 32"),
        ({"rate": 1.0}, "rate was 0.001"),
    ],
)
def test_resuming_with_other_settings_is_refused(change, message, digits, tmp_path):
    run("numpy", digits, tmp_path, replace(RECIPE, epochs=1))
    with pytest.raises(TrainingError, match=message):
        run("numpy", digits, tmp_path, replace(RECIPE, **change), resume=True)


def test_no_second_training_writes_into_a_folder(digits, tmp_path):
    refused = []

    class Second:
        """Tries to train in the same folder, before the first checkpoint and after every epoch."""

        def begin(self, epoch, *_):
            if epoch == 1:
                self.end(None, resume=False)

        def step(self, *_):
            pass

        def end(self, _, resume=True):
            before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
            with pytest.raises(TrainingError, match="another training is writing into"):
                run("numpy", digits, tmp_path, resume=resume)
            assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
            refused.append(resume)

    run("numpy", digits, tmp_path, reporters=(Second(),))
    assert refused == [False, True, True]
    run("numpy", digits, tmp_path, replace(RECIPE, epochs=3), resume=True)  # the first has ended


def test_resuming_nothing_another_network_or_no_checkpoint_is_refused(digits, tmp_path):
    with pytest.raises(TrainingError, match=r"last.safetensors is missing"):
        run("numpy", digits, tmp_path, resume=True)
    run("numpy", digits, tmp_path, replace(RECIPE, epochs=1))
    with pytest.raises(TrainingError, match="another network"):
        run("numpy", digits, tmp_path, resume=True, spec=replace(TINY, decoder=None))
    with pytest.raises(TrainingError, match="already holds a training"):
        run("numpy", digits, tmp_path)
    (tmp_path / BEST).rename(tmp_path / LAST)
    with pytest.raises(TrainingError, match="no checkpoint"):
        run("numpy", digits, tmp_path, resume=True)


def test_resuming_with_other_data_is_refused(digits, tmp_path):
    learn, held_out = digits
    run("numpy", digits, tmp_path, replace(RECIPE, epochs=1))
    fewer = replace(learn, images=learn.images[:149], labels=learn.labels[:149])
    renamed = replace(learn, classes=tuple("abcdefghij"))
    for other, message in ((fewer, "150 images .*; these are 149"), (renamed, "these are 150 of a, b, c")):
        with pytest.raises(TrainingError, match=message):
            run("numpy", (other, replace(held_out, classes=other.classes)), tmp_path, resume=True)


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("shape", [(1,), (), (2, 2)])
def test_moments_of_another_shape_are_refused(name, shape, digits, tmp_path):
    run(name, digits, tmp_path, replace(RECIPE, epochs=1))
    model = modelfile.read(tmp_path / LAST)
    moment = modelfile.STATE + "second.decoder.0.bias"
    modelfile.save(tmp_path / LAST, replace(model, state=model.state | {moment: np.zeros(shape, np.float32)}))
    with pytest.raises(TrainingError, match=r"is no checkpoint .* second\.decoder\.0\.bias has shape"):
        run(name, digits, tmp_path, resume=True)


@pytest.mark.parametrize(
    "told",
    [
        *({"epoch": value} for value in ("x", None, -1, 2, 10**400, 1.0, True)),
        *({"step": 6}, {"step": 5}, {"steps": "x"}, {"seconds": float("inf")}, {"best": "x"}, {"loss": float("nan")}),
        *({"log": value} for value in ("x", [5], [{}], None, [])),
    ],
    ids=lambda told: f"{next(iter(told))} {str(next(iter(told.values())))[:9]}",
)
def test_a_checkpoint_that_tells_nonsense_is_refused(told, digits, tmp_path):
    run("numpy", digits, tmp_path, replace(RECIPE, epochs=1))
    model = modelfile.read(tmp_path / LAST)
    log = told.get("log", model.provenance["log"])
    training = model.provenance["training"] | {key: value for key, value in told.items() if key != "log"}
    modelfile.save(tmp_path / LAST, replace(model, provenance=model.provenance | {"training": training, "log": log}))
    with pytest.raises(TrainingError, match="is no checkpoint of a training"):
        run("numpy", digits, tmp_path, resume=True)


def test_a_second_interrupt_does_not_wait_and_does_not_say_that_it_saved(digits, tmp_path):
    class Pressed:
        def begin(self, *_):
            """Press twice before the first step."""
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stop:
        run("numpy", digits, tmp_path, reporters=(Pressed(),))
    assert not isinstance(stop.value, Stopped)
    assert not (tmp_path / LAST).exists()
    with pytest.raises(Stopped):
        run("numpy", digits, tmp_path, stop=1)
    assert (tmp_path / LAST).exists()


def test_a_process_that_is_left_alone_saves_what_it_did(digits, tmp_path):
    caps = backend("numpy")
    net = caps.CapsNet(TINY, seed=RECIPE.seed)
    learner, steps = caps.Learner(net), itertools.count(1)
    step = learner.step

    def lost(*args):
        if next(steps) == 4:
            raise TrainingError("another process of this training has ended")
        return step(*args)

    learner.step = lost
    with pytest.raises(TrainingError, match="another process"):
        train(net, learner, *digits, RECIPE, tmp_path)
    assert modelfile.read(tmp_path / LAST).provenance["training"]["steps"] == 3
    resumed, _ = run("numpy", digits, tmp_path, resume=True)
    whole, _ = run("numpy", digits, tmp_path / "whole")
    for key, value in whole.items():
        np.testing.assert_array_equal(resumed[key], value)


def test_numbers_of_numpy_make_a_recipe():
    recipe = Recipe(rate=np.float64(0.1), seed=np.int64(3), batch=np.int32(8))
    assert (type(recipe.rate), type(recipe.seed), recipe.batch) == (float, int, 8)


def test_datasets_that_do_not_fit_are_refused(digits, tmp_path):
    nine = Dataset(digits[1].images, digits[1].labels % 9, tuple("012345678"))
    with pytest.raises(CapscoreError, match="held-out set has 9 classes; the network has 10"):
        run("numpy", (digits[0], nine), tmp_path)
    cropped = replace(digits[1], images=digits[1].images[..., :20])
    with pytest.raises(CapscoreError, match="held-out images are"):
        run("numpy", (digits[0], cropped), tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        *({"epochs": 0}, {"batch": 0}, {"batch": 2.5}, {"rate": float("nan")}, {"shift": -1}, {"decay_steps": 0}),
        *({"rate": "0.1"}, {"rate": None}, {"decay": 1.5}, {"seed": True}),
    ],
)
def test_a_recipe_checks_its_numbers(settings):
    with pytest.raises(TrainingError, match=next(iter(settings))):
        Recipe(**settings)


def test_the_rate_decays_to_its_floor():
    recipe = Recipe(rate=1e-3, decay=0.96, decay_steps=2000, floor=1e-6)
    assert recipe.rate_at(0, 10) == 1e-3
    assert recipe.rate_at(2000, 10**7) == pytest.approx(0.96e-3)
    assert recipe.rate_at(10**6, 10**7) == 1e-6


def test_every_image_is_shifted_by_its_own_amount_and_zeros_enter():
    images = np.ones((200, 1, 5, 6), np.float32)
    images[:, :, 2, 3] = 2  # a mark to find
    wide = Dataset(images / 2, np.zeros(200, np.int64), ("one",)).batch(slice(None), 2)[0] * 2
    moved = shifted(wide, 2, *np.random.default_rng(0).integers(0, 5, (2, 200)))
    _, _, rows, columns = np.nonzero(moved == 2)
    assert {(r - 2, c - 3) for r, c in zip(rows, columns, strict=True)} == {
        (r, c) for r in range(-2, 3) for c in range(-2, 3)
    }
    for image, r, c in zip(moved[:, 0], rows - 2, columns - 3, strict=True):
        expected = np.zeros((9, 10))
        expected[2 + r : 7 + r, 2 + c : 8 + c] = images[0, 0]
        np.testing.assert_array_equal(image, expected[2:7, 2:8])


def test_an_epoch_shows_every_image_once_and_each_epoch_in_another_order(digits):
    seen = [
        np.concatenate([batch.targets for batch in batches(digits[0], RECIPE, epoch)]).argmax(1) for epoch in (0, 1)
    ]
    assert all(np.array_equal(np.sort(order), np.sort(digits[0].labels)) for order in seen)
    assert not np.array_equal(*seen)
    skipped = list(batches(digits[0], RECIPE, 0, skip=2))
    for a, b in zip(skipped, list(batches(digits[0], RECIPE, 0))[2:], strict=True):
        np.testing.assert_array_equal(a.images, b.images)


def test_a_crop_is_shifted_into_its_own_surroundings():
    """What a patch takes in when it moves is the image's own, and a shift costs no pixel where there are some."""
    rng = np.random.default_rng(0)
    whole = Dataset(rng.integers(1, 256, (30, 3, 12, 12)).astype(np.uint8), np.arange(30) % 2, ("a", "b"))
    patches = Framed(whole, 8, 8)
    recipe = Recipe(epochs=1, batch=30, shift=patches.shift)
    ((images, targets, parts),) = batches(patches, recipe, 0)
    assert images.shape == (30, 3, 8, 8)
    assert images.min() > 0
    assert targets.shape == (30, 2)
    assert parts == ()


def test_the_longest_capsules_are_compared_with_the_labels():
    lengths = np.array([[0.9, 0.1, 0.8], [0.2, 0.3, 0.1], [0.5, 0.5, 0.5]])
    for labels in (np.array([0, 0, 0]), np.array([[2, 0], [0, 2], [1, 0]])):
        np.testing.assert_array_equal(found_all(lengths, targets_of(labels, 3)), [True, False, True])
    mixed = np.array([[1.0, 1, 1], [0, 1, 0], [0, 1, 0]])  # as many classes as each image shows
    np.testing.assert_array_equal(found_all(lengths, mixed), [True, True, False])


@pytest.fixture
def pairs(digits):
    return Pairs(digits[0], 0, 1), Pairs(digits[1], 1, 1)


def test_pairs_come_apart_and_are_shifted_together(pairs):
    recipe = Recipe(epochs=1, batch=150, shift=3, seed=2)
    (batch,) = batches(pairs[0], recipe, 0)
    parts = np.stack([image for _, image in batch.parts], 1)
    assert parts.shape == (150, 2, 1, 36, 36)
    whole = Recipe(epochs=1, batch=150, shift=0, seed=2)
    (same,) = batches(pairs[0], whole, 0)
    still = np.stack([image for _, image in same.parts], 1)
    np.testing.assert_array_equal(batch.targets, same.targets)
    np.testing.assert_array_equal(batch.targets, sum(targets for targets, _ in batch.parts))
    np.testing.assert_array_equal(batch.images, np.minimum(parts.sum(1), 1))
    inner = still[0, :, 0].sum(0).nonzero()
    outer = parts[0, :, 0].sum(0).nonzero()
    move = outer[0].min() - inner[0].min(), outer[1].min() - inner[1].min()
    np.testing.assert_array_equal(np.roll(still[0], move, (2, 3))[:, :, 4:-4, 4:-4], parts[0][:, :, 4:-4, 4:-4])


def test_each_object_of_a_pair_is_reconstructed_on_its_own(pairs):
    """Section 6: two decodings, each of one capsule, each against the image of that one object."""
    caps = backend("numpy")
    net = caps.CapsNet(replace(TINY, input=(1, 36, 36)), dtype="float64")
    parts, labels = pairs[0].parts(np.arange(5))
    images = np.minimum(parts.sum(1), 1)
    each = np.eye(10)[labels]
    loss, _ = objective(
        caps, net.spec, net.params, images, each.sum(1), 0.01, [(each[:, i], parts[:, i]) for i in (0, 1)]
    )
    plain, _ = objective(caps, net.spec, net.params, images, each.sum(1), 0.0)
    capsules = net(images).capsules
    drawn = [net.reconstruct(capsules, labels[:, i]) for i in (0, 1)]
    squares = sum(((drawn[i] - parts[:, i]) ** 2).sum() / 5 for i in (0, 1))
    assert float(loss) == pytest.approx(float(plain) + 0.01 * squares, rel=1e-12)


@pytest.mark.parametrize("other", ["torch", "jax"])
def test_all_learn_the_same_as_numpy_from_pairs(other, pairs, tmp_path):
    spec = replace(TINY, input=(1, 36, 36))
    losses = []
    for name in ("numpy", other):
        caps = backend(name)
        net = caps.CapsNet(spec, seed=RECIPE.seed, classes=pairs[0].classes)
        rows = train(
            net, caps.Learner(net, 0.01), *pairs, replace(RECIPE, shift=1, reconstruction=0.01), tmp_path / name
        )
        losses.append([row["loss"] for row in rows])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    whole, _ = run("numpy", pairs, tmp_path / "whole", spec=spec)
    with pytest.raises(KeyboardInterrupt):
        run("numpy", pairs, tmp_path / "cut", spec=spec, stop=3)
    resumed, _ = run("numpy", pairs, tmp_path / "cut", spec=spec, resume=True)
    for key in whole:
        np.testing.assert_array_equal(whole[key], resumed[key])


def test_a_folder_that_takes_no_files_is_a_clear_error(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ModelFileError, match="cannot write into the folder"):
        run("numpy", digits, tmp_path)


def test_a_folder_that_cannot_be_made_is_a_clear_error(digits, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="cannot make the folder"):
        run("numpy", digits, tmp_path / "file" / "run")


def test_a_full_disk_ends_training_and_keeps_the_last_checkpoint(digits, tmp_path, monkeypatch):
    run("numpy", digits, tmp_path, replace(RECIPE, epochs=1))
    before = (tmp_path / LAST).read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CapscoreError, match="No space left on device; nothing was changed"):
        run("numpy", digits, tmp_path, replace(RECIPE, epochs=2), resume=True)
    assert (tmp_path / LAST).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([BEST, LAST, LOG])


def test_torch_options_and_their_absence_elsewhere(digits, tmp_path):
    plain = backend("numpy").CapsNet(TINY)
    with pytest.raises(CapscoreError, match="no option amp; the torch backend does"):
        backend("numpy").Learner(plain, amp=True)
    caps = backend("torch")
    with pytest.raises(CapscoreError, match="cannot use the device 'nowhere'"):
        caps.Learner(caps.CapsNet(TINY), device="nowhere")
    net = caps.CapsNet(TINY, seed=RECIPE.seed, classes=digits[0].classes)
    rows = train(net, caps.Learner(net, amp=True), *digits, RECIPE, tmp_path / "amp")
    _, exact = run("torch", digits, tmp_path / "exact")
    assert rows[-1]["loss"] == pytest.approx(exact[-1]["loss"], rel=0.02)


def test_tensorboard_events_hold_the_log(digits, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from capscore.train.report import TensorBoard

    _, rows = run("numpy", digits, tmp_path, reporters=(TensorBoard(tmp_path),))
    events = EventAccumulator(str(tmp_path)).Reload()
    found = [event.value for event in events.Scalars("held_out_accuracy")]
    np.testing.assert_allclose(found, [row["held_out_accuracy"] for row in rows], rtol=1e-6)


@pytest.mark.parametrize("name", ["torch", "cupy"])
def test_images_held_on_a_device_come_in_the_same_batches(name, digits):
    caps = backend(name)
    whole = Dataset(np.random.default_rng(0).integers(0, 256, (40, 3, 14, 12), np.uint8), np.arange(40) % 2, ("a", "b"))
    for data in (digits[0], Framed(whole, 9, 8)):
        held = resident(data, data.shift, caps.images_on(caps.asarray(np.empty(0, np.float32))))
        assert isinstance(held, Resident)
        assert (held.size, held.shift, held.classes, len(held)) == (data.size, data.shift, data.classes, len(data))
        recipe = replace(RECIPE, shift=data.shift)
        for plain, here in zip(batches(data, recipe, 1), batches(held, recipe, 1), strict=True):
            np.testing.assert_array_equal(plain.images, caps.to_numpy(here.images))
            np.testing.assert_array_equal(plain.targets, here.targets)
        np.testing.assert_array_equal(held.batch(slice(3, 9))[0], data.batch(slice(3, 9))[0])


@pytest.mark.parametrize("fast_conv", [None, "6x6"])
def test_a_step_on_a_gpu_is_not_waited_for(digits, monkeypatch, fast_conv):
    """Neither loss nor anything else is read on the host: the stand-in for CuPy tells, CuPy itself does not."""
    fake_cupy = pytest.importorskip("fake_cupy")
    if sys.modules["cupy"] is not fake_cupy:
        pytest.skip("the real CuPy is here")
    monkeypatch.setattr(fake_cupy.ndarray, "__cuda_array_interface__", {}, raising=False)
    caps = backend("cupy")
    spec = replace(TINY, stem=(Conv(96, kernel=7, stride=3),))
    learner = caps.Learner(caps.CapsNet(spec, fast_conv=fast_conv))
    held = learner.to_device(digits[0], 2)
    images, targets, _ = next(batches(held, RECIPE, 0))
    learner.step(images, targets, 1e-3)

    def read(*_):
        raise AssertionError("the GPU is waited for")

    for name in ("get", "item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(fake_cupy.ndarray, name, read)
    loss, _ = learner.step(images, targets, 1e-3)
    with pytest.raises(AssertionError, match="waited for"):
        float(loss)


def test_what_is_drawn_or_too_large_is_not_held_on_a_device(digits, pairs, monkeypatch):
    assert resident(pairs[0], 0, HOST) is pairs[0]
    monkeypatch.setattr(sys.modules["capscore.data.resident"], "LARGEST", len(digits[0]) * 32 * 32 * 4 - 1)
    assert resident(digits[0], 2, HOST) is digits[0]
    assert resident(digits[0], 1, HOST) is not digits[0]


def test_the_next_batch_is_prepared_while_one_is_in_use():
    asked = [threading.Event() for _ in range(3)]

    def items():
        for number, event in enumerate(asked):
            event.set()
            yield number
        raise DataError("damaged")

    coming = ahead(items())
    for number in range(3):
        assert next(coming) == number
        assert all(event.wait(60) for event in asked[: number + 2])
        assert not any(event.is_set() for event in asked[number + 2 :]), "one, not more"
    with pytest.raises(DataError, match="damaged"):  # in the thread of who asks
        next(coming)


def test_training_prepares_batches_in_another_thread(digits, tmp_path, monkeypatch):
    made = set()

    def noted(*args):
        for batch in batches(*args):
            made.add(threading.get_ident())
            yield batch

    monkeypatch.setattr("capscore.train.loop.batches", noted)
    run("numpy", digits, tmp_path, replace(RECIPE, epochs=1))
    assert made
    assert threading.get_ident() not in made


class Told:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.rows = []

    def begin(self, *row):
        self.rows.append(row)

    def step(self, *row):
        self.rows.append(row)

    def end(self, row):
        self.rows.append(row["loss"])


def test_the_learner_and_the_recipe_weigh_reconstruction_alike(digits, tmp_path):
    caps = backend("numpy")
    net = caps.CapsNet(TINY)
    with pytest.raises(TrainingError, match=r"reconstruction 0.0005, the recipe 0.05: make it as Learner\(net, recipe"):
        train(net, caps.Learner(net), *digits, replace(RECIPE, reconstruction=0.05), tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_file_tells_the_epoch_it_is_of(digits, tmp_path, monkeypatch):
    found = iter([0.5, 0.9, 0.7])
    monkeypatch.setattr(sys.modules["capscore.train.training"], "accuracy", lambda *_: next(found))
    caps = backend("numpy")
    net = caps.CapsNet(TINY, classes=digits[0].classes)
    train(net, caps.Learner(net), *digits, replace(RECIPE, epochs=3), tmp_path)
    net.save(tmp_path / "now.safetensors")
    told = [modelfile.read(tmp_path / name).provenance for name in (BEST, LAST, "now.safetensors")]
    assert [about["epoch"] for about in told] == [2, 3, 3]
    assert [about["held_out_accuracy"] for about in told] == [0.9, 0.7, 0.7]


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_a_step_takes_what_it_can_learn_from(name):
    caps = backend(name)
    learner = caps.Learner(caps.CapsNet(TINY))
    images, targets = np.zeros((10, 1, 28, 28), np.float32), np.eye(10)
    with pytest.raises(ShapeError, match=r"images / 255 of whole numbers"):
        learner.step(images.astype(np.uint8), targets, 1e-3)
    with pytest.raises(ShapeError, match=r"images have shape \[10, 28, 28\]"):
        learner.step(images[:, 0], targets, 1e-3)
    with pytest.raises(ShapeError, match=r"a batch of 0 images; wanted at least 1"):
        learner.step(images[:0], targets[:0], 1e-3)
    with pytest.raises(ShapeError, match=r"targets \[10\] must be of one shape .*np\.eye\(J\)\[labels\]"):
        learner.step(images, np.arange(10.0), 1e-3)


def test_losses_may_be_read_late(digits, tmp_path, monkeypatch):
    """However seldom they are read, the log, the reports and what a cut leaves behind are the same."""
    found = []
    for i, seconds in enumerate((-1.0, np.inf)):
        monkeypatch.setattr("capscore.train.training.READ_SECONDS", seconds)
        told, again = Told(), Told()
        run("numpy", digits, tmp_path / f"whole{i}", reporters=(told,))
        with pytest.raises(KeyboardInterrupt):
            run("numpy", digits, tmp_path / f"cut{i}", reporters=(again,), stop=3)
        found.append((told.rows, again.rows, modelfile.read(tmp_path / f"cut{i}" / LAST).provenance["training"]))
        assert len(again.rows) == 4
    (*told, cut), (*late, cut_late) = found
    assert told == late
    assert {**cut, "seconds": 0} == {**cut_late, "seconds": 0}


def test_no_checkpoint_is_made_of_what_follows_a_loss_that_is_not_finite(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("capscore.train.training.READ_SECONDS", np.inf)
    images = digits[0].batch(slice(None))[0].copy()
    bad = Dataset(images, digits[0].labels, digits[0].classes)
    order = np.random.default_rng([RECIPE.seed, 0]).permutation(len(bad))
    images[order[2 * RECIPE.batch]] = np.nan  # in the third step
    with pytest.raises(TrainingError, match="loss became nan at step 3"):
        run("numpy", (bad, digits[1]), tmp_path / "at the end")
    assert not (tmp_path / "at the end" / LAST).exists()
    with pytest.raises(TrainingError, match="loss became nan at step 3"):
        run("numpy", (bad, digits[1]), tmp_path / "checked", checkpoint_seconds=0.0)
    kept = modelfile.read(tmp_path / "checked" / LAST)
    assert kept.provenance["training"]["steps"] == 2
    assert all(np.isfinite(p).all() for p in kept.params.values())


# --------------------------------------------------------------------------------------- parameters without a gradient

FROZEN = ("stem.0.weight", "stem.0.bias", "primary.weight", "primary.bias")
PLAIN = replace(RECIPE, reconstruction=0)


class Reporter:
    """A reporter that does nothing, to be derived from."""

    def begin(self, *_):
        pass

    def step(self, *_):
        pass

    def end(self, _):
        pass


def freezing(name, digits, folder, frozen, recipe=RECIPE, resume=False, stop=0, reporters=()):
    """Train with some parameters frozen, if `frozen` is not None; return the parameters and what is frozen then."""
    caps = backend(name)
    net = caps.CapsNet(TINY, seed=recipe.seed, classes=digits[0].classes)
    learner = stopping(caps.Learner(net, recipe.reconstruction), stop)
    if frozen is not None:
        learner.frozen = frozen
    train(net, learner, *digits, recipe, folder, resume, [make(learner) for make in reporters])
    return {key: caps.to_numpy(value).copy() for key, value in net.params.items()}, learner.frozen


@pytest.mark.parametrize("name", ["numpy", "cupy", "torch"])
@pytest.mark.parametrize("frozen", [(), FROZEN], ids=["unused", "frozen"])
def test_parameters_without_a_gradient_stay_and_resume(name, frozen, digits, tmp_path):
    """Without reconstruction the decoder has no gradient; what is frozen has none either."""
    recipe = PLAIN if not frozen else RECIPE
    still = frozen or [key for key in TINY.parameters if key.startswith("decoder")]
    whole, _ = freezing(name, digits, tmp_path / "whole", frozen, recipe)
    with pytest.raises(Stopped):
        freezing(name, digits, tmp_path / "cut", frozen, recipe, stop=3)
    resumed, found = freezing(name, digits, tmp_path / "cut", None, recipe, resume=True)
    assert found == frozen
    first = {key: backend(name).to_numpy(p) for key, p in backend(name).CapsNet(TINY, seed=3).params.items()}
    last = modelfile.read(tmp_path / "cut" / LAST)
    assert last.provenance["frozen"] == list(frozen)
    for key in TINY.parameters:
        np.testing.assert_array_equal(whole[key], resumed[key])
        assert np.array_equal(whole[key], first[key]) == (key in still)
        for moment in ("first", "second"):
            assert (not last.state[f"optimizer.{moment}.{key}"].any()) == (key in still)


def test_requires_grad_is_what_torch_freezes_by(digits, tmp_path):
    caps = backend("torch")
    net = caps.CapsNet(TINY, seed=3, classes=digits[0].classes)
    for key in ("stem", "primary"):
        net.get_submodule(key).requires_grad_(False)
    learner = caps.Learner(net)
    assert learner.frozen == FROZEN
    train(net, learner, *digits, replace(RECIPE, epochs=1), tmp_path)
    again = caps.CapsNet(TINY, seed=3, classes=digits[0].classes)
    train(again, caps.Learner(again), *digits, RECIPE, tmp_path, resume=True)
    assert [key for key, p in again.params.items() if not p.requires_grad] == list(FROZEN)


@pytest.mark.parametrize(("first", "second"), [("torch", "numpy"), ("numpy", "torch")])
def test_what_is_frozen_stays_so_on_another_backend(first, second, digits, tmp_path):
    one = replace(PLAIN, epochs=1)
    before, _ = freezing(first, digits, tmp_path, FROZEN, one)
    after, found = freezing(second, digits, tmp_path, None, PLAIN, resume=True)
    assert found == FROZEN
    for key in TINY.parameters:
        assert np.array_equal(before[key], after[key]) == (key in FROZEN or key.startswith("decoder")), key


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_what_is_thawed_in_between_resumes_to_the_bit(name, digits, tmp_path):
    """PyTorch corrects the moments of every parameter by the number of its own steps."""

    class Thaw(Reporter):
        def __init__(self, learner):
            self.learner = learner

        def end(self, row):
            if row["epoch"] == 1:
                self.learner.frozen = ()

    whole, _ = freezing(name, digits, tmp_path / "whole", FROZEN, reporters=[Thaw])
    with pytest.raises(Stopped):
        freezing(name, digits, tmp_path / "cut", FROZEN, stop=7, reporters=[Thaw])
    resumed, found = freezing(name, digits, tmp_path / "cut", None, resume=True)
    assert found == ()
    for key in whole:
        np.testing.assert_array_equal(whole[key], resumed[key])


@pytest.mark.parametrize("name", ["cupy", "torch", "jax"])
def test_what_is_thawed_counts_its_own_steps_on_every_backend(name, digits):
    """Adam divides by how far its means have come, which is what a parameter's own steps say."""
    found = {}
    for each in ("numpy", name):
        caps = backend(each)
        net = caps.CapsNet(TINY, seed=3, dtype="float64")
        learner = caps.Learner(net)
        learner.frozen = FROZEN
        for step in range(6):
            if step == 4:
                learner.frozen = ()
            x, labels = digits[0].batch(slice(8 * step, 8 * step + 8))
            learner.step(x, targets_of(labels, 10), 1e-3)
        again = caps.Learner(net)
        again.restore(learner.state(), 6)
        assert learner.state().keys() == again.state().keys() >= {f"steps.{key}" for key in FROZEN}
        found[each] = {key: caps.to_numpy(p) for key, p in net.params.items()} | learner.state()
    assert found["numpy"].keys() == found[name].keys()
    for key in found["numpy"]:
        np.testing.assert_allclose(found[name][key], found["numpy"][key], rtol=1e-6, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("name", ["numpy", "cupy", "torch"])
def test_only_parameters_are_frozen(name):
    caps = backend(name)
    learner = caps.Learner(caps.CapsNet(TINY))
    with pytest.raises(ShapeError, match=r"there is no parameter 'stem\.weight' to freeze; there are stem\.0\."):
        learner.frozen = ("stem.weight",)
    assert learner.frozen == ()
    learner.frozen = "stem.0.weight"
    assert learner.frozen == ("stem.0.weight",)


@pytest.mark.parametrize("name", ["numpy", "cupy", "torch"])
@pytest.mark.parametrize("learns", [[], ["decoder.0.weight"]], ids=["none", "unused"])
def test_where_nothing_can_learn_a_clear_error_leaves_nothing(name, learns, digits, tmp_path):
    frozen = tuple(key for key in TINY.parameters if key not in learns)
    with pytest.raises(TrainingError, match=r"frozen, so nothing can be learned: learner\.frozen = \(\) lets"):
        freezing(name, digits, tmp_path, frozen, PLAIN)
    assert not list(tmp_path.iterdir())
    freezing(name, digits, tmp_path, (), replace(PLAIN, epochs=1))


# ------------------------------------------------------------------------------------ a checkpoint that proves itself


@pytest.fixture(scope="module")
def whole_run(digits, tmp_path_factory):
    """The folder of a training of one epoch."""
    folder = tmp_path_factory.mktemp("run")
    run("numpy", digits, folder, replace(RECIPE, epochs=1))
    return folder


def tampered(folder, target, change):
    """Copy a run, its checkpoint changed and with a digest that is right again."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    model = modelfile.read(folder / LAST)
    about = json.loads(json.dumps(model.provenance))
    params, state = dict(model.params), {key.removeprefix("optimizer."): a for key, a in model.state.items()}
    change(params, state, about)
    named = {f"optimizer.{key}": array for key, array in state.items()}
    modelfile.save(target / LAST, replace(model, params=params, state=named, provenance=about))


def put(array, value):
    changed = array.copy()
    changed.flat[0] = value
    return changed


WEIGHT = "primary.weight"
TAMPERINGS = {
    "moments in float16": (lambda p, s, a: s.update({k: v.astype(np.float16) for k, v in s.items()}), "is stored as"),
    "one in float64": (lambda p, s, a: s.update({"first." + WEIGHT: s["first." + WEIGHT].astype("f8")}), "is stored"),
    "no steps": (lambda p, s, a: a["training"].update(steps=0), "are not 0 steps"),
    "many steps": (lambda p, s, a: a["training"].update(steps=10**15), "are not 10{15} steps"),
    "another epoch": (lambda p, s, a: (a["training"].update(epoch=0, best=-1), a["log"].clear()), "are not 5 steps"),
    "right answers": (lambda p, s, a: a["training"].update(correct=1), "correct is 1"),
    "another best": (lambda p, s, a: a["training"].update(best=2.0), "the best accuracy of its log is not 2.0"),
    "a log of another epoch": (lambda p, s, a: a["log"][0].update(epoch=2), "epochs in their order"),
    "signs": (lambda p, s, a: s.update({"second." + WEIGHT: -s["second." + WEIGHT]}), "holds negative numbers"),
    "swapped moments": (
        lambda p, s, a: s.update({"first." + WEIGHT: s["second." + WEIGHT], "second." + WEIGHT: s["first." + WEIGHT]}),
        r"second\.primary\.weight holds negative numbers",
    ),
    "NaN in a moment": (lambda p, s, a: s.update({"first." + WEIGHT: put(s["first." + WEIGHT], np.nan)}), "holds NaN"),
    "infinity": (lambda p, s, a: s.update({"second." + WEIGHT: put(s["second." + WEIGHT], np.inf)}), "infinity"),
    "NaN in a parameter": (lambda p, s, a: p.update({WEIGHT: put(p[WEIGHT], np.nan)}), "primary.weight holds NaN"),
    "a moment too few": (lambda p, s, a: s.pop("first." + WEIGHT), r"first\.primary\.weight is missing"),
    "a moment too many": (lambda p, s, a: s.update({"third.x": np.zeros(1, "f4")}), "third.x belongs to no parameter"),
    "own steps": (lambda p, s, a: s.update({"steps." + WEIGHT: np.array([6.0])}), "no whole number from 0 to 5"),
    "half a step": (lambda p, s, a: s.update({"steps." + WEIGHT: np.array([0.5])}), "no whole number from 0 to 5"),
    "NaN steps": (lambda p, s, a: s.update({"steps." + WEIGHT: np.array([np.nan])}), "no whole number from 0 to 5"),
    "frozen strangers": (lambda p, s, a: a.update(frozen=["x"]), "there is no parameter 'x' to freeze"),
    "frozen nonsense": (lambda p, s, a: a.update(frozen=[[1]]), r"there is no parameter \[1\] to freeze"),
    "no progress": (lambda p, s, a: a.pop("training"), "'training' is missing"),
}


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize(("change", "message"), TAMPERINGS.values(), ids=TAMPERINGS)
def test_parts_of_a_checkpoint_that_do_not_agree_are_refused(name, change, message, digits, whole_run, tmp_path):
    tampered(whole_run, tmp_path / "run", change)
    before = (tmp_path / "run" / LAST).read_bytes()
    with pytest.raises(TrainingError, match=message) as caught:
        run(name, digits, tmp_path / "run", resume=True)
    told = str(caught.value)
    assert str(tmp_path / "run" / LAST) in told
    assert told.endswith(f"train anew into another folder; the best model so far is whole in {tmp_path / 'run' / BEST}")
    assert "rate" not in told
    assert (tmp_path / "run" / LAST).read_bytes() == before
    (tmp_path / "run" / BEST).write_bytes(b"damaged")
    with pytest.raises(TrainingError, match=r"train anew into another folder$"):  # no cure that cures nothing
        run(name, digits, tmp_path / "run", resume=True)


def test_any_flipped_bit_of_a_checkpoint_is_found(digits, whole_run, tmp_path):
    tampered(whole_run, tmp_path / "run", lambda *_: None)
    content = (tmp_path / "run" / LAST).read_bytes()
    rng = np.random.default_rng(0)
    places = [*rng.integers(8, len(content), 40), content.index(b'"seed\\": 3') + 9, len(content) - 4]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(0, 7))
        (tmp_path / "run" / LAST).write_bytes(flipped)
        with pytest.raises(TrainingError, match=f"{LAST}.*the best model so far is whole in"):
            run("numpy", digits, tmp_path / "run", resume=True)


def test_a_checkpoint_without_a_digest_goes_on(digits, whole_run, tmp_path):
    """As version 0.1 wrote it, which recorded neither threads nor what was frozen."""
    from safetensors.numpy import load_file
    from safetensors.numpy import save as serialize

    model = modelfile.read(whole_run / LAST)
    about = {key: value for key, value in model.provenance.items() if key not in ("threads", "frozen")}
    text = modelfile.describe(model.spec, model.classes, about)
    assert "digest" not in text
    (tmp_path / LAST).write_bytes(serialize(load_file(whole_run / LAST), metadata={"capscore": text}))
    resumed, _ = run("numpy", digits, tmp_path, resume=True)
    whole, _ = run("numpy", digits, tmp_path / "whole")
    for key in whole:
        np.testing.assert_array_equal(whole[key], resumed[key])


def test_a_checkpoint_resumes_in_its_own_precision(digits, whole_run, tmp_path):
    tampered(whole_run, tmp_path / "run", lambda *_: None)
    caps = backend("numpy")
    net = caps.CapsNet(TINY, seed=3, dtype="float64", classes=digits[0].classes)
    with pytest.raises(
        TrainingError, match='in float32, the network in float64: make the network with dtype "float32"'
    ):
        train(net, caps.Learner(net), *digits, RECIPE, tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_a_network_that_is_lost_is_neither_measured_nor_saved(name, digits, tmp_path):
    """The last loss of an epoch is finite; what the step made of the parameters is not."""
    run(name, digits, tmp_path, replace(RECIPE, epochs=1))
    before = (tmp_path / LAST).read_bytes(), (tmp_path / BEST).read_bytes()
    caps = backend(name)
    net = caps.CapsNet(TINY, seed=3, classes=digits[0].classes)
    learner, count = caps.Learner(net), itertools.count(1)
    step = learner.step

    def poisoned(*args):
        found = step(*args)
        if next(count) == 5:
            net.assign({key: put(caps.to_numpy(p), np.nan) for key, p in net.params.items()})
        return found

    learner.step = poisoned
    with pytest.raises(TrainingError, match=r"stem\.0\.weight holds NaN .* at step 10 .*last good parameters are in"):
        train(net, learner, *digits, RECIPE, tmp_path, resume=True)
    assert ((tmp_path / LAST).read_bytes(), (tmp_path / BEST).read_bytes()) == before


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_another_number_of_threads_is_told_of(name, digits, tmp_path):
    run(name, digits, tmp_path / "run", replace(RECIPE, epochs=1))
    threads = modelfile.read(tmp_path / "run" / LAST).provenance["threads"]
    assert threads >= 1
    run(name, digits, tmp_path / "run", resume=True)  # as many: no warning
    tampered(tmp_path / "run", tmp_path / "other", lambda p, s, a: a.update(threads=threads + 1))
    with pytest.warns(TrainingWarning, match=f"threads: {threads + 1} before and {threads} now.*not to the same bits"):
        run(name, digits, tmp_path / "other", replace(RECIPE, epochs=3), resume=True)


# ---------------------------------------------------------------------------------------------- the world interferes


def test_what_a_killed_save_left_is_removed_by_the_next_training(digits, tmp_path):
    left = [tmp_path / f".{name}.abc123.part" for name in (BEST, LAST, LOG)]
    others = [tmp_path / name for name in (".mine.part", "last.safetensors.part", ".other.safetensors.abc.part")]
    for path in (*left, *others):
        path.write_text("half")
    with locked(tmp_path):
        assert not any(path.exists() for path in left)
        left[0].write_text("of a training that goes on")
        with pytest.raises(TrainingError, match="another training is writing into"):
            run("numpy", digits, tmp_path)
        assert left[0].exists()
    run("numpy", digits, tmp_path, replace(RECIPE, epochs=1))
    left[1].write_text("half")
    run("numpy", digits, tmp_path, resume=True)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


class Hung(Reporter):
    """Sends a signal within the third step."""

    def __init__(self, which):
        self.which, self.count = which, itertools.count(1)

    def step(self, *_):
        if next(self.count) == 3:
            signal.raise_signal(self.which)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
@pytest.mark.parametrize("which", ["SIGHUP", "SIGTERM"])
def test_a_terminal_that_is_closed_saves_as_a_termination_does(which, digits, tmp_path):
    whole, _ = run("numpy", digits, tmp_path / "whole")
    before = signal.signal(signal.SIGHUP, lambda *_: pytest.fail("not caught"))
    try:
        with pytest.raises(Stopped):
            run("numpy", digits, tmp_path / "cut", reporters=[Hung(getattr(signal, which))])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert modelfile.read(tmp_path / "cut" / LAST).provenance["training"]["steps"] >= 3
    resumed, _ = run("numpy", digits, tmp_path / "cut", resume=True)
    for key in whole:
        np.testing.assert_array_equal(whole[key], resumed[key])


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_training_under_nohup_goes_on(digits, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        _, rows = run("numpy", digits, tmp_path, reporters=[Hung(signal.SIGHUP)])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(rows) == 2


@pytest.mark.parametrize("error", [errno.EPIPE, errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("where", ["begin", "step", "end"])
def test_an_output_that_is_closed_or_full_saves_as_a_termination_does(error, where, digits, tmp_path):
    class Closed(Reporter):
        pass

    def fail(self, *_):
        raise OSError(error, os.strerror(error))

    setattr(Closed, where, fail)
    whole, _ = run("numpy", digits, tmp_path / "whole")
    listener = Told()
    with pytest.raises(Stopped):
        run("numpy", digits, tmp_path / "cut", reporters=(Closed(), listener))
    assert modelfile.read(tmp_path / "cut" / LAST).provenance["training"]["steps"] >= 1
    assert listener.rows  # the others still hear
    resumed, _ = run("numpy", digits, tmp_path / "cut", resume=True)
    for key in whole:
        np.testing.assert_array_equal(whole[key], resumed[key])


def test_another_error_of_a_reporter_is_its_own(digits, tmp_path):
    class Forbidden(Reporter):
        def end(self, _):
            raise OSError(errno.EACCES, "Permission denied")

    with pytest.raises(OSError, match="Permission denied"):
        run("numpy", digits, tmp_path, reporters=(Forbidden(),))


def commanded(digits, folder, *options):
    """Return the command that trains on NumPy with few digits in `folder`."""
    learn, held_out = digits
    arrays = {"x_train": learn.images, "y_train": learn.labels, "x_test": held_out.images, "y_test": held_out.labels}
    np.savez(folder / "few.npz", **arrays)
    train_them = [sys.executable, "-m", "capscore", "train", "--data", "few.npz", "--backend", "numpy", "--out", "run"]
    return [*train_them, *options]


def test_a_pipe_that_nobody_reads_any_more_saves(digits, tmp_path):
    """`capscore train | head -2`: rich would end the program on the spot. That all is saved, stderr tells."""
    command = commanded(digits, tmp_path, "--epochs", "500")
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not process.stdout.readline().startswith("epoch"):
        pass
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 128 + signal.SIGPIPE, errors
    assert errors == "stopped; everything is saved. Go on with: capscore train --resume run\n"
    told = modelfile.read(tmp_path / "run" / LAST).provenance["training"]
    assert told["step"] > 0  # of the epoch after the one whose line could not be printed
    assert told["epoch"] < 500


def test_the_command_tells_of_another_number_of_threads_in_one_line(digits, tmp_path):
    """And goes on."""
    how = {"cwd": tmp_path, "capture_output": True, "text": True, "check": True}
    subprocess.run(commanded(digits, tmp_path, "--epochs", "1"), env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, **how)
    resume = [sys.executable, "-m", "capscore", "train", "--resume", "run", "--epochs", "2"]
    done = subprocess.run(resume, env=os.environ | {"OPENBLAS_NUM_THREADS": "2"}, **how)
    assert done.stderr == (
        "note: threads: 1 before and 2 now, so the training goes on, but not to the same bits (float32 "
        "differs by about 1e-7)\n"
    )
    assert "epoch 2/2" in done.stdout
