"""The CNNs that capsule networks are compared with: sizes, first numbers, answers, the loop and files they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FLOAT64, close, need
from test_train import stopping

from capscore import PRESETS, CapsNetSpec, Conv, Linear, MarginLoss
from capscore.data import Dataset, load
from capscore.net import init_params
from capscore.train import BEST, Recipe, accuracy, train

torch = need("torch", "torch")
caps = need("capscore.backends.torch", "torch")
baselines = need("lab.baselines", "torch")

HOW: dict[str, Any] = {
    "input": (1, 28, 28),
    "convs": (Conv(4, 5, stride=2), Conv(6, 3, padding=1)),
    "hidden": (12, 8),
    "pool": 2,
}
TINY = baselines.cnn(**HOW)
RECIPE = Recipe(epochs=2, batch=32, seed=3)


def made(spec: CapsNetSpec = TINY) -> Any:
    return caps.CapsNet(spec, seed=RECIPE.seed)


@pytest.fixture(scope="module")
def digits() -> tuple[Dataset, Dataset]:
    learn, held_out = load("digits")
    chosen = np.random.default_rng(0).permutation(len(learn))[:150]
    held_out = Dataset(held_out.images[::20], held_out.labels[::20], held_out.classes)
    return Dataset(learn.images[chosen], learn.labels[chosen], learn.classes), held_out


def run(digits: Any, folder: Path, resume: bool = False, stop: int = 0, spec: CapsNetSpec = TINY) -> Any:
    net = made(spec)
    rows = train(net, stopping(caps.Learner(net), stop), *digits, RECIPE, folder, resume)
    return net, rows


def test_the_parameters_are_as_many_as_in_the_paper() -> None:
    assert baselines.MNIST.parameter_count == 35_445_522  # "35.4M"
    assert baselines.MULTIMNIST.parameter_count == 24_563_978  # "24.56M"


@pytest.mark.parametrize("size", [28, 36, 40])
def test_a_cnn_like_a_capsule_network_is_as_large(size: int) -> None:
    spec = PRESETS["small"].replace(input=(1, size, size))
    for cnn in (baselines.like(spec), baselines.like(spec, features=16)):
        assert cnn.parameter_count == pytest.approx(spec.parameter_count, rel=0.02)
    assert cnn.layers[-2].output == 16


def test_first_numbers_are_he_s() -> None:
    spec = baselines.like(PRESETS["small"])
    params = init_params(spec, 5)
    for name, p in params.items():
        assert p.std() == pytest.approx(0 if name.endswith("bias") else (2 / p[0].size) ** 0.5, rel=0.1), name
    again, others = init_params(spec, 5), init_params(spec, 6)
    assert all((p == again[name]).all() for name, p in params.items())
    assert all((p != others[name]).any() for name, p in params.items() if name.endswith("weight"))


def test_answers_of_a_cnn_that_learned_by_the_margin_loss_are_its_scores() -> None:
    spec = baselines.cnn(**HOW)
    net = made(spec.replace(layers=(*spec.layers[:-1], Linear(10, "sigmoid")), loss=MarginLoss()))
    images = np.random.default_rng(0).random((5, 1, 28, 28)).astype(np.float32)
    found, features = baselines.answers(net, images)
    assert features.shape == (5, 1, 8)
    close(found.detach(), net.predict(images), 1e-6)


@pytest.mark.parametrize("exclusive", [True, False])
def test_answers_are_probabilities_and_features(exclusive: bool) -> None:
    net = made(baselines.cnn(**HOW, dropout=0.5, exclusive=exclusive)).double()  # float32's error is the processor's
    images = np.random.default_rng(0).random((5, 1, 28, 28))
    found, features = baselines.answers(net, images)
    assert features.shape == (5, 1, 8)
    x = torch.tensor(images)
    for i, (stride, padding) in enumerate(((2, 0), (1, 1))):
        x = torch.conv2d(x, *(net.params[f"stem.{2 * i}.{name}"] for name in ("weight", "bias")), stride, padding)
        x = torch.max_pool2d(x.relu(), 2)
    x = x.flatten(1)
    for i in (0, 1, 3):  # between them nothing is left out when asked
        x = x @ net.params[f"head.{i}.weight"].T + net.params[f"head.{i}.bias"]
        x = x.relu() if i < 2 else x
    close(net.predict(images, 2), x.detach().numpy(), FLOAT64)
    close(found.detach(), (x.softmax(1) if exclusive else (x - 0.5).sigmoid()).detach(), FLOAT64)


def test_the_loss_is_the_cross_entropy_and_learning_lowers_it() -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.random((16, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, 16)
    for exclusive in (True, False):
        net = made(baselines.cnn(**HOW, exclusive=exclusive))
        p = baselines.answers(net, images)[0].detach().numpy().astype(np.float64)
        truth = np.eye(10)[labels]
        each = truth * np.log(p) + (0 if exclusive else (1 - truth) * np.log(1 - p))
        learner = caps.Learner(net)
        losses = [float(learner.step(images, truth, 1e-3)[0]) for _ in range(30)]
        assert losses[0] == pytest.approx(-each.sum(1).mean(), rel=1e-5)
        assert losses[-1] < losses[0]


def test_a_resumed_run_ends_with_the_same_bits_dropout_included(digits: Any, tmp_path: Path) -> None:
    spec = baselines.cnn(**HOW, dropout=0.5)
    whole, rows = run(digits, tmp_path / "whole", spec=spec)
    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path / "cut", stop=3, spec=spec)
    resumed, again = run(digits, tmp_path / "cut", resume=True, spec=spec)
    for name, p in whole.params.items():
        assert torch.equal(p, resumed.params[name]), name
    assert [row["loss"] for row in rows] == [row["loss"] for row in again]
    plain, _ = run(digits, tmp_path / "plain")
    assert not torch.equal(plain.params["stem.0.weight"], whole.params["stem.0.weight"])


def test_files_of_a_cnn_come_back(digits: Any, tmp_path: Path) -> None:
    net, rows = run(digits, tmp_path)
    loaded = caps.load(tmp_path / BEST)
    assert loaded.spec == TINY
    assert loaded.classes == net.classes
    assert accuracy(loaded, digits[1]) == max(row["held_out_accuracy"] for row in rows)
