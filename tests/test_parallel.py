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

from capscore import (
    PRESETS,
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

torch = pytest.importorskip("torch")
if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

# 125 images in batches of 32: the last batch, of 29, is shared unequally.
TRAIN = ["--data", "images.npz", "--backend", "torch", "--dtype", "float64", "--batch", "32", "--seed", "3"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    labels = np.arange(156) % 10
    images = (rng.random((156, 1, 28, 28)) * 255).astype(np.uint8)
    arrays = {"x_train": images[:125], "y_train": labels[:125], "x_test": images[125:], "y_test": labels[125:]}
    np.savez(tmp_path / "images.npz", **arrays)
    return tmp_path


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


def test_two_processes_train_as_one(folder: Path) -> None:
    for processes in (1, 2):
        done = train(processes, folder, *TRAIN, "--epochs", "2", "--out", f"of{processes}")
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("best held-out accuracy") == 1  # one of them speaks
    one, two = (modelfile.read(folder / f"of{n}" / "last.safetensors") for n in (1, 2))
    for name, p in one.params.items():
        np.testing.assert_allclose(two.params[name], p, rtol=0, atol=FLOAT64 * 10, err_msg=name)
    rows = [[json.loads(line) for line in (folder / f"of{n}" / "log.jsonl").read_text().splitlines()] for n in (1, 2)]
    for a, b in zip(*rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=FLOAT64)
        assert a["accuracy"] == b["accuracy"]
        assert a["held_out_accuracy"] == b["held_out_accuracy"]


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


def test_two_processes_normalise_and_drop_as_one(folder: Path) -> None:
    """Statistics are those of the whole batch; the last, of one image, leaves a process without any."""
    (folder / "spec.json").write_text(NORMALISED.to_json())
    for processes in (1, 2):
        more = ["--spec", "spec.json", "--epochs", "2", "--out", f"of{processes}", *TRAIN, "--batch", "31"]
        done = train(processes, folder, *more)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (modelfile.read(folder / f"of{n}" / "last.safetensors") for n in (1, 2))
    statistics = [name for name, param in NORMALISED.params.items() if not param.learns]
    assert len(statistics) == 4
    fresh = NORMALISED.params
    for name, p in one.params.items():
        np.testing.assert_allclose(two.params[name], p, rtol=0, atol=FLOAT64 * 10, err_msg=name)
        assert name not in statistics or (p != fresh[name].init.value).all()
    rows = [[json.loads(line) for line in (folder / f"of{n}" / "log.jsonl").read_text().splitlines()] for n in (1, 2)]
    for a, b in zip(*rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=10 * FLOAT64)
        assert a["accuracy"] == b["accuracy"]


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


FREEZING = """
import sys
from capscore import PRESETS
from capscore.backends import torch as caps
from capscore.data import load
from capscore.train import Recipe, train

class Change:
    def begin(self, epoch, *_):
        learner.frozen = () if epoch == 2 else FROZEN
    def step(self, *_): pass
    def end(self, _): pass

FROZEN = tuple(sys.argv[3:])
sets = load("images.npz", size=(1, 28, 28))
recipe = Recipe(epochs=3, batch=32, seed=3, reconstruction=float(sys.argv[2]))
net = caps.CapsNet(PRESETS["small"], seed=3, dtype="float64")
learner = caps.Learner(net, recipe.reconstruction)
learner.frozen = FROZEN
train(net, learner, *sets, recipe, sys.argv[1], reporters=(Change(),))
"""


STEM = ["stem.0.weight", "stem.0.bias", "primary.weight", "primary.bias"]


def freeze(processes: int, folder: Path, reconstruction: str, frozen: list[str]) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(FREEZING)
    run = command(processes)
    run[run.index("capscore") - 1 :] = ["program.py", f"of{processes}", reconstruction, *frozen]
    return subprocess.run(run, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("reconstruction", ["0", "0.0005"])
def test_two_processes_train_as_one_with_parameters_that_have_no_gradient(folder: Path, reconstruction: str) -> None:
    """The decoder without reconstruction; the stem frozen, thawed, and frozen again."""
    for processes in (1, 2):
        done = freeze(processes, folder, reconstruction, STEM)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (modelfile.read(folder / f"of{n}" / "last.safetensors") for n in (1, 2))
    for name, p in one.params.items():
        np.testing.assert_allclose(two.params[name], p, rtol=0, atol=FLOAT64 * 10, err_msg=name)
    assert two.provenance["processes"] == 2
    assert two.provenance["frozen"] == STEM
    steps = [{name: int(a[0]) for name, a in of.state.items() if ".steps." in name} for of in (one, two)]
    assert steps[0] == steps[1]
    assert all(steps[0][f"optimizer.steps.{name}"] == 4 for name in STEM)


def test_where_nothing_can_learn_every_process_says_so(folder: Path) -> None:
    done = freeze(2, folder, "0.0005", list(PRESETS["small"].parameters))
    assert done.returncode != 0
    assert "frozen, so nothing can be learned" in done.stderr
    assert not list((folder / "of2").iterdir())
