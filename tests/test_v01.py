"""What version 0.1 wrote is read, and means what it meant: see v01/write.py, which wrote it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import FLOAT32, NUMPY, close

from capscore import PRESETS, CapsNetSpec, Conv, Decoder, DenseCaps, DynamicRouting, PrimaryCaps, modelfile
from capscore.data import Dataset, load
from capscore.net import init_params
from capscore.train import LAST, Recipe, accuracy, train

HERE = Path(__file__).parent / "v01"
TINY = CapsNetSpec(  # as v01/write.py has it, which runs under version 0.1 alone
    input=(1, 28, 28),
    stem=(Conv(6, kernel=5, stride=2, padding=1), Conv(8, kernel=3, activation="none")),
    primary=PrimaryCaps(types=3, dim=4, kernel=3, stride=2),
    capsules=(DenseCaps(5, dim=4, bias=False), DenseCaps(10, dim=6, routing=DynamicRouting(2, leaky=True))),
    decoder=Decoder((12,)),
)
FACTS: dict[str, Any] = json.loads((HERE / "facts.json").read_text())["presets"]
SPECS = {"tiny": TINY, **{name: PRESETS[name] for name in FACTS if name != "tiny"}}
CLASSES = tuple(f"digit {i}" for i in range(10))
every = pytest.mark.parametrize("name", FACTS)


def digits(count: int) -> Dataset:
    train_set, _ = load("digits")
    return Dataset(train_set.images[:count], train_set.labels[:count], train_set.classes)


@every
def test_the_json_of_then_is_the_network_of_now(name: str) -> None:
    text = json.dumps(FACTS[name]["spec"])
    assert "primary" in FACTS[name]["spec"]  # as 0.1 wrote it
    assert CapsNetSpec.from_json(text) == SPECS[name]
    assert SPECS[name].multiply_adds == FACTS[name]["multiply_adds"]


@every
def test_first_parameters_are_the_same_bits(name: str) -> None:
    params = init_params(SPECS[name], 7)
    found = {key: hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for key, array in params.items()}
    assert found == FACTS[name]["parameters"]
    assert list(params) == list(FACTS[name]["parameters"])  # in the same order


@every
def test_outputs_in_float64_are_the_same(name: str) -> None:
    spec, facts = SPECS[name], FACTS[name]
    net = NUMPY.CapsNet(spec, init_params(spec, 7), dtype="float64")
    out = net(np.random.default_rng(1).random((2, *spec.input)))
    close(out.lengths, np.array(facts["lengths"]), 1e-14, "lengths")
    close(out.capsules, np.array(facts["capsules"]), 1e-14, "capsules")
    assert (facts["reconstruction_sums"] is None) == (spec.decoder is None)
    if spec.decoder is not None:
        sums = np.array(facts["reconstruction_sums"])
        np.testing.assert_allclose(net.reconstruct(out.capsules).sum((1, 2, 3)), sums, rtol=1e-14)


@every
def test_exported_graphs_have_no_more_nodes(name: str, onnx_export: ModuleType, tmp_path: Path) -> None:
    import onnx

    onnx_export.export(NUMPY.CapsNet(SPECS[name], init_params(SPECS[name], 7)), tmp_path / "m.onnx", verify=False)
    assert len(onnx.load(tmp_path / "m.onnx").graph.node) <= FACTS[name]["nodes"]


def test_a_model_file_loads_on_every_backend(caps: ModuleType) -> None:
    net, params = caps.load(HERE / "model.safetensors", dtype="float64"), init_params(TINY, 3)
    assert net.spec == TINY
    assert tuple(net.classes) == CLASSES
    assert list(net.params) == list(params)
    for name, array in params.items():
        np.testing.assert_array_equal(caps.to_numpy(net.params[name]), array)


def test_an_export_runs(runtime: ModuleType) -> None:
    session = runtime.Session(HERE / "model.onnx")
    assert session.spec == TINY
    assert tuple(session.classes) == CLASSES
    images = np.random.default_rng(0).integers(0, 256, (3, *TINY.input)).astype(np.uint8)
    net = NUMPY.load(HERE / "model.safetensors", dtype="float64")
    expected, out = net(images / 255), session(images)
    close(out.lengths, expected.lengths, FLOAT32)
    close(out.capsules, expected.capsules, FLOAT32)
    close(out.reconstruction, net.reconstruct(expected.capsules), FLOAT32)
    close(session.predict(images), net.predict(images / 255), FLOAT32)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_trained_model_is_a_model(caps: ModuleType, dtype: str) -> None:
    net = caps.load(HERE / "trained.safetensors", dtype=dtype)
    assert net.provenance["recipe"]["seed"] == 5
    assert accuracy(net, digits(40)) == net.provenance["held_out_accuracy"]


def test_a_checkpoint_is_resumed_to_the_same_end(tmp_path: Path) -> None:
    """12 steps of which 7 were made then; the numbers are those of another machine, hence the 1e-12."""
    shutil.copy(HERE / "checkpoint.safetensors", tmp_path / LAST)
    before = modelfile.read(tmp_path / LAST)
    assert before.provenance["training"]["steps"] == 7
    recipe = Recipe(epochs=2, batch=16, decay_steps=10, seed=5)
    net = NUMPY.CapsNet(TINY, dtype="float64", seed=5)
    rows = train(net, NUMPY.Learner(net, recipe.reconstruction), digits(96), digits(40), recipe, tmp_path, resume=True)
    assert [row["steps"] for row in rows] == [6, 12]
    wanted = modelfile.read(HERE / "trained.safetensors").params
    assert list(net.params) == list(wanted)
    for name, array in wanted.items():
        close(net.params[name], array, 1e-12, name)
        assert (array != before.params[name]).any()  # it did go on
