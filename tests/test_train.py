"""Training: one loop for every backend, resumed to the bit, interrupted without loss."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import backend

from capscore import CapsNetSpec, Conv, Decoder, DenseCaps, PrimaryCaps, modelfile
from capscore.data import Dataset, Framed, Pairs, Resident, load, resident
from capscore.errors import CapscoreError, ShapeError, TrainingError
from capscore.model import objective
from capscore.train import BEST, LAST, LOG, Recipe, Stopped, accuracy, batches, right, shifted, train

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
    assert recipe.rate_at(0) == 1e-3
    assert recipe.rate_at(2000) == pytest.approx(0.96e-3)
    assert recipe.rate_at(10**6) == 1e-6


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
    seen = [np.concatenate([labels for _, labels in batches(digits[0], RECIPE, epoch)]) for epoch in (0, 1)]
    assert all(np.array_equal(np.sort(order), np.sort(digits[0].labels)) for order in seen)
    assert not np.array_equal(*seen)
    skipped = list(batches(digits[0], RECIPE, 0, skip=2))
    for (a, _), (b, _) in zip(skipped, list(batches(digits[0], RECIPE, 0))[2:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_crop_is_shifted_into_its_own_surroundings():
    """What a patch takes in when it moves is the image's own, and a shift costs no pixel where there are some."""
    rng = np.random.default_rng(0)
    whole = Dataset(rng.integers(1, 256, (30, 3, 12, 12)).astype(np.uint8), np.arange(30) % 2, ("a", "b"))
    patches = Framed(whole, 8, 8)
    recipe = Recipe(epochs=1, batch=30, shift=patches.shift)
    ((images, labels),) = batches(patches, recipe, 0)
    assert images.shape == (30, 3, 8, 8)
    assert images.min() > 0
    assert len(labels) == 30


def test_the_longest_capsules_are_compared_with_the_labels():
    lengths = np.array([[0.9, 0.1, 0.8], [0.2, 0.3, 0.1], [0.5, 0.5, 0.5]])
    np.testing.assert_array_equal(right(lengths, np.array([0, 0, 0])), [True, False, True])
    np.testing.assert_array_equal(right(lengths, np.array([[2, 0], [0, 2], [1, 0]])), [True, False, True])


@pytest.fixture
def pairs(digits):
    return Pairs(digits[0], 0, 1), Pairs(digits[1], 1, 1)


def test_pairs_come_apart_and_are_shifted_together(pairs):
    recipe = Recipe(epochs=1, batch=150, shift=3, seed=2)
    ((parts, labels),) = batches(pairs[0], recipe, 0)
    assert parts.shape == (150, 2, 1, 36, 36)
    whole = Recipe(epochs=1, batch=150, shift=0, seed=2)
    ((still, same),) = batches(pairs[0], whole, 0)
    np.testing.assert_array_equal(labels, same)
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
        caps, net.spec, net.params, images, each.sum(1), 0.01, None, [(each[:, i], parts[:, i]) for i in (0, 1)]
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
    with pytest.raises(TrainingError, match="cannot write into the folder"):
        run("numpy", digits, tmp_path)


def test_a_folder_that_cannot_be_made_is_a_clear_error(digits, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot make the folder"):
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

    from capscore.report import TensorBoard

    _, rows = run("numpy", digits, tmp_path, reporters=(TensorBoard(tmp_path),))
    events = EventAccumulator(str(tmp_path)).Reload()
    found = [event.value for event in events.Scalars("held_out_accuracy")]
    np.testing.assert_allclose(found, [row["held_out_accuracy"] for row in rows], rtol=1e-6)


@pytest.mark.parametrize("name", ["torch", "cupy"])
def test_images_held_on_a_device_come_in_the_same_batches(name, digits):
    caps = backend(name)
    whole = Dataset(np.random.default_rng(0).integers(0, 256, (40, 3, 14, 12), np.uint8), np.arange(40) % 2, ("a", "b"))
    for data in (digits[0], Framed(whole, 9, 8)):
        held = resident(data, data.shift, lambda shape: caps.asarray(np.empty(shape, np.float32)), caps.asarray)
        assert isinstance(held, Resident)
        assert (held.size, held.shift, held.classes, len(held)) == (data.size, data.shift, data.classes, len(data))
        recipe = replace(RECIPE, shift=data.shift)
        for (images, labels), (here, same) in zip(batches(data, recipe, 1), batches(held, recipe, 1), strict=True):
            np.testing.assert_array_equal(images, caps.to_numpy(here))
            np.testing.assert_array_equal(labels, same)
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
    held = learner.hold(digits[0], 2)
    images, labels = next(batches(held, RECIPE, 0))
    targets = np.eye(10)[labels]
    learner.step(images, targets, 1e-3)

    def read(*_):
        raise AssertionError("the GPU is waited for")

    for name in ("get", "item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(fake_cupy.ndarray, name, read)
    loss, _ = learner.step(images, targets, 1e-3)
    with pytest.raises(AssertionError, match="waited for"):
        float(loss)


def test_what_is_drawn_or_too_large_is_not_held_on_a_device(digits, pairs, monkeypatch):
    how = np.empty, np.asarray
    assert resident(pairs[0], 0, *how) is pairs[0]
    monkeypatch.setattr(sys.modules["capscore.data.resident"], "LARGEST", len(digits[0]) * 32 * 32 * 4 - 1)
    assert resident(digits[0], 2, *how) is digits[0]
    assert resident(digits[0], 1, *how) is not digits[0]


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
    with pytest.raises(TrainingError, match=r"by 0.0005, the recipe by 0.05: make it as Learner\(net, recipe"):
        train(net, caps.Learner(net), *digits, replace(RECIPE, reconstruction=0.05), tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_file_tells_the_epoch_it_is_of(digits, tmp_path, monkeypatch):
    found = iter([0.5, 0.9, 0.7])
    monkeypatch.setattr(sys.modules["capscore.train"], "accuracy", lambda *_: next(found))
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
    with pytest.raises(ShapeError, match=r"images\.astype\('float32'\) / 255"):
        learner.step(images.astype(np.uint8), targets, 1e-3)
    with pytest.raises(ShapeError, match=r"images have shape \[10, 28, 28\]"):
        learner.step(images[:, 0], targets, 1e-3)
    with pytest.raises(ShapeError, match=r"a batch of 0 images; wanted at least 1"):
        learner.step(images[:0], targets[:0], 1e-3)
    with pytest.raises(ShapeError, match=r"one_hot \[10\] must be of one shape .*np\.eye\(J\)\[labels\]"):
        learner.step(images, np.arange(10.0), 1e-3)


def test_losses_may_be_read_late(digits, tmp_path, monkeypatch):
    """However seldom they are read, the log, the reports and what a cut leaves behind are the same."""
    found = []
    for i, seconds in enumerate((-1.0, np.inf)):
        monkeypatch.setattr("capscore.train.READ_SECONDS", seconds)
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
    monkeypatch.setattr("capscore.train.READ_SECONDS", np.inf)
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
