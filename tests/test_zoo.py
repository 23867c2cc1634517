"""The networks that ship: created by name, as good as their cards say, and the way to and from the Hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import need
from PIL import Image
from typer.testing import CliRunner

import capscore
from capscore import PRESETS, modelfile, zoo
from capscore.cli import app
from capscore.data import Pairs, load
from capscore.errors import BackendError, ModelFileError, SpecError
from capscore.train import accuracy
from capscore.zoo import hub

TRAINED = capscore.list_models(pretrained=True)
LARGEST, ALL = 1.6e6, 8e6  # bytes: what ships is small


def test_the_list_has_presets_and_trained_networks() -> None:
    assert set(PRESETS) | set(TRAINED) == set(capscore.list_models())
    assert "small-mnist" in TRAINED


def test_what_ships_is_small() -> None:
    sizes = [zoo.path(name).stat().st_size for name in TRAINED]
    assert max(sizes) <= LARGEST
    assert sum(sizes) <= ALL


@pytest.mark.parametrize("name", TRAINED)
def test_every_file_is_as_it_was_written_and_has_a_card(name: str) -> None:
    model = modelfile.read(zoo.path(name))
    assert {array.dtype for array in model.params.values()} == {np.dtype("float16")}
    card = capscore.zoo.card(name)
    assert card.startswith(f"## {name}\n")
    assert "Licence" in card
    assert f"{model.spec.parameter_count:,}" in card
    measured = model.provenance["measured"]
    for test, value in measured["torch"].items():
        assert abs(measured["numpy"][test] - value) <= 0.02
        assert abs(measured["fp32"][test] - value) <= 0.02
        assert measured["int8"][test] <= value + 0.1, "int8 loses at most a tenth of a point"


@pytest.mark.parametrize("backend_name", ["numpy", "torch"])
def test_created_networks(backend_name: str) -> None:
    need(f"capscore.backends.{backend_name}", backend_name)
    net = capscore.create("small-mnist", pretrained=True, backend=backend_name)
    assert accuracy(net, load("digits")[1]) >= 0.985
    fresh = [capscore.create("small-mnist", seed=seed, backend=backend_name) for seed in (1, 1, 2)]
    first = [np.asarray(each.ops.to_numpy(each.params["primary.weight"])) for each in fresh]
    assert (first[0] == first[1]).all()
    assert (first[0] != first[2]).any()
    assert capscore.create("small", backend=backend_name).spec == PRESETS["small"]
    for trained in (True, False):
        named = capscore.create(
            "small-mnist", trained, backend=backend_name, classes=list("abcdefghij"), dtype="float64"
        )
        assert named.classes == tuple("abcdefghij")


def test_the_smallest_reaches_the_same_on_every_engine(tmp_path: Path) -> None:
    need("onnxruntime", "onnx")
    from capscore.export.onnx import export
    from capscore.export.runtime import Session

    learn, test = load("digits")
    net = capscore.create("small-mnist", pretrained=True, backend="numpy")
    found = {"numpy": accuracy(net, test)}
    need("torch", "torch")
    found["torch"] = accuracy(capscore.create("small-mnist", pretrained=True, backend="torch"), test)
    for precision in ("fp32", "int8"):
        shown = learn.batch(slice(0, 256))[0] if precision == "int8" else None
        export(net, tmp_path / f"{precision}.onnx", precision=precision, outputs=["lengths"], calibration=shown)
        found[precision] = accuracy(Session(tmp_path / f"{precision}.onnx"), test)
    assert found["torch"] == found["fp32"] == found["numpy"]
    assert found["int8"] >= found["numpy"] - 0.001, "a tenth of a point"


def test_rounded_weights_are_those_of_the_network_not_times_what_a_normalisation_multiplies_inputs_by(
    tmp_path: Path,
) -> None:
    need("onnxruntime", "onnx")
    from capscore.export.onnx import export

    net = capscore.create("dynamic-mnist", pretrained=True, backend="numpy")
    report = export(net, tmp_path / "m.onnx", precision="int8-weights", outputs=["lengths", "steps"])
    assert max(report.differences.values()) < 0.01  # 0.03 with every normalisation folded


@pytest.mark.parametrize(("name", "shown"), [("efficient-affnist", 1), ("efficient-multimnist", 2)])
def test_a_digit_in_a_file_is_as_large_as_those_that_the_network_learned_from(
    tmp_path: Path, name: str, shown: int
) -> None:
    """Resized to the whole image, a tenth of them was wrong."""
    test, right = load("digits")[1], 0
    paths = [tmp_path / f"{i}.png" for i in range(0, 300, 3)]
    for i, path in zip(range(0, 300, 3), paths, strict=True):
        Image.fromarray(test.images[i, 0]).save(path)  # type: ignore[attr-defined]
    said = CliRunner().invoke(app, ["predict", name, *map(str, paths), "--json"]).output
    for i, line in zip(range(0, 300, 3), said.splitlines(), strict=True):
        answer = json.loads(line)
        found = [answer["class"]] if shown == 1 else answer["classes"]
        assert len(found) == shown
        right += test.classes[test.labels[i]] in found
    assert right >= 98


def test_a_file_as_large_as_what_the_network_takes_is_read_as_it_is(tmp_path: Path) -> None:
    net = capscore.create("efficient-multimnist", pretrained=True, backend="numpy")
    images = np.uint8(np.round(255 * Pairs(load("digits")[1], 0, 1).batch(slice(0, 12))[0]))
    for i, (image,) in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    said = CliRunner().invoke(app, ["predict", "efficient-multimnist", str(tmp_path), "--json"]).output
    found = [list(json.loads(line)["lengths"].values()) for line in said.splitlines()]
    np.testing.assert_allclose(found, net.predict(images / np.float32(255)), atol=1e-5)


def test_names_that_are_not_there() -> None:
    with pytest.raises(SpecError, match=r"no trained network 'small'; there are .*small-mnist"):
        capscore.create("small", pretrained=True)
    with pytest.raises(SpecError, match="no trained network 'none'"):
        capscore.create("none")


def test_commands_take_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime", "onnx")
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()

    def said(*args: str) -> str:
        done = runner.invoke(app, args)
        assert done.exit_code == 0, done.output
        return done.output

    assert "small-mnist" in said("models")
    assert said("models", "small-mnist").startswith("## small-mnist")
    assert "accuracy" in said("eval", "small-mnist", "--backend", "numpy")
    said("export", "small-mnist")
    assert (tmp_path / "small-mnist.onnx").exists(), "in this folder, not beside what ships"


def test_a_folder_and_back(tmp_path: Path) -> None:
    net = capscore.create("small-mnist", pretrained=True, backend="numpy")
    folder = hub.save_pretrained(net, tmp_path / "here", capscore.zoo.card("small-mnist"))
    assert "## small-mnist" in (folder / "README.md").read_text("utf-8")
    images = load("digits")[1].batch(slice(0, 8))[0]
    again = hub.from_pretrained(folder, "numpy")
    np.testing.assert_array_equal(again.predict(images), net.predict(images))
    with pytest.raises(ModelFileError, match="there is no such file"):
        hub.from_pretrained(tmp_path, "numpy")


class Hub(ModuleType):
    """The package, over a folder instead of the network."""

    def __init__(self, folder: Path) -> None:
        super().__init__("huggingface_hub")
        import huggingface_hub
        import huggingface_hub.errors

        self.folder, self.errors = folder, huggingface_hub.errors

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> str:
        if "/" not in name:
            raise self.errors.HFValidationError("a repository is called owner/name")
        return f"https://huggingface.co/{name}"

    def upload_folder(self, repo_id: str, folder_path: Path) -> None:
        for path in Path(folder_path).iterdir():
            (self.folder / path.name).write_bytes(path.read_bytes())

    def hf_hub_download(self, name: str, file: str, revision: str | None) -> str:
        if not (self.folder / file).exists():
            raise self.errors.LocalEntryNotFoundError("not there")
        return str(self.folder / file)


def test_to_the_hub_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("huggingface_hub", "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(tmp_path))
    with pytest.raises(
        ModelFileError, match=r"me/digits is no file or folder here, and the Hub does not give its model\.safetensors"
    ):
        hub.from_pretrained("me/digits", "numpy")
    net = capscore.create("small-mnist", pretrained=True, backend="numpy")
    assert hub.push_to_hub(net, "me/digits") == "https://huggingface.co/me/digits"
    assert hub.from_pretrained("me/digits", "numpy").spec == net.spec
    with pytest.raises(ModelFileError, match="the Hub does not take digits"):
        hub.push_to_hub(net, "digits")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BackendError, match=r"pip install 'capscore\[hub\]'"):
        hub.from_pretrained("me/digits")


def test_the_hub_by_a_file_by_a_name_and_where_nothing_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = zoo.create("small-mnist", pretrained=True, backend="numpy")
    hub.save_pretrained(net, tmp_path / "net")
    card = (tmp_path / "net" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "## small-mnist" in card
    assert ".md)" not in card, "no link to a page that is not there"
    again = hub.from_pretrained(tmp_path / "net" / "model.safetensors", "numpy")
    assert again.spec == net.spec
    with pytest.raises(ModelFileError, match=r'ships with capscore: capscore.create\("small-mnist", pretrained=True\)'):
        hub.from_pretrained("small-mnist")
    (tmp_path / "file").touch()
    with pytest.raises(ModelFileError, match=r"cannot make the folder .*file: File exists"):
        hub.save_pretrained(net, tmp_path / "file")


def test_no_connection_to_the_hub_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable(Exception):
        """What carries the Hub's words has errors of its own."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise Unreachable("Name or service not known")

    monkeypatch.setattr(hub, "_hub", lambda: SimpleNamespace(create_repo=fail, hf_hub_download=fail))
    with pytest.raises(ModelFileError, match=r"the Hub does not take me/net: Name or service not known"):
        hub.push_to_hub(zoo.create("small"), "me/net")
    with pytest.raises(ModelFileError, match=r"me/net is no file or folder here, .*not known"):
        hub.from_pretrained("me/net")


def test_what_ships_is_measured_by_the_command_on_its_card() -> None:
    """The lab reads the test images by the names that `capscore eval` takes."""
    from lab import published

    for name in capscore.list_models(pretrained=True):
        for data in published.SETS[published.Published.read(name).data][2].values():
            assert f"`capscore eval {name} --data {data}`" in zoo.card(name)
    card = zoo.card("efficient-affnist")
    assert "`capscore eval efficient-affnist --data mnist-40`" in card
    assert "`capscore eval efficient-affnist --data affine-mnist`" in card
