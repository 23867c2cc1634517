"""Model files, checkpoints, specs and ONNX exports, damaged in a hundred ways: refused by capscore, or of use.

`CAPSCORE_FUZZ=100000 pytest tests/fuzz` tries as many inputs of each format; `make fuzz` does that.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import strangers
from conftest import need
from mutate import survives

from capscore import CapsNetSpec, Conv, Decoder, DenseCaps, PrimaryCaps
from capscore.backends import numpy as caps
from capscore.data import Dataset
from capscore.errors import CapscoreError, ModelFileError, SpecError
from capscore.files.importers import convert
from capscore.train import LAST, Recipe, train

SPEC = CapsNetSpec((1, 5, 5), (Conv(1, kernel=2), PrimaryCaps(1, 2, kernel=3), DenseCaps(2, dim=2)), Decoder((2,)))
IMAGES = np.random.default_rng(0).random((4, 1, 5, 5), dtype=np.float32)
DATA = Dataset(IMAGES, np.array([0, 1, 0, 1]), ("zéro", "one"))
MOST = 64 << 20  # bytes that reading files of some thousand bytes may add to the process


@pytest.fixture(autouse=True)
def _bounds() -> Any:
    """Weights of any size overflow, which is no error; memory is not to grow, whatever a file declares."""
    before = peak()
    with np.errstate(all="ignore"):
        yield
    assert peak() - before < MOST


def peak() -> int:
    """Return the most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def through(path: Path, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    """Return a reader of bytes that goes by a file."""

    def stored(content: bytes) -> Any:
        path.write_bytes(content)
        return read(path)

    return stored


def network(path: Path) -> Any:
    """Load a model and use it: what can be loaded can be used."""
    net = caps.load(path)
    assert net.predict(np.zeros((1, *net.spec.input), np.float32)).shape == (1, net.spec.classes)
    return net


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a training whose checkpoint holds moments and a log."""
    folder = tmp_path_factory.mktemp("seeds")
    caps.CapsNet(SPEC, classes=DATA.classes, provenance={"who": ["me", None]}).save(folder / "model")
    net = caps.CapsNet(SPEC, classes=DATA.classes)
    train(net, caps.Learner(net), DATA, DATA, Recipe(epochs=1, batch=2, shift=0), folder / "run")
    return folder


def test_models(stored: Path, tmp_path: Path) -> None:
    seeds = [(stored / "model").read_bytes(), (stored / "run" / "best.safetensors").read_bytes()]
    assert survives(through(tmp_path / "m", network), seeds, CapscoreError)


def test_checkpoints(stored: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()

    def resume(path: Path) -> Any:
        net = caps.CapsNet(SPEC, classes=DATA.classes)
        recipe = Recipe(epochs=1, batch=2, shift=0)
        return train(net, caps.Learner(net), DATA, DATA, recipe, path.parent, resume=True)

    seeds = [(stored / "run" / LAST).read_bytes()]
    assert survives(through(tmp_path / "run" / LAST, resume), seeds, CapscoreError)


def test_specs() -> None:
    seeds = [SPEC.to_json().encode(), json.dumps(json.loads(SPEC.to_json()), indent=1).encode()]
    assert survives(CapsNetSpec.from_json, seeds, SpecError)


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """Checkpoints of other people's code, by format."""
    need("h5py", "h5py")
    need("torch", "torch")
    folder = tmp_path_factory.mktemp("strange")
    keras, pytorch = strangers.guo_keras((1, 9, 9), 2)[0], strangers.gram_ai()[0]
    old = {"_use_new_zipfile_serialization": False}
    files = {
        "hdf5": [strangers.keras_2(folder / "a", keras), strangers.keras_3(folder / "b", keras)],
        "keras": [strangers.keras_archive(folder / "c.keras", keras)],
        "pytorch": [strangers.pytorch(folder / "d", pytorch), strangers.pytorch(folder / "e", pytorch, **old)],
    }
    return {name: [path.read_bytes() for path in paths] for name, paths in files.items()}


@pytest.mark.parametrize("name", ["hdf5", "keras", "pytorch"])
def test_checkpoints_of_others(name: str, strange: dict[str, list[bytes]], tmp_path: Path) -> None:
    assert survives(through(tmp_path / "m", convert), strange[name], ModelFileError)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Exports in every precision; none is needed to be right."""
    onnx = need("capscore.export.onnx", "onnx")
    folder, net = tmp_path_factory.mktemp("exports"), caps.CapsNet(SPEC, classes=DATA.classes)
    calibration = np.random.default_rng(0).random((32, 1, 5, 5), dtype=np.float32)
    ways: list[dict[str, Any]] = [{}, {"precision": "fp16"}, {"precision": "int8", "calibration": calibration}]
    for i, way in enumerate(ways):
        onnx.export(net, folder / str(i), verify=False, **way)
    onnx.export_decoder(net, folder / "decoder", verify=False)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def test_exports_are_read(exports: list[bytes], tmp_path: Path) -> None:
    onnxfile: ModuleType = need("capscore.export.onnxfile", "onnx")
    assert survives(through(tmp_path / "m.onnx", onnxfile.read), exports, ModelFileError)


def test_exports_are_run(exports: list[bytes], tmp_path: Path) -> None:
    runtime: ModuleType = need("capscore.export.runtime", "onnx")

    def run(path: Path) -> Any:
        out = runtime.Session(path, "cpu", threads=1)(IMAGES)
        assert out.lengths.shape == (4, 2)
        return out

    assert survives(through(tmp_path / "m.onnx", run), exports[:3], CapscoreError)
