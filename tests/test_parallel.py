"""Two processes that train together: the same training as one, and an end and a new start when one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import FLOAT64
from test_plain_train import run

from capscore import (
    BatchNorm,
    CapsNetSpec,
    Conv,
    Decoder,
    DenseCaps,
    Dropout,
    PrimaryCaps,
    Residual,
    modelfile,
)
from capscore.train import LAST

torch = pytest.importorskip("torch")
if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

# 125 images in batches of 32: the last batch, of 29, is shared unequally.
TRAIN = ["--data", "images.npz", "--backend", "torch", "--dtype", "float64", "--batch", "32", "--seed", "3"]


def images(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    labels = np.arange(156) % 10
    images = (rng.random((156, 1, 28, 28)) * 255).astype(np.uint8)
    arrays = {"x_train": images[:125], "y_train": labels[:125], "x_test": images[125:], "y_test": labels[125:]}
    np.savez(folder / "images.npz", **arrays)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return images(tmp_path)


def command(processes: int, *more: str) -> list[str]:
    run = [sys.executable]
    if processes > 1:
        run += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-port=0", "--standalone"]
    return [*run, "-m", "capscore", "train", *more]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "CAPSCORE_BACKEND": "torch"}


def train(processes: int, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(processes, *more), cwd=folder, env=environment(), capture_output=True, text=True, timeout=240
    )


def test_two_processes_train_as_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    told = run("train", *TRAIN, "--epochs", "2", "--out", "of1")
    done = train(2, folder, *TRAIN, "--epochs", "2", "--out", "of2")
    assert done.returncode == 0, done.stderr[-2000:]
    for said in (told, done.stdout):
        assert said.count("best held-out accuracy") == 1  # one of them speaks
    same(folder / "of1", folder / "of2", rel=FLOAT64)


def same(one: Path, two: Path, rel: float = 10 * FLOAT64) -> tuple[modelfile.Model, modelfile.Model]:
    """Assert that two trainings told and made the same; return what they made."""
    made = modelfile.read(one / LAST), modelfile.read(two / LAST)
    for name, p in made[0].params.items():
        np.testing.assert_allclose(made[1].params[name], p, rtol=0, atol=FLOAT64 * 10, err_msg=name)
    rows = [[json.loads(line) for line in (of / "log.jsonl").read_text().splitlines()] for of in (one, two)]
    for a, b in zip(*rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=rel)
        assert a["accuracy"] == b["accuracy"]
        assert a["held_out_accuracy"] == b["held_out_accuracy"]
    return made


NORMALISED = CapsNetSpec(
    (1, 28, 28),
    (
        Conv(4, 5, stride=3, activation="none"),
        BatchNorm(activation="relu"),
        Residual((Conv(4, 3, padding="same", activation="none"), BatchNorm(momentum=0.5)), activation="silu"),
        Dropout(0.3),
        PrimaryCaps(2, 4, 3, stride=2),
        DenseCaps(10, 4),
    ),
    Decoder((8,)),
)


def test_a_killed_worker_ends_the_training_which_goes_on_later(folder: Path) -> None:
    process = subprocess.Popen(
        command(2, *TRAIN, "--epochs", "200", "--out", "run"),
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    last = folder / "run" / "last.safetensors"
    while not last.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(listed.stdout.split()[-1]), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0, output[-2000:]
    epochs = len(modelfile.read(last).provenance["log"])  # whole, whenever it was killed
    assert epochs >= 1
    done = train(2, folder, "--resume", "run", "--epochs", str(epochs + 1))
    assert done.returncode == 0, done.stderr[-2000:]
    assert len((folder / "run" / "log.jsonl").read_text().splitlines()) == epochs + 1


PROGRAM = """
import sys
from capscore import PRESETS, CapsNetSpec
from capscore.backends import torch as caps
from capscore.data import load
from capscore.train import Recipe, train

STEM = ("stem.0.weight", "stem.0.bias", "primary.weight", "primary.bias")
small, normalised = PRESETS["small"], CapsNetSpec.from_json(open("spec.json").read())
sets = load("images.npz", size=(1, 28, 28))

def learn(name, spec, reconstruction=0.0005, epochs=3, batch=32, frozen=()):
    class Change:
        def begin(self, epoch, *_):
            learner.frozen = () if epoch == 2 else frozen
        def step(self, *_): pass
        def end(self, _): pass

    recipe = Recipe(epochs=epochs, batch=batch, seed=3, reconstruction=reconstruction)
    net = caps.CapsNet(spec, seed=3, dtype="float64")
    learner = caps.Learner(net, recipe.reconstruction)
    learner.frozen = frozen
    train(net, learner, *sets, recipe, f"{sys.argv[1]}/{name}", reporters=(Change(),))

learn("normalised", normalised, epochs=2, batch=31)
learn("frozen-0", small, reconstruction=0.0, frozen=STEM)
learn("frozen-0.0005", small, frozen=STEM)
learn("nothing", small, frozen=tuple(small.parameters))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of several trainings, by one process in of1 and by two in of2: to start them takes longer."""
    place = images(tmp_path_factory.mktemp("trained"))
    (place / "spec.json").write_text(NORMALISED.to_json())
    (place / "program.py").write_text(PROGRAM)
    for processes in (1, 2):
        starting = command(processes)
        starting[starting.index("capscore") - 1 :] = ["program.py", f"of{processes}"]
        done = subprocess.run(starting, cwd=place, env=environment(), capture_output=True, text=True, timeout=240)
        assert done.returncode != 0
        assert "frozen, so nothing can be learned" in done.stderr, done.stderr[-2000:]  # of the last one
    return place


def test_two_processes_normalise_and_drop_as_one(trained: Path) -> None:
    """Statistics are those of the whole batch; the last, of one image, leaves a process without any."""
    one, _ = same(trained / "of1/normalised", trained / "of2/normalised")
    statistics = [name for name, param in NORMALISED.params.items() if not param.learns]
    assert len(statistics) == 4
    for name in statistics:
        assert (one.params[name] != NORMALISED.params[name].init.value).all()


@pytest.mark.parametrize("reconstruction", ["0", "0.0005"])
def test_two_processes_train_as_one_with_parameters_that_have_no_gradient(trained: Path, reconstruction: str) -> None:
    """The decoder without reconstruction; the stem frozen, thawed, and frozen again."""
    one, two = same(trained / f"of1/frozen-{reconstruction}", trained / f"of2/frozen-{reconstruction}")
    stem = ["stem.0.weight", "stem.0.bias", "primary.weight", "primary.bias"]
    assert two.provenance["processes"] == 2
    assert two.provenance["frozen"] == stem
    steps = [{name: int(a[0]) for name, a in of.state.items() if ".steps." in name} for of in (one, two)]
    assert steps[0] == steps[1]
    assert all(steps[0][f"optimizer.steps.{name}"] == 4 for name in stem)


def test_where_nothing_can_learn_nothing_is_written(trained: Path) -> None:
    for processes in (1, 2):
        assert not list((trained / f"of{processes}/nothing").iterdir())
