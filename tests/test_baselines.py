"""The CNNs that capsule networks are compared with: sizes, answers, and the loop and files they share."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import close, need
from test_train import stopping

from capscore import PRESETS, Conv, modelfile
from capscore.data import Dataset, load
from capscore.errors import ModelFileError, SpecError
from capscore.train import BEST, LAST, Recipe, accuracy, train

torch = need("torch", "torch")
baselines = need("lab.baselines", "torch")

TINY = baselines.CNNSpec((1, 28, 28), (Conv(4, 5, stride=2), Conv(6, 3, padding=1)), (12, 8), pool=2, dropout=0.5)
RECIPE = Recipe(epochs=2, batch=32, seed=3)


@pytest.fixture(scope="module")
def digits():
    learn, held_out = load("digits")
    some = np.random.default_rng(0).permutation(len(learn))[:150]
    held_out = Dataset(held_out.images[::20], held_out.labels[::20], held_out.classes)
    return Dataset(learn.images[some], learn.labels[some], learn.classes), held_out


def run(digits, folder, resume=False, stop=0, spec=TINY):
    net = baselines.CNN(spec, seed=RECIPE.seed, classes=digits[0].classes)
    rows = train(net, stopping(baselines.Learner(net), stop), *digits, RECIPE, folder, resume)
    return net, rows


def test_the_parameters_are_as_many_as_in_the_paper():
    assert baselines.MNIST.parameter_count == 35_445_522  # "35.4M"
    assert baselines.MULTIMNIST.parameter_count == 24_563_978  # "24.56M"


@pytest.mark.parametrize("size", [28, 36, 40])
def test_a_cnn_like_a_capsule_network_is_as_large(size):
    spec = PRESETS["small"].replace(input=(1, size, size))
    for cnn in (baselines.like(spec), baselines.like(spec, features=16)):
        assert cnn.parameter_count == pytest.approx(spec.parameter_count, rel=0.02)
    assert cnn.hidden[-1] == 16
    assert sum(p.numel() for p in baselines.CNN(cnn).parameters()) == cnn.parameter_count


@pytest.mark.parametrize("exclusive", [True, False])
def test_answers_are_probabilities_and_features(exclusive):
    net = baselines.CNN(replace(TINY, exclusive=exclusive))
    images = np.random.default_rng(0).random((5, 1, 28, 28)).astype(np.float32)
    found, features = net(images)[:2]
    assert features.shape == (5, 1, 8)
    x = torch.tensor(images)
    for i, (stride, padding) in enumerate(((2, 0), (1, 1))):
        x = torch.conv2d(x, *(net.params[f"conv.{i}.{name}"] for name in ("weight", "bias")), stride, padding)
        x = torch.max_pool2d(x.relu(), 2)
    x = x.flatten(1)
    for i in range(3):
        x = x @ net.params[f"linear.{i}.weight"].T + net.params[f"linear.{i}.bias"]
        x = x.relu() if i < 2 else x
    expected = x.softmax(1) if exclusive else x.sigmoid()
    close(found.detach(), expected.detach(), 1e-6)
    close(net.predict(images, 2), found.detach().numpy(), 1e-6)  # nothing is left out when asked


def test_the_loss_is_the_cross_entropy_and_learning_lowers_it():
    rng = np.random.default_rng(0)
    images, labels = rng.random((16, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, 16)
    for exclusive in (True, False):
        net = baselines.CNN(replace(TINY, exclusive=exclusive, dropout=0.0))
        p = net.predict(images).astype(np.float64)
        truth = np.eye(10)[labels]
        each = truth * np.log(p) + (0 if exclusive else (1 - truth) * np.log(1 - p))
        learner = baselines.Learner(net)
        losses = [float(learner.step(images, truth, 1e-3)[0]) for _ in range(30)]
        assert losses[0] == pytest.approx(-each.sum(1).mean(), rel=1e-5)
        assert losses[-1] < losses[0]


def test_a_resumed_run_ends_with_the_same_bits_dropout_included(digits, tmp_path):
    whole, rows = run(digits, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path / "cut", stop=3)
    resumed, again = run(digits, tmp_path / "cut", resume=True)
    for name, p in whole.params.items():
        assert torch.equal(p, resumed.params[name]), name
    assert [row["loss"] for row in rows] == [row["loss"] for row in again]
    plain, _ = run(digits, tmp_path / "plain", spec=replace(TINY, dropout=0.0))
    assert not torch.equal(plain.params["conv.0.weight"], whole.params["conv.0.weight"])


def test_files_of_a_cnn_come_back_and_are_no_capsule_networks(digits, tmp_path):
    net, rows = run(digits, tmp_path)
    loaded = baselines.CNN.load(tmp_path / BEST)
    assert loaded.spec == TINY
    assert loaded.classes == net.classes
    assert accuracy(loaded, digits[1]) == max(row["held_out_accuracy"] for row in rows)
    with pytest.raises(ModelFileError, match="has no field 'convs'"):
        modelfile.read(tmp_path / LAST)
    torch_caps = need("capscore.backends.torch", "torch")
    torch_caps.CapsNet(PRESETS["small"]).save(tmp_path / "capsnet.safetensors")
    with pytest.raises(ModelFileError, match="not the spec of a CNN"):
        baselines.CNN.load(tmp_path / "capsnet.safetensors")


@pytest.mark.parametrize("change", [{"convs": 3}, {"convs": [{"width": 3}]}, {"layers": 2}, {"input": None}])
def test_json_that_is_no_spec_is_refused(change):
    assert baselines.CNNSpec.from_json(TINY.to_json()) == TINY
    with pytest.raises(SpecError, match="not the spec of a CNN"):
        baselines.CNNSpec.from_json(json.dumps(json.loads(TINY.to_json()) | change))
