"""What is no array, no dataset, no path and no environment of capscore's: every error is capscore's own, and cures."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import FLOAT32, NUMPY, close, need

from capscore import CapsNetSpec, Conv, Decoder, DenseCaps, PrimaryCaps
from capscore.data import Dataset
from capscore.errors import CapscoreError, DataError, ModelFileError, ShapeError, short
from capscore.train import Recipe, train

SPEC = CapsNetSpec((1, 6, 6), (Conv(3, kernel=2), PrimaryCaps(1, 2, kernel=3), DenseCaps(2, dim=3)), Decoder((4,)))
IMAGES = np.random.default_rng(0).random((5, 1, 6, 6), dtype=np.float32)
BEYOND = np.array([0x110000, 66], np.uint32).view("U1")  # no text: Unicode ends at 10FFFF
NUMBERS: dict[str, Any] = {
    "a list": IMAGES.tolist(),
    "arrays": list(IMAGES),
    "a masked array": np.ma.masked_array(IMAGES, IMAGES > 2),
    "memory": memoryview(IMAGES),
}
OTHER: dict[str, Any] = {
    "nothing": None, "text": "abc", "a number": 3, "a scalar": np.float32(1), "an empty list": [],
    "a generator": (i for i in IMAGES), "a mapping": {"images": IMAGES},
    "objects": IMAGES.astype(object), "ragged": [[1, 2], [3]], "texts": ["a", "b"],
    "a huge number": [10**5000], "dates": np.zeros(4, "M8[s]"), "records": np.zeros(4, [("a", "f4")]),
    "characters beyond Unicode": BEYOND, "a path": pathlib.Path("x.png"),
}  # fmt: skip


def tensors() -> dict[str, Any]:
    """What torch calls a tensor, or data, and no array can be made of."""
    torch = need("torch", "torch")
    images = torch.from_numpy(IMAGES)
    pairs = torch.utils.data.TensorDataset(images, torch.zeros(5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that these kinds are new, or old
        return {
            "sparse": images.to_sparse(),
            "compressed": torch.zeros(6, 6).to_sparse_bsr((2, 2)),
            "meta": images.to("meta"),
            "quantised": torch.quantize_per_tensor(images, 0.1, 0, torch.quint8),
            "nested": torch.nested.nested_tensor([torch.zeros(1, 6, 6), torch.zeros(1, 6, 5)]),
            "a loader": torch.utils.data.DataLoader(pairs, batch_size=2),
            "a tensor dataset": pairs,
        }


KINDS = ["sparse", "compressed", "meta", "quantised", "nested", "a loader", "a tensor dataset"]


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Sessions of the network of `SPEC`, of any batch and of two images, and of its decoder."""
    runtime = need("capscore.export.runtime", "onnx")
    from capscore.export import onnx

    folder = tmp_path_factory.mktemp("foreign")
    for name, batch in (("any", None), ("two", 2)):
        onnx.export(NUMPY.CapsNet(SPEC), folder / name, batch=batch, verify=False)
    onnx.export_decoder(NUMPY.CapsNet(SPEC), folder / "decoder", verify=False)
    return [
        runtime.Session(folder / "any", "cpu"),
        runtime.Session(folder / "two", "cpu"),
        runtime.DecoderSession(folder / "decoder", "cpu"),
    ]


def uses(caps: ModuleType, sessions: list[Any], folder: Path) -> dict[str, Callable[[Any], Any]]:
    """All that takes an array, a dataset, a mapping, a path or names from a user."""
    from capscore.export import onnx

    net = caps.CapsNet(SPEC)
    params = dict(NUMPY.CapsNet(SPEC).params)
    capsules = np.zeros((5, 2, 3), np.float32)
    learner = caps.Learner(net)
    return {
        "call": net,
        "predict": net.predict,
        "reconstruct": net.reconstruct,
        "labels": lambda x: net.reconstruct(capsules, np.zeros(5, int) if x is None else x),
        "a parameter": lambda x: caps.CapsNet(SPEC, params | {"primary.bias": x}),
        "parameters": lambda x: caps.CapsNet(SPEC, params if x is None else x),
        "assign": net.assign,
        "classes": lambda x: caps.CapsNet(SPEC, classes=x),
        "provenance": lambda x: caps.CapsNet(SPEC, provenance=x).save(folder / "m"),
        "a spec": caps.CapsNet,
        "load": lambda x: caps.load(x),
        "images": lambda x: Dataset(x, np.zeros(5, np.int64), ("a", "b")),
        "dataset labels": lambda x: Dataset(IMAGES, x, ("a", "b")),
        "train": lambda x: train(net, learner, x, x, Recipe(epochs=1), folder / "run"),
        "a step": lambda x: learner.step(x, np.eye(2)[[0, 1, 0, 1, 0]], 0.001),
        "a session": sessions[0],
        "its predict": sessions[0].predict,
        "predict of two": sessions[1].predict,
        "a decoder": sessions[2],
        "calibration": lambda x: onnx.export(net, folder / "c", precision="int8", calibration=x, verify=False),
        "a session's path": type(sessions[0]),
    }


@pytest.mark.parametrize("what", [*NUMBERS, *OTHER, *KINDS])
def test_every_error_is_capscores_own(what: str, caps: ModuleType, sessions: list[Any], tmp_path: Path) -> None:
    given = (NUMBERS | OTHER | (tensors() if what in KINDS else {}))[what]
    refused = []
    for name, use in uses(caps, sessions, tmp_path).items():
        try:
            use(given)
        except CapscoreError as error:
            refused.append((name, str(error)))
    needed = {"train", "a spec", "assign"} | ({"predict", "a step", "its predict"} if what not in NUMBERS else set())
    assert {name for name, _ in refused} >= needed
    assert max(len(message) for _, message in refused) < 500


@pytest.mark.parametrize(
    ("what", "cure"),
    [
        ("sparse", r"not a sparse tensor; \.to_dense\(\) makes it one"),
        ("compressed", r"not a sparse tensor; \.to_dense\(\) makes it one"),
        ("quantised", r"not a quantised tensor; \.dequantize\(\) makes it one"),
        ("nested", "not a nested tensor; .*to_padded_tensor"),
        ("meta", "not a meta tensor; it has a shape but no numbers"),
        ("a loader", "wanted an array of numbers, not <torch.utils.data"),
    ],
)
def test_what_a_tensor_lacks_and_what_gives_it(caps: ModuleType, sessions: list[Any], what: str, cure: str) -> None:
    for use in (caps.CapsNet(SPEC), caps.CapsNet(SPEC).predict, sessions[0], sessions[1].predict):
        with pytest.raises(ShapeError, match=cure):
            use(tensors()[what])


def test_the_cures_cure(caps: ModuleType) -> None:
    net, given = caps.CapsNet(SPEC), tensors()
    wanted = net.predict(IMAGES)
    close(net.predict(given["sparse"].to_dense()), wanted, FLOAT32)
    assert net.predict(given["quantised"].dequantize()).shape == wanted.shape


@pytest.mark.parametrize("what", NUMBERS)
def test_numbers_of_any_container_are_predicted(caps: ModuleType, sessions: list[Any], what: str) -> None:
    wanted = caps.CapsNet(SPEC).predict(IMAGES)
    for predict in (caps.CapsNet(SPEC).predict, sessions[0].predict, sessions[1].predict):
        close(predict(NUMBERS[what]), wanted, FLOAT32)


def test_float8_is_read_as_bfloat16_is() -> None:
    torch = need("torch", "torch")
    eighths = torch.from_numpy(IMAGES).to(torch.float8_e4m3fn)
    close(NUMPY.CapsNet(SPEC).predict(eighths), NUMPY.CapsNet(SPEC).predict(eighths.float().numpy()), FLOAT32)


@pytest.mark.parametrize("what", ["a loader", "a tensor dataset"])
def test_training_says_what_data_it_takes(caps: ModuleType, what: str, tmp_path: Path) -> None:
    net = caps.CapsNet(SPEC)
    with pytest.raises(DataError, match=r"labels are float32 \(5,\): store integers"):
        train(net, caps.Learner(net), tensors()[what], tensors()[what], Recipe(epochs=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    data = Dataset(IMAGES, np.array([0, 1, 0, 1, 0]), ("0", "1"))
    assert len(train(net, caps.Learner(net), data, data, Recipe(epochs=1), tmp_path / "run")) == 1


@pytest.mark.parametrize("classes", [["a", "\ud800"], ("\udce9", "b")])
def test_class_names_are_text(classes: Any) -> None:
    with pytest.raises(ShapeError, match=r"the class name '\\ud.*' is no Unicode text: rename it"):
        NUMPY.CapsNet(SPEC, classes=classes)


def test_what_cannot_be_printed_is_named_by_its_type() -> None:
    assert short(BEYOND) == "<ndarray that cannot be printed>"
    with pytest.raises(ShapeError, match=r"classes must be 2 names, .* not <ndarray that cannot be printed>"):
        NUMPY.CapsNet(SPEC, classes=BEYOND)
    with pytest.raises(DataError, match="images are a list: make them a NumPy array"):
        Dataset(IMAGES.tolist(), np.zeros(5, np.int64), ("a",))  # type: ignore[arg-type]
    with pytest.raises(ModelFileError, match="a model is read from a path, a str or Path, not None"):
        NUMPY.load(None)


@pytest.mark.parametrize("name", ["stem.0.weight", "primary.weight", "capsules.0.weight", "capsules.0.bias"])
def test_weights_that_int8_has_no_scale_for(name: str, tmp_path: Path) -> None:
    need("onnxruntime", "onnx")
    from capscore.export import onnx

    params = dict(NUMPY.CapsNet(SPEC).params)
    params[name] = np.full_like(params[name], 3e38)
    net = NUMPY.CapsNet(SPEC, params)
    calibration = np.random.default_rng(0).random((64, 1, 6, 6), dtype=np.float32)
    wanted = rf"finds no int8 scales .* the largest value is 3\.0e\+38, in {name}.*: export it as fp32"
    with pytest.raises(ShapeError, match=wanted):
        onnx.export(net, tmp_path / "m.onnx", precision="int8", calibration=calibration)
    assert not (tmp_path / "m.onnx").exists()
    onnx.export(net, tmp_path / "m.onnx", verify=False)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set: torchrun sets all"),
        ({"RANK": "1"}, "WORLD_SIZE is not set: .*; to train in one, unset WORLD_SIZE and RANK"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE is 'two', not a whole number of 1 to"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE is '0', not"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is '2', not a whole number of 0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is '-1', not"),
        ({"WORLD_SIZE": "", "RANK": ""}, "WORLD_SIZE is '', not"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "x"}, "MASTER_PORT is 'x', not"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500"},
            "cannot meet .*None:29500 .*start them with",
        ),
    ],
)
def test_an_environment_that_torchrun_did_not_make(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = need("capscore.backends.torch", "torch")
    from capscore.errors import TrainingError

    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=said):
        torch.Learner(torch.CapsNet(SPEC))


def test_such_an_environment_is_one_line_of_the_command(tmp_path: Path) -> None:
    need("torch", "torch")
    ways = os.environ | {"WORLD_SIZE": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "capscore", "train", "--backend", "torch", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=ways, timeout=300)
    assert done.returncode == 1
    assert done.stderr.startswith("capscore: error: the environment variable RANK is not set")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("low", "high", "cure"),
    [(0, 255, "divide by the maximum"), (-0.4, 2.8, "undoes a standardisation"), (0, np.nan, "replace what is not")],
)
def test_floats_beyond_the_range_are_refused_with_a_cure_for_them(low: float, high: float, cure: str) -> None:
    images = np.array([low, high], np.float32).reshape(2, 1, 1, 1)
    with pytest.raises(DataError, match=cure):
        Dataset(images, np.zeros(2, np.int64), ("a",))
