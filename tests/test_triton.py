"""The Triton model repository: what is in it, that Triton's own schema reads it, and that no half of one is left."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import NUMPY, need, random_images, random_params, small_spec
from typer.testing import CliRunner

from capscore import PRESETS, cli
from capscore.errors import CapscoreError, ModelFileError

SPEC = small_spec()
NET = NUMPY.CapsNet(SPEC, random_params(SPEC, dtype="float32"), classes=["ant", "bee", "two\nlines"])


@pytest.fixture(scope="module")
def triton() -> ModuleType:
    return need("capscore.export.triton", "onnx")


@pytest.fixture
def export(onnx_export: ModuleType, tmp_path: Path) -> Any:
    def write(**options: Any) -> Path:
        path = tmp_path / "model.onnx"
        onnx_export.export(NET, path, verify=False, **options)
        return path

    return write


def parse(text: str) -> dict[str, list[Any]]:
    """Read a text protobuf of fields, lists and messages: name → all its values."""
    tokens = re.findall(r'"[^"\n]*"|[\[\]{},:]|[\w.-]+', text)
    assert "".join(tokens) == re.sub(r"\s(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", "", text)  # nothing was skipped

    def value() -> Any:
        token = tokens.pop(0)
        if token == "{":
            return message("}")
        if token == "[":
            found = []
            while tokens[0] != "]":
                found.append(value())
                if tokens[0] == ",":
                    tokens.pop(0)
            tokens.pop(0)
            return found
        return token.strip('"') if token.startswith('"') else int(token) if token.isdigit() else token

    def message(end: str | None) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        while tokens and tokens[0] != end:
            name = tokens.pop(0)
            assert name.isidentifier()
            if tokens[0] == ":":
                tokens.pop(0)
            item = value()
            found.setdefault(name, []).extend(item if isinstance(item, list) else [item])
        if end is not None:
            tokens.pop(0)
        return found

    return message(None)


def test_the_repository(triton: ModuleType, runtime: ModuleType, export: Any, tmp_path: Path) -> None:
    model, folder = export(), tmp_path / "new" / "repository"
    made = triton.write(model, folder, "digits", max_batch=64, instances=2)
    assert made == folder / "digits"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        "digits", "digits/1", "digits/1/model.onnx", "digits/config.pbtxt", "digits/labels.txt",
    ]  # fmt: skip
    assert (made / "1" / "model.onnx").read_bytes() == model.read_bytes()
    assert (made / "labels.txt").read_text() == "ant\nbee\ntwo lines\n"
    session = runtime.Session(made / "1" / "model.onnx", threads=1)
    config = parse((made / "config.pbtxt").read_text())
    out = session(random_images(SPEC, 2))._asdict()
    assert config.pop("input") == [{"name": ["images"], "data_type": ["TYPE_FP32"], "dims": [2, 7, 6]}]
    assert len(config["output"]) == 3
    for output in config.pop("output"):
        (name,) = output["name"]
        assert output["data_type"] == ["TYPE_FP32"]
        assert output["dims"] == list(out[name].shape[1:])
        assert output.get("label_filename") == (["labels.txt"] if name == "lengths" else None)
    assert config == {
        "name": ["digits"],
        "platform": ["onnxruntime_onnx"],
        "max_batch_size": [64],
        "instance_group": [{"count": [2], "kind": ["KIND_GPU"]}],
        "dynamic_batching": [{"preferred_batch_size": [16, 64], "max_queue_delay_microseconds": [500]}],
    }


def test_scores_of_their_own_have_labels(triton: ModuleType, onnx_export: ModuleType, tmp_path: Path) -> None:
    onnx_export.export(NUMPY.CapsNet(PRESETS["small-vectors"]), tmp_path / "model.onnx", verify=False)
    made = triton.write(tmp_path / "model.onnx", tmp_path, "digits")
    (output,) = parse((made / "config.pbtxt").read_text())["output"]
    assert (output["name"], output["label_filename"]) == (["scores"], ["labels.txt"])


def test_a_second_export_is_the_next_version(triton: ModuleType, export: Any, tmp_path: Path) -> None:
    model = export()
    made = triton.write(model, tmp_path, "digits")
    before = (made / "config.pbtxt").read_bytes()
    assert triton.write(model, tmp_path, "digits") == made
    (made / "7").mkdir()
    triton.write(model, tmp_path, "digits")
    assert sorted(path.name for path in made.iterdir()) == ["1", "2", "7", "8", "config.pbtxt", "labels.txt"]
    for version in "28":
        assert (made / version / "model.onnx").read_bytes() == model.read_bytes()
    assert (made / "config.pbtxt").read_bytes() == before
    with pytest.raises(CapscoreError, match="with other inputs, outputs, classes or settings"):
        triton.write(export(outputs=["lengths"]), tmp_path, "digits")
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_an_edited_configuration_stays_for_the_next_version(triton: ModuleType, export: Any, tmp_path: Path) -> None:
    made = triton.write(export(), tmp_path, "digits", max_batch=64, instances=2)
    edited = (made / "config.pbtxt").read_text().replace("count: 2", "count:  3") + "# by hand\n"
    (made / "config.pbtxt").write_text(edited)
    triton.write(export(), tmp_path, "digits")
    assert (made / "2" / "model.onnx").exists()
    assert (made / "config.pbtxt").read_text() == edited
    for given in ({"instances": 2}, {"max_batch": 128}, {"device": "cpu"}):  # which is not what is there
        with pytest.raises(CapscoreError, match="other inputs, outputs, classes or settings"):
            triton.write(export(), tmp_path, "digits", **given)
    assert sorted(path.name for path in made.iterdir()) == ["1", "2", "config.pbtxt", "labels.txt"]


def test_the_command_writes_nothing_that_the_repository_refuses(triton: ModuleType, tmp_path: Path) -> None:
    def command(*args: Any) -> str:
        """What it said, or its error."""
        result = CliRunner().invoke(cli.app, list(map(str, args)))
        return str(result.exception or result.output)

    NET.save(tmp_path / "model.safetensors")
    args = ["export", tmp_path / "model.safetensors", tmp_path / "m.onnx", "--json", "--triton", tmp_path / "models"]
    for version in "12":
        command(*args)
        found = tmp_path / "models" / "capsnet" / version / "model.onnx"
        assert found.read_bytes() == (tmp_path / "m.onnx").read_bytes()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    said = command(*args, "--batch", 4)
    assert "capsnet is there already, with other inputs, outputs, classes or settings" in said
    assert "--triton-name" in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    command(*args, "--batch", 4, "--triton-name", "four")
    assert (tmp_path / "models" / "four" / "1" / "model.onnx").exists()
    assert "give that by --triton" in command("export", *args[1:3], "--triton-name", "four")


def test_a_version_that_cannot_be_written_leaves_none(
    triton: ModuleType, export: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = export()
    made = triton.write(model, tmp_path, "digits")

    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(triton, "write_atomically", full)
        with pytest.raises(ModelFileError, match=r"cannot write .*digits: No space left on device"):
            triton.write(model, tmp_path, "digits")
    assert sorted(path.name for path in made.iterdir()) == ["1", "config.pbtxt", "labels.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits", "model.onnx"]
    triton.write(model, tmp_path, "digits")
    assert (made / "2" / "model.onnx").read_bytes() == model.read_bytes()


def test_a_fixed_batch_and_bytes(triton: ModuleType, export: Any, tmp_path: Path) -> None:
    made = triton.write(export(batch=8, byte_images=True, outputs=["lengths"]), tmp_path, device="cpu")
    config = parse((made / "config.pbtxt").read_text())
    assert config["max_batch_size"] == [0]
    assert "dynamic_batching" not in config
    assert config["input"] == [{"name": ["images"], "data_type": ["TYPE_UINT8"], "dims": [8, 2, 7, 6]}]
    assert [output["dims"] for output in config["output"]] == [[8, 3]]
    assert config["instance_group"] == [{"count": [1], "kind": ["KIND_CPU"]}]


@pytest.mark.parametrize("options", [{}, {"batch": 8, "byte_images": True}, {"outputs": ["lengths", "couplings"]}])
def test_tritons_own_schema_reads_it(triton: ModuleType, export: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", exc_type=Exception)
    from google.protobuf import text_format

    made = triton.write(export(**options), tmp_path, "digits")
    config = text_format.Parse((made / "config.pbtxt").read_text(), schema.ModelConfig())
    assert (config.name, config.platform) == ("digits", "onnxruntime_onnx")
    assert config.max_batch_size == (0 if "batch" in options else 128)
    assert config.HasField("dynamic_batching") == ("batch" not in options)
    assert list(config.input[0].dims) == ([8, 2, 7, 6] if "batch" in options else [2, 7, 6])
    assert config.output[[output.name for output in config.output].index("lengths")].label_filename == "labels.txt"


WRONG = [
    ({"name": "../up"}, r"a Triton model's name is letters, digits, _, - and \., not '../up'"),
    ({"name": ""}, "name is letters"),
    ({"max_batch": 0}, "max_batch and instances must be at least 1, not 0 and 1"),
    ({"instances": 0}, "must be at least 1, not 128 and 0"),
    ({"device": "tpu"}, 'device must be "gpu" or "cpu", not \'tpu\''),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_parameters(
    triton: ModuleType, export: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CapscoreError, match=message):
        triton.write(export(), tmp_path / "repository", **options)
    assert not (tmp_path / "repository").exists()


def test_nothing_is_overwritten_or_left_half_done(
    triton: ModuleType, export: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = export(), tmp_path / "repository"
    with pytest.raises(ModelFileError, match="cannot load the ONNX model"):
        triton.write(tmp_path / "none.onnx", folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match=r"cannot write .*file"):
        triton.write(model, tmp_path / "file")
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ModelFileError, match=r"cannot write .*capsnet: No space left on device"):
        triton.write(model, folder)
    monkeypatch.undo()
    assert list(folder.iterdir()) == []
    made = triton.write(model, folder)
    before = (made / "config.pbtxt").read_bytes()
    with pytest.raises(
        CapscoreError, match="capsnet is there already, with other inputs, outputs, classes or settings: remove it"
    ):
        triton.write(model, folder, max_batch=1)
    assert (made / "config.pbtxt").read_bytes() == before
