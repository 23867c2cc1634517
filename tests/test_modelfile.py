"""Model files: written whole or not at all, read with suspicion, the same on every backend."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import stat
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import BACKENDS, FLOAT32, FLOAT64, NUMPY, backend, close, random_images, random_params, small_spec, specs
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as serialize

import capscore
from capscore import CapsNetSpec, Decoder, DenseCaps, PrimaryCaps, disk, modelfile
from capscore.disk import write_atomically
from capscore.errors import CapscoreError, ModelFileError, ShapeError
from capscore.modelfile import Model, read

CLASSES = ("zéro", "one", "二")
TINY = CapsNetSpec((1, 4, 4), (PrimaryCaps(1, 2, kernel=2, stride=2), DenseCaps(2, dim=3)), Decoder((3,)))


# ------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("other", BACKENDS)
def test_what_one_backend_saves_every_other_loads(caps: ModuleType, other: str, tmp_path: Path) -> None:
    spec, path = small_spec(), tmp_path / "model.safetensors"
    about = {"accuracy": 0.5, "data": ["mnist", None], "ä": {}}
    net = caps.CapsNet(spec, random_params(spec), dtype="float64", classes=CLASSES, provenance=about)
    net.save(path)
    copy = backend(other).CapsNet.load(path, dtype="float64")
    assert (copy.spec, copy.classes, copy.provenance) == (spec, CLASSES, about)
    for name, array in copy.params.items():
        np.testing.assert_array_equal(backend(other).to_numpy(array), caps.to_numpy(net.params[name]))
    images = random_images(spec, 2)
    found, wanted = backend(other).to_numpy(copy(images).lengths), caps.to_numpy(net(images).lengths)
    close(found, wanted, FLOAT64)


@given(spec=specs(), dtype=st.sampled_from([None, "float16", "float32", "float64"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_spec_survives(spec: CapsNetSpec, dtype: str | None, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    params = random_params(spec, dtype="float64")
    NUMPY.CapsNet(spec, params, dtype="float64").save(path, dtype)
    model = read(path)
    assert model.spec == spec
    assert model.classes == tuple(map(str, range(spec.classes)))
    for name, array in model.params.items():
        assert array.dtype == (dtype or "float64")
        np.testing.assert_array_equal(array, params[name].astype(dtype or "float64"))


def test_load_is_a_name_of_the_backend_and_of_the_package(caps: ModuleType, tmp_path: Path) -> None:
    NUMPY.CapsNet(TINY).save(tmp_path / "a")
    assert caps.load(str(tmp_path / "a")).spec == TINY
    assert capscore.load(tmp_path / "a").spec == TINY
    assert str(caps.load(tmp_path / "a").params["primary.bias"].dtype).endswith("float32")


def test_float16_is_half_the_size_and_close(tmp_path: Path) -> None:
    spec = small_spec()
    net = NUMPY.CapsNet(spec, random_params(spec, dtype="float32"))
    net.save(tmp_path / "whole")
    net.save(tmp_path / "half", dtype="float16")
    saved = (tmp_path / "whole").stat().st_size - (tmp_path / "half").stat().st_size
    assert saved == pytest.approx(2 * spec.parameter_count, abs=64)
    images = random_images(spec, 3, dtype="float32")
    half = NUMPY.load(tmp_path / "half")
    assert half.params["primary.bias"].dtype == np.float32
    np.testing.assert_allclose(half(images).lengths, net(images).lengths, atol=1e-2)


def test_a_file_is_the_same_bytes_twice(tmp_path: Path) -> None:
    for name in "ab":
        NUMPY.CapsNet(TINY, seed=3, classes=["x", "y"]).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_metadata_tells_a_stranger_all(tmp_path: Path) -> None:
    from safetensors import safe_open

    NUMPY.CapsNet(small_spec(input=(3, 7, 6)), classes=CLASSES, provenance={"seed": 1}).save(tmp_path / "a")
    with safe_open(tmp_path / "a", framework="numpy") as file:
        about = json.loads(file.metadata()["capscore"])
    assert about["format"] == 2
    assert about["classes"] == list(CLASSES)
    assert about["provenance"] == {"seed": 1}
    assert about["preprocessing"] == {"color": "rgb", "height": 7, "width": 6, "resize": "bilinear", "scale": 1 / 255}


def test_the_state_of_a_checkpoint_travels_and_is_no_parameter(tmp_path: Path) -> None:
    params = random_params(TINY)
    state = {f"optimizer.first.{name}": p for name, p in params.items()}
    modelfile.save(tmp_path / "a", Model(TINY, params, ("0", "1"), {}, state), dtype="float16")
    model = read(tmp_path / "a")
    assert set(model.state) == set(state)
    assert all(array.dtype == np.float64 for array in model.state.values())
    assert all(array.dtype == np.float16 for array in model.params.values())
    assert NUMPY.load(tmp_path / "a").spec == TINY


# ------------------------------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("primary.bias"), r"parameter primary\.bias is missing"),
        (lambda p: p.update(extra=np.zeros(1)), r"parameter extra is not in the spec: primary\.weight"),
        (lambda p: p.update({"primary.bias": np.zeros(3)}), r"primary\.bias has shape \(3,\); the spec wants \(2,\)"),
        (lambda p: p.update({"primary.bias": np.zeros(2, int)}), r"primary\.bias has dtype int64; it must be a float"),
        (lambda p: p.update({"primary.bias": np.array(["a", "b"])}), r"primary\.bias: wanted an array of numbers"),
        (lambda p: p.update({"primary.bias": None}), r"primary\.bias: wanted an array of numbers, not None"),
    ],
)
def test_params_that_do_not_fit(caps: ModuleType, change: Callable[..., Any], message: str) -> None:
    params: dict[str, Any] = dict(random_params(TINY))
    change(params)
    with pytest.raises(ShapeError, match=message):
        caps.CapsNet(TINY, params)
    net = caps.CapsNet(TINY)
    before = {name: caps.to_numpy(p).copy() for name, p in net.params.items()}
    with pytest.raises(ShapeError, match=message):
        net.assign(params)
    for name, p in net.params.items():
        np.testing.assert_array_equal(caps.to_numpy(p), before[name])


@pytest.mark.parametrize("classes", [["a"], ["a", "b", "c"], "ab", [1, 2], 7, [["a"], ["b"]]])
def test_classes_that_do_not_fit(classes: Any) -> None:
    with pytest.raises(ShapeError, match="classes must be 2 names"):
        NUMPY.CapsNet(TINY, classes=classes)


def test_two_classes_of_one_name() -> None:
    with pytest.raises(ShapeError, match="every class needs a name of its own"):
        NUMPY.CapsNet(TINY, classes=["a", "a"])


@pytest.mark.parametrize("seed", [-1, 1.5, "1", None])
def test_seeds_that_do_not_fit(seed: Any) -> None:
    with pytest.raises(ShapeError, match="seed must be a whole number"):
        NUMPY.CapsNet(TINY, seed=seed)


def test_dtypes_that_do_not_exist(caps: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match='dtype must be "float32" or "float64", not \'float16\''):
        caps.CapsNet(TINY, dtype="float16")
    with pytest.raises(ModelFileError, match="stored as float16, float32 or float64, not 'int8'"):
        caps.CapsNet(TINY).save(tmp_path / "a", dtype="int8")
    assert list(tmp_path.iterdir()) == []


def test_values_beyond_float16_are_not_saved_as_infinity(tmp_path: Path) -> None:
    params = random_params(TINY)
    params["primary.bias"][0] = 1e5
    with pytest.raises(ModelFileError, match=r"primary\.bias has values beyond 65504"):
        NUMPY.CapsNet(TINY, params).save(tmp_path / "a", dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_provenance_that_is_no_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    net = NUMPY.CapsNet(TINY, provenance={"when": object()})
    with pytest.raises(CapscoreError, match="provenance"):
        net.save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------ written whole or not at all


def test_a_file_that_is_replaced_is_whole_and_readable_by_all(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_file_that_was_there_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.touch()
    path.chmod(0o600)
    write_atomically(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_writing_leaves_the_mode_of_other_threads_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask of new files' permissions is the process's: who sets it, however shortly, changes others' files."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the mask was set"))
    write_atomically(tmp_path / "model", b"new")


@pytest.mark.parametrize("step", ["write", "fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_no_half_files(step: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    if step == "write":

        def opened(*args: Any) -> Any:
            file = open(*args)  # noqa: SIM115 - closed by Full

            class Full:
                __enter__ = lambda self: self  # noqa: E731
                __exit__ = lambda self, *_: file.close()  # noqa: E731
                write = flush = fail
                fileno = file.fileno

            return Full()

        monkeypatch.setattr(disk, "open", opened, raising=False)
    else:
        monkeypatch.setattr(os, step, fail)
    wanted = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ModelFileError
    with pytest.raises(wanted) as caught:
        NUMPY.CapsNet(TINY).save(path)
    monkeypatch.undo()
    if wanted is ModelFileError:
        assert str(caught.value) == f"cannot write {path}: No space left on device; nothing was changed"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        ModelFileError, match=r"cannot write .*no/model: No such file.*is its folder there and writable"
    ):
        NUMPY.CapsNet(TINY).save(tmp_path / "no" / "model")
    (tmp_path / "file").touch()
    with pytest.raises(ModelFileError, match="cannot write"):
        NUMPY.CapsNet(TINY).save(tmp_path / "file" / "model")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ModelFileError, match="Permission denied; is its folder there and writable"):
        NUMPY.CapsNet(TINY).save(tmp_path / "model")


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelFileError, match=r"cannot write .*nothing was changed"):
        NUMPY.CapsNet(TINY).save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


@pytest.fixture
def onnx_writer() -> Callable[[Path], Any]:
    """What exports a network to a path."""
    onnx_export = pytest.importorskip("capscore.export.onnx")
    return lambda path: onnx_export.export(
        NUMPY.CapsNet(TINY, random_params(TINY, dtype="float32")), path, verify=False
    )


@pytest.mark.parametrize("writer", ["save", "export", "figure"])
def test_what_is_no_file_is_not_written_over(writer: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if writer == "figure":
        pytest.importorskip("matplotlib")
        from matplotlib.figure import Figure

        from capscore import figures

        write: Callable[[Path], Any] = lambda path: figures.save(Figure((1, 1)), path)  # noqa: E731
    else:
        write = NUMPY.CapsNet(TINY).save if writer == "save" else request.getfixturevalue("onnx_writer")
    fifo, folder = tmp_path / "fifo", tmp_path / "folder"
    os.mkfifo(fifo)
    folder.mkdir()
    (tmp_path / "link").symlink_to(fifo)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    cases = {
        fifo: "a pipe",
        tmp_path / "link": "a pipe",
        folder: "a folder",
        tmp_path / "socket": "a socket",
        Path("/dev/null"): "a device",
    }
    before = {path: path.lstat().st_ino for path in tmp_path.iterdir()}
    null = os.stat("/dev/null").st_rdev
    for path, what in cases.items():
        with pytest.raises(
            ModelFileError, match=f"cannot write {path}: it is {what}; nothing was changed; name a file"
        ):
            write(path)
    listener.close()
    assert {path: path.lstat().st_ino for path in tmp_path.iterdir()} == before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert os.stat("/dev/null").st_rdev == null


@pytest.mark.parametrize("there", [True, False], ids=["there", "dangling"])
def test_a_symbolic_link_stays_and_its_file_is_written(there: bool, tmp_path: Path) -> None:
    for name in ("far", "near"):
        (tmp_path / name).mkdir()
    real, middle, link = tmp_path / "far" / "model", tmp_path / "far" / "middle", tmp_path / "near" / "model"
    middle.symlink_to("model")
    link.symlink_to("../far/middle")
    if there:
        real.write_bytes(b"old")
    NUMPY.CapsNet(TINY).save(link)
    assert link.is_symlink()
    assert middle.is_symlink()
    assert not real.is_symlink()
    assert read(real).spec == TINY
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["far", "middle", "model", "model", "near"]


def test_the_folder_is_synced_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, synced = tmp_path / "model", os.fsync, []

    def fsync(handle: int) -> None:
        what = os.fstat(handle)
        synced.append((stat.S_ISDIR(what.st_mode) and what.st_ino == tmp_path.stat().st_ino, path.exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    NUMPY.CapsNet(TINY).save(path)
    assert synced == [(False, False), (True, True)]


# ----------------------------------------------------------------------------------------------- read with suspicion


@pytest.mark.parametrize("kind", ["a value", "a name", "the description", "the digest"])
def test_a_damaged_model_is_told_by_its_digest(kind: str, caps: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "model"
    NUMPY.CapsNet(TINY, provenance={"accuracy": 0.5, "infinite": float("inf")}, classes=("ä", "b")).save(path)
    whole = path.read_bytes()
    assert caps.load(path).provenance == {"accuracy": 0.5, "infinite": float("inf")}
    old, new = {
        "a value": (whole[-4:], whole[-4:-1] + bytes([whole[-1] ^ 1])),
        "a name": (b'"primary.bias"', b'"primary.bia"+'),
        "the description": (b"0.5", b"0.6"),
        "the digest": (digest := json.loads(metadata(path))["digest"].encode(), digest[::-1]),
    }[kind]
    assert old in whole
    start = whole.rindex(old)
    path.write_bytes(whole[:start] + new + whole[start + len(old) :])
    with pytest.raises(ModelFileError, match="cannot read the model") as caught:
        caps.load(path)
    assert str(path) in str(caught.value)
    assert ("it is damaged: its digest is not" in str(caught.value)) == (kind != "a name")


def metadata(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return str(file.metadata()["capscore"])


@pytest.mark.parametrize("digest", [None, 7, [], "x", {"a": []}])
def test_a_digest_of_another_kind(digest: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(with_metadata(ABOUT | {"digest": digest}))
    assert refuses(read, tmp_path / "a")


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def with_metadata(about: Any, params: dict[str, np.ndarray] | None = None) -> bytes:
    text = about if isinstance(about, str) else json.dumps(about)
    return serialize(random_params(TINY) if params is None else params, metadata={"capscore": text})


ABOUT = json.loads(modelfile.describe(TINY, ("a", "b"), {}))
WHOLE = with_metadata(ABOUT)
HEADER = json.loads(WHOLE[8 : 8 + struct.unpack("<Q", WHOLE[:8])[0]])
DATA = WHOLE[8 + struct.unpack("<Q", WHOLE[:8])[0] :]


def header_with(name: str, **changes: Any) -> bytes:
    return file_of(HEADER | {name: HEADER[name] | changes}, DATA)


HOSTILE = {
    "empty": b"",
    "short": b"\x01\x02",
    "length only": struct.pack("<Q", 10),
    "length of everything": b"\xff" * 8 + b"{}",
    "length of a terabyte": struct.pack("<Q", 2**40) + b"{}",
    "length of 100 megabytes": struct.pack("<Q", 100_000_000 - 1) + b"{}",
    "header that is no JSON": file_of(b"}{"),
    "header that is a list": file_of([1]),
    "header of nothing": file_of({}),
    "header deep": file_of(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "a pickle": b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "a zip": b"PK\x03\x04" + bytes(100),
    "no metadata": serialize(random_params(TINY)),
    "other metadata": serialize(random_params(TINY), metadata={"format": "pt"}),
    "metadata that is no JSON": with_metadata("{"),
    "metadata that is a list": with_metadata([1]),
    "metadata of another format": with_metadata(ABOUT | {"format": 3}),
    "metadata of a long format": with_metadata(ABOUT | {"format": "x" * 10**6}),
    "metadata without a format": with_metadata({"spec": ABOUT["spec"]}),
    "metadata without a spec": with_metadata({"format": 1}),
    "metadata deep": with_metadata('{"format": 1, "spec": ' + "[" * 10**5 + "]" * 10**5 + "}"),
    "provenance that is a list": with_metadata(ABOUT | {"provenance": []}),
    "classes that do not fit": with_metadata(ABOUT | {"classes": ["a"]}),
    "classes by the million": with_metadata(ABOUT | {"classes": ["a"] * 10**6}),
    "a spec that cannot be": with_metadata(ABOUT | {"spec": ABOUT["spec"] | {"input": [1, 1, 1]}}),
    "a spec too large": with_metadata(ABOUT | {"spec": ABOUT["spec"] | {"input": [1, 10**6, 10**6]}}),
    "a spec of another network": with_metadata(ABOUT | {"spec": json.loads(small_spec().to_json())}),
    "a parameter too few": with_metadata(ABOUT, {k: v for k, v in random_params(TINY).items() if "bias" not in k}),
    "a parameter too many": with_metadata(ABOUT, random_params(TINY) | {"x": np.zeros(1)}),
    "a parameter of integers": with_metadata(ABOUT, {k: v.astype(int) for k, v in random_params(TINY).items()}),
    "a shape that overflows": header_with("primary.bias", shape=[2**63, 2**63]),
    "a shape of a terabyte": header_with("primary.bias", shape=[2**37]),
    "a negative shape": header_with("primary.bias", shape=[-2]),
    "offsets backwards": header_with("primary.bias", data_offsets=[16, 0]),
    "offsets past the end": header_with("primary.bias", data_offsets=[0, 2**40]),
    "offsets on top of each other": header_with("primary.bias", data_offsets=[0, 16]),
    "an unknown dtype": header_with("primary.bias", dtype="F7"),
    "a dtype that is a number": header_with("primary.bias", dtype=7),
    **{
        f"a parameter of {dtype}": header_with("primary.bias", dtype=dtype, shape=[2, 8 * 8 // bits])
        for dtype, bits in {"BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "BOOL": 8, "U8": 8, "I64": 64, "C64": 64}.items()
    },
    **{f"a parameter of {dtype} in shape": header_with("primary.bias", dtype=dtype) for dtype in ("I64", "U64", "C64")},
    "bytes after the end": WHOLE + b"more",
    "bytes missing": WHOLE[:-1],
}


def refuses(load: Callable[[Path], Any], path: Path) -> bool:
    """Whether it raises ModelFileError, and nothing else, with a short message that names the file."""
    tracemalloc.start()
    message = None
    try:
        load(path)
    except ModelFileError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    size = path.stat().st_size if path.is_file() else 0
    assert peak < 5_000_000 + 20 * size
    if message is not None:
        assert message.startswith("cannot read the model ")
        assert str(path) in message
        assert len(message) < 1000
    return message is not None


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refuses(read, path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("where", ["spec", "provenance", "format", "classes", "x"])
def test_metadata_deep_down(where: str, tmp_path: Path) -> None:
    """At any depth: where the parser gives up, and just before, where writing or printing it might."""
    path = tmp_path / "model.safetensors"
    for depth in (*range(900, 1000), 100_000):
        text = json.dumps(ABOUT)[:-1] + f', "{where}": ' + "[" * depth + "]" * depth + "}"
        path.write_bytes(with_metadata(text))
        assert refuses(read, path) or where == "x"


def test_what_is_not_a_file(tmp_path: Path) -> None:
    assert refuses(read, tmp_path / "nothing")
    assert refuses(read, tmp_path)
    with pytest.raises(ModelFileError, match="there is no such file"):
        NUMPY.load(tmp_path / "nothing")


def test_the_undamaged_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(WHOLE)
    assert not refuses(read, tmp_path / "a")


DAMAGE = st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGE)
def test_flipped_bytes(damage: list[tuple[int, int]], tmp_path: Path) -> None:
    content = bytearray(WHOLE)
    for place, value in damage:
        content[place] = value
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    if not refuses(read, path):  # then only values, names or settings that mean nothing else have changed
        model = read(path)
        assert {name: p.shape for name, p in model.params.items()} == model.spec.parameters


@given(length=st.integers(0, len(WHOLE) - 1))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncation(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(WHOLE[:length])
    assert refuses(read, path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(HEADER)),
    key=st.sampled_from(["dtype", "shape", "data_offsets", "extra"]),
    value=st.one_of(
        st.none(),
        st.sampled_from(["F32", "F16", "F64", "BF16", "I8", "BOOL", "F8_E8M0", "F4", ""]),
        st.lists(st.one_of(st.integers(-1, 100), st.sampled_from([2**31, 2**62, 2**64])), max_size=5),
    ),
)
@example(name="primary.bias", key="shape", value=[1, 2])
def test_lying_headers(name: str, key: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header_with(name, **{key: value}))
    if not refuses(read, path):
        assert {n: p.shape for n, p in read(path).params.items()} == TINY.parameters


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_: pytest.fail("a model file was unpickled"))
    NUMPY.CapsNet(TINY).save(tmp_path / "a")
    assert NUMPY.load(tmp_path / "a").spec == TINY
    np.save(tmp_path / "b", np.array([{}], dtype=object), allow_pickle=True)
    assert refuses(read, tmp_path / "b.npy")


# ------------------------------------------------------------------------------------------------------------- ONNX


@pytest.fixture(scope="module")
def exported(onnx_export: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx_export.export(NUMPY.CapsNet(TINY, random_params(TINY, dtype="float32")), path, verify=False)
    return path.read_bytes()


def opens(runtime: ModuleType, path: Path) -> bool:
    """Whether an ONNX file opens and runs; if not, the error is a ModelFileError with a short message."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = None
    try:
        session = runtime.Session(path, threads=1)
        out = session(random_images(session.spec, 2, dtype="float32"))
    except ModelFileError as error:
        message = str(error)
    else:  # then only numbers have changed: weights, a stride
        assert out.lengths.ndim == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB
    assert message is None or (str(path) in message and len(message) < 1500)
    return message is None


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_onnx(runtime: ModuleType, exported: bytes, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(exported)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    opens(runtime, path)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated_onnx(runtime: ModuleType, exported: bytes, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(exported[: data.draw(st.integers(0, len(exported) - 1))])
    assert not opens(runtime, path)


def test_the_undamaged_onnx_opens(runtime: ModuleType, exported: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(exported)
    assert opens(runtime, tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [WHOLE, b"", b"nonsense", b"\x80\x04pickle"])
def test_what_is_not_onnx(runtime: ModuleType, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="cannot load the ONNX model"):
        runtime.Session(path)


def test_lengths_of_a_loaded_model_are_those_of_its_export(
    runtime: ModuleType, onnx_export: ModuleType, tmp_path: Path
) -> None:
    spec = small_spec()
    NUMPY.CapsNet(spec, random_params(spec), classes=CLASSES).save(tmp_path / "a")
    net = NUMPY.load(tmp_path / "a")
    onnx_export.export(net, tmp_path / "a.onnx")
    session = runtime.Session(tmp_path / "a.onnx")
    assert (session.spec, session.classes) == (spec, CLASSES)
    images = random_images(spec, 3, dtype="float32")
    close(session(images).lengths, net(images).lengths, FLOAT32)
