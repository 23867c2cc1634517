"""Models in MLServer: the repository, what is told of bad requests over HTTP, and a short run under load.

The server runs in an environment of its own, whose Python CAPSCORE_MLSERVER names: MLServer holds back packages that
the other tests want new. `pip install '.[mlserver]' 'tritonclient[grpc]'` makes one.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import socket
import subprocess
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import FLOAT32, NUMPY, REQUIRED, close, need, random_images, random_params, small_spec
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from capscore.cli.app import app
from capscore.errors import CapscoreError, ModelFileError

ROOT = Path(__file__).parents[1]
SPEC = small_spec()
NET = NUMPY.CapsNet(SPEC, random_params(SPEC, dtype="float32"), classes=["ant", "bee", "cat"])
OTHER = NUMPY.CapsNet(SPEC, random_params(SPEC, seed=1, dtype="float32"), classes=["ant", "bee", "cat"])


@pytest.fixture(scope="module")
def mlserver() -> ModuleType:
    return need("capscore.export.mlserver", "onnx")


@pytest.fixture(scope="module")
def python() -> str:
    """The Python of an environment with MLServer."""
    named = os.environ.get("CAPSCORE_MLSERVER", "")
    if not named or shutil.which(named) is None:
        if "mlserver" in REQUIRED:
            pytest.fail(f"CAPSCORE_REQUIRE names mlserver, and CAPSCORE_MLSERVER is {named!r}")
        pytest.skip("CAPSCORE_MLSERVER names no Python with capscore[mlserver]")
    return named


@pytest.fixture
def export(onnx_export: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    def write(net: Any = NET, **options: Any) -> Path:
        onnx_export.export(net, tmp_path / "model.onnx", verify=False, **options)
        return tmp_path / "model.onnx"

    return write


def test_the_repository(mlserver: ModuleType, export: Callable[..., Path], tmp_path: Path) -> None:
    model, folder = export(), tmp_path / "new" / "models"
    made = mlserver.write(model, folder, "digits", max_batch=16, max_wait=0.01, provider="cpu", threads=2)
    assert made == folder / "digits"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        "digits", "digits/model-settings.json", "digits/model.onnx", "settings.json",
    ]  # fmt: skip
    assert (made / "model.onnx").read_bytes() == model.read_bytes()
    assert json.loads((folder / "settings.json").read_text()) == {"parallel_workers": 0, "debug": False}
    assert json.loads((made / "model-settings.json").read_text()) == {
        "name": "digits",
        "implementation": "capscore.export.serving.Runtime",
        "parameters": {
            "uri": "./model.onnx",
            "extra": {"max_batch_size": 16, "max_batch_time": 0.01, "provider": "cpu", "threads": 2},
        },
    }


def test_a_second_export_takes_the_place_of_the_first(
    mlserver: ModuleType, export: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    made = mlserver.write(export(), folder, "digits")
    settings = (made / "model-settings.json").read_bytes()
    (folder / "settings.json").write_text('{"parallel_workers": 3}')  # somebody's own
    assert mlserver.write(export(OTHER), folder, "digits") == made
    assert (made / "model.onnx").read_bytes() == export(OTHER).read_bytes()
    assert (made / "model-settings.json").read_bytes() == settings
    assert (folder / "settings.json").read_text() == '{"parallel_workers": 3}'
    with pytest.raises(CapscoreError, match="with other inputs, outputs, classes or settings: remove it"):
        mlserver.write(export(outputs=["lengths"]), folder, "digits")
    with pytest.raises(CapscoreError, match="or give this model another name"):
        mlserver.write(export(), folder, "digits", max_batch=7)
    assert (made / "model.onnx").read_bytes() != export().read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["digits", "settings.json"]


def test_wrong_parameters(mlserver: ModuleType, export: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "models"
    for options, message in (
        ({"name": "../up"}, r"a model's name is letters, digits, _, - and \., not '../up'"),
        ({"max_batch": 0}, "max_batch must be at least 1 and max_wait 0 to 10 seconds, not 0 and"),
        ({"max_wait": -1.0}, "max_wait 0 to 10 seconds, not 128 and -1.0"),
    ):
        with pytest.raises(CapscoreError, match=message):
            mlserver.write(export(), folder, **options)
    with pytest.raises(ModelFileError, match="cannot load the ONNX model"):
        mlserver.write(tmp_path / "none.onnx", folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match=r"cannot write .*file"):
        mlserver.write(export(), tmp_path / "file")
    assert not folder.exists()


def test_the_command_writes_one(mlserver: ModuleType, tmp_path: Path) -> None:
    NET.save(tmp_path / "m.safetensors")
    arguments = ["export", str(tmp_path / "m.safetensors"), "--mlserver", str(tmp_path / "models")]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "1000"})
    assert done.exit_code == 0, (done.output, done.exception)
    assert f"serve it with mlserver start {tmp_path / 'models'}" in done.output
    assert (tmp_path / "models" / "capsnet" / "model.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


class Server:
    """A running MLServer, spoken to with nothing but what Python brings."""

    def __init__(self, python: str, folder: Path, log: Path) -> None:
        self.log, self.folder = log, folder
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            ports = {}
            for name, each in (("HTTP_PORT", one), ("GRPC_PORT", two), ("METRICS_PORT", three)):
                each.bind(("127.0.0.1", 0))
                ports[f"MLSERVER_{name}"] = str(each.getsockname()[1])
        self.port = ports["MLSERVER_HTTP_PORT"]
        where = {"MLSERVER_HOST": "127.0.0.1", "PYTHONPATH": str(ROOT)}
        command = [python, "-c", "from mlserver.cli import main; main()", "start", folder]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, env=os.environ | ports | where, stdout=out, stderr=out)

    def wait(self) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if self.ask("health/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        pytest.fail(f"MLServer did not start: {self.log.read_text()[-3000:]}")

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Return status and answer; a body, bytes or what becomes JSON, makes it a POST."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v2/{path}", content)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")

    def infer(self, model: str, images: np.ndarray, **changes: Any) -> tuple[int, Any]:
        given = {"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
        outputs = {"outputs": changes.pop("outputs")} if "outputs" in changes else {}
        return self.ask(f"models/{model}/infer", {"inputs": [given | changes]} | outputs)


@pytest.fixture(scope="module")
def server(
    python: str, mlserver: ModuleType, onnx_export: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server of one network in three files: as it is, of bytes, and of a fixed batch."""
    folder = tmp_path_factory.mktemp("serving")
    kinds: dict[str, dict[str, Any]] = {"digits": {}, "bytes": {"byte_images": True}, "fixed": {"batch": 4}}
    for name, options in kinds.items():
        onnx_export.export(NET, folder / "m.onnx", verify=False, **options)
        mlserver.write(folder / "m.onnx", folder / "models", name, max_batch=6, provider="cpu", threads=1)
    running = Server(python, folder / "models", folder / "log")
    try:
        running.wait()
        yield running
    finally:
        running.process.terminate()
        running.process.wait(30)


def arrays(answer: Any) -> dict[str, np.ndarray]:
    return {y["name"]: np.reshape(y["data"], y["shape"]) for y in answer["outputs"]}


def test_it_tells_what_the_model_takes_and_gives(server: Server) -> None:
    status, told = server.ask("models/digits")
    assert status == 200
    assert (told["name"], told["platform"]) == ("digits", "capscore")
    assert told["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 2, 7, 6]}]
    assert {y["name"]: y["shape"] for y in told["outputs"]} == {
        "lengths": [-1, 3], "capsules": [-1, 3, 6], "reconstruction": [-1, 2, 7, 6],
    }  # fmt: skip
    assert json.loads(told["parameters"]["classes"]) == ["ant", "bee", "cat"]
    assert json.loads(told["parameters"]["preprocessing"])["height"] == 7
    assert server.ask("models/bytes")[1]["inputs"][0]["datatype"] == "UINT8"
    assert server.ask("models/fixed")[1]["inputs"][0]["shape"] == [4, 2, 7, 6]


def test_it_answers_as_the_network_does(server: Server) -> None:
    x = random_images(SPEC, 3, dtype="float32")
    wanted = NET(x)
    for name in ("digits", "fixed"):  # a fixed batch takes fewer, too
        status, told = server.infer(name, x)
        assert status == 200
        found = arrays(told)
        assert list(found) == ["lengths", "capsules", "reconstruction"]
        close(found["lengths"], wanted.lengths, FLOAT32)
        close(found["capsules"], wanted.capsules, FLOAT32)
        close(found["reconstruction"], NET.reconstruct(wanted.capsules), FLOAT32)
    status, told = server.infer("digits", x, data=x.tolist(), outputs=[{"name": "lengths"}])
    assert list(arrays(told)) == ["lengths"]
    pixels = np.round(x * 255).astype(np.uint8)
    status, told = server.infer("bytes", pixels, datatype="UINT8")
    close(arrays(told)["lengths"], NET(pixels.astype("float32") / 255).lengths, FLOAT32)


X = np.zeros((1, 2, 7, 6))
BAD = [
    ({"shape": [1, 2, 6, 7]}, r"images have shape \[1, 2, 6, 7\]; wanted \[batch, 2, 7, 6\]"),
    ({"shape": [1, 7, 6, 2]}, "puts the channels first"),
    ({"data": [0.0] * 83}, r"images of shape \[1, 2, 7, 6\] come with 83 numbers"),
    ({"shape": [-1, 2, 7, 6]}, "come with 84 numbers"),
    ({"shape": [0, 2, 7, 6], "data": []}, "come with 0 numbers"),
    ({"shape": [7, 2, 7, 6], "data": [0.0] * 588}, "a request may bring 6 images, not 7: send them in several"),
    ({"datatype": "FP64"}, r"images are 'FP64'; this model takes FP32, floats in \[0, 1\]"),
    ({"data": ["0.5"] * 84}, "the data of images are not numbers"),
    ({"data": [None] * 84}, "not numbers"),
    ({"data": [[0.0], [0.0, 1.0]]}, "lists of several lengths; one flat list will do"),
    ({"data": [1e300] + [0.0] * 83}, "images hold NaN or infinity"),
    ({"data": [255.0] + [0.0] * 83}, "images go from 0 to 255; wanted 0 to 1: images / 255"),
    ({"name": "pictures"}, r"a request has the one input images, not \['pictures'\]"),
    ({"outputs": [{"name": "classes"}]}, "there is no output 'classes'; this model has lengths, capsules, recon"),
]


def test_what_is_wrong_with_a_request_is_told(server: Server) -> None:
    for changes, message in BAD:
        status, told = server.infer("digits", X, **changes)
        assert status == 400, (changes, told)
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(told["error"])
    for changes in ({"datatype": "UINT8"}, {"data": [256] + [0] * 83}, {"data": [-1] + [0] * 83}, {"data": [0.5] * 84}):
        name = "digits" if "datatype" in changes else "bytes"
        status, told = server.infer(name, X.astype(int), **({"datatype": "UINT8"} | changes))
        assert status == 400, (changes, told)
    for body in (b"\xff{", b"{}", b'{"inputs": 3}', b'{"inputs": [{"name": "images"}]}', b'{"inputs": [NaN]}'):
        status, told = server.ask("models/digits/infer", body)
        assert 400 <= status < 500, (body, status, told)
    assert server.infer("none", X)[0] == 404
    assert server.infer("digits", X)[0] == 200  # and it still answers


def test_a_model_that_is_none_does_not_take_the_place_of_one(
    server: Server, mlserver: ModuleType, export: Callable[..., Path]
) -> None:
    x = random_images(SPEC, 2, dtype="float32")
    model = server.folder / "digits" / "model.onnx"
    before = model.read_bytes()
    model.write_bytes(before[:1000])
    status, told = server.ask("repository/models/digits/load", b"")
    assert (status, "cannot load the model digits: cannot load the ONNX model" in told["error"]) == (422, True)
    close(arrays(server.infer("digits", x)[1])["lengths"], NET(x).lengths, FLOAT32)
    model.write_bytes(before)
    mlserver.write(export(OTHER), server.folder, "digits", max_batch=6, provider="cpu", threads=1)
    assert server.ask("repository/models/digits/load", b"")[0] == 200
    close(arrays(server.infer("digits", x)[1])["lengths"], OTHER(x).lengths, FLOAT32)
    assert server.ask("repository/models/digits/unload", b"")[0] == 200
    assert server.infer("digits", x)[0] == 404
    model.write_bytes(before)
    assert server.ask("repository/models/digits/load", b"")[0] == 200
    close(arrays(server.infer("digits", x)[1])["lengths"], NET(x).lengths, FLOAT32)


def test_settings_that_would_not_do_what_they_say_are_refused(server: Server) -> None:
    settings = server.folder / "digits" / "model-settings.json"
    before = settings.read_text()
    own = json.loads(before)
    odd = own["parameters"] | {"extra": {"batch": 3}}
    for changed, message in (
        (own | {"max_batch_size": 8, "max_batch_time": 0.1}, "max_batch_size is to be in parameters.extra"),
        (own | {"parameters": odd}, "parameters.extra has no 'batch'; it may have max_batch_size"),
    ):
        settings.write_text(json.dumps(changed))
        status, told = server.ask("repository/models/digits/load", b"")
        settings.write_text(before)
        assert (status, message in told["error"]) == (422, True)


def test_nothing_is_lost_under_load(python: str, tmp_path: Path) -> None:
    """16 clients over HTTP and gRPC, beside corrupt requests, clients that hang or give up, and models exchanged."""
    command = [python, "-m", "lab.bench.serving", "--seconds", "5", "--rounds", "0", "--json", tmp_path / "found.json"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())["load"]
    assert found["failed"] == []
    assert min(found["latency"][protocol]["requests"] for protocol in ("http", "grpc")) >= 8  # each has an answer
    beside = found["beside"]
    assert beside["exchanged"] >= 1
    assert beside["hung"] == 4
    corrupt = {name: count for name, count in beside.items() if name.startswith("corrupt")}
    wanted = {"corrupt, grpc: StatusCode.INVALID_ARGUMENT", "corrupt, http: 400"}
    assert wanted <= set(corrupt) <= wanted | {"corrupt, http: 422", "corrupt, http: not sent"}, corrupt


SERVING = ROOT / "examples" / "serving"


def lines(path: Path, word: str) -> list[list[str]]:
    """The words after an instruction of a Dockerfile, wherever it stands; continued lines as one."""
    text = path.read_text().replace("\\\n", " ")
    return [line.split()[1:] for line in text.splitlines() if line.split()[:1] == [word]]


def test_the_image_is_pinned_complete_and_nobody_is_root_in_it() -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = about["project"]
    pinned = [line for line in (SERVING / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    versions = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in pinned)}
    assert all(versions.values()), versions
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["mlserver"],
        *about["build-system"]["requires"],
    ]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement
    docker = SERVING / "Dockerfile"
    bases = {words[0] for words in lines(docker, "FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.1[12]\.\d+-slim-\w+", bases.pop())  # MLServer has no later one
    assert lines(docker, "USER")[-1][0].split(":")[0] not in ("root", "0")
    let_in = {line[1:] for line in (SERVING / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = {source for words in lines(docker, "COPY") if words[0] != "--from=build" for source in words[:-1]}
    assert copied == let_in
    assert all((ROOT / path).exists() for path in copied)
    assert copied >= {*about["tool"]["setuptools"]["package-dir"].values(), "pyproject.toml", project["readme"]}
    assert copied >= set(project["license-files"])


def test_what_starts_the_image_agrees_with_it(mlserver: ModuleType) -> None:
    image = f"capscore-mlserver:{tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']}"
    docker = (SERVING / "Dockerfile").read_text()
    command = json.loads(docker.rpartition("\nCMD ")[2])
    assert f"--tag {image} " in docker
    compose = yaml.safe_load((SERVING / "compose.yaml").read_text())["services"]["capscore"]
    assert compose["image"] == image
    assert (SERVING / compose["build"]["context"]).resolve() == ROOT
    assert (ROOT / compose["build"]["dockerfile"]).is_file()
    assert [volume.rpartition("}:")[2] for volume in compose["volumes"]] == [f"{command[-1]}:ro"]
    assert [port.split(":")[-1] for port in compose["ports"]] == lines(SERVING / "Dockerfile", "EXPOSE")[0]
    runtime, service = yaml.safe_load_all((SERVING / "kserve.yaml").read_text())
    (container,) = runtime["spec"]["containers"]
    assert container["args"] == command
    assert container["image"].endswith(f"/{image}")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] == runtime["spec"]["supportedModelFormats"][0]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    # KServe asks for the model by the name of the service, and the command line gives it this one.
    assert service["metadata"]["name"] == inspect.signature(mlserver.write).parameters["name"].default
