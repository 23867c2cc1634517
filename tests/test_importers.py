"""Importers: checkpoints in their authors' layouts give the authors' results; hostile ones are refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strangers
from conftest import FLOAT32, NUMPY, backend, close, peak_below, random_params, small_spec
from safetensors.numpy import save_file
from typer.testing import CliRunner

from capscore import (
    BatchNorm,
    CapsNetSpec,
    Conv,
    Decoder,
    DenseCaps,
    DynamicRouting,
    FlatCaps,
    PrimaryCaps,
    SelfAttention,
    modelfile,
)
from capscore.cli import app
from capscore.errors import ModelFileError, ShapeError
from capscore.files.importers import convert, read_tensors
from capscore.files.importers.mapping import read_mapping

h5py = pytest.importorskip("h5py")
torch = pytest.importorskip("torch")

GUO, _, _ = strangers.guo_keras()
TINY = CapsNetSpec((1, 5, 5), (Conv(3, 2), PrimaryCaps(2, 2, 2, 2), DenseCaps(3, 2)), decoder=None)


def same(path: Path, network: strangers.Network, **hints: Any) -> modelfile.Model:
    """Assert that the import computes what the author's code does, drawings too."""
    _, capsules, draws = network
    model = convert(path, **hints)
    images = np.random.default_rng(1).random((3, *model.spec.input))
    net = NUMPY.CapsNet(model.spec, model.params, dtype="float64")
    found = net(images)
    wanted = capsules(images)
    assert 0.05 < np.linalg.norm(wanted, axis=-1).max() < 0.999  # neither silent nor saturated
    close(found.capsules, wanted, 1e-6, "capsules")
    close(net.reconstruct(found.capsules), draws(wanted), 1e-6, "drawings")
    return model


# --------------------------------------------------------------------------------------------------------- families


@pytest.mark.parametrize("write", [strangers.keras_2, strangers.keras_3, strangers.keras_archive])
def test_guo_for_keras(write: Callable[..., Path], tmp_path: Path) -> None:
    network = strangers.guo_keras()
    model = same(write(tmp_path / "trained_model.h5", network[0]), network)
    assert model.spec.input == (2, 12, 12)
    assert model.spec.layers[1] == PrimaryCaps(2, 4, 3, stride=2)
    assert model.spec.decoder == Decoder((7, 9))
    assert model.provenance["imported"]["by"] == "Xifeng Guo's CapsNet for Keras"
    assert model.provenance["imported"]["file"] == "trained_model.h5"


def test_a_whole_model_of_keras_2(tmp_path: Path) -> None:
    network = strangers.guo_keras()
    same(strangers.keras_2(tmp_path / "model.h5", network[0], "model_weights"), network)


def test_other_sizes_and_classes_than_guos(tmp_path: Path) -> None:
    network = strangers.guo_keras((3, 15, 15), classes=7)
    assert same(strangers.keras_2(tmp_path / "a.h5", network[0]), network).spec.classes == 7
    network = strangers.guo_keras((1, 9, 14))
    path = strangers.keras_2(tmp_path / "b.h5", network[0])
    with pytest.raises(ModelFileError, match=r"--input 1,9,14 or 1,14,9 would fit"):
        convert(path)
    assert same(path, network, input=(1, 9, 14)).spec.input == (1, 9, 14)
    with pytest.raises(ModelFileError, match=r"images of \(1, 20, 20\) do not make the 30 capsules"):
        convert(path, input=(1, 20, 20))


def test_without_a_decoder_the_size_may_be_open(tmp_path: Path) -> None:
    arrays = {name: array for name, array in GUO.items() if not name.startswith("decoder")}
    path = strangers.keras_2(tmp_path / "a.h5", arrays)
    with pytest.raises(ModelFileError, match=r"--input 2,11,11 or 2,12,12 would fit"):
        convert(path)
    assert convert(path, input=(2, 12, 12)).spec.decoder is None


def test_guo_for_pytorch(tmp_path: Path) -> None:
    network = strangers.guo_pytorch()
    model = same(strangers.pytorch(tmp_path / "a.pt", network[0]), network, input=(2, 9, 11))
    assert model.spec.layers[2] == FlatCaps(8)
    with pytest.raises(ModelFileError, match=r"--input 2,9,11 or 2,11,9 would fit"):
        convert(tmp_path / "a.pt")


def test_gram_ai(tmp_path: Path) -> None:
    network = strangers.gram_ai()
    model = same(strangers.pytorch(tmp_path / "epoch_1.pt", network[0]), network)
    last = model.spec.layers[-1]
    assert isinstance(last, DenseCaps)
    assert last.routing == DynamicRouting(over="inputs")
    assert "softmax of the lengths" in model.provenance["imported"]["notes"][0]


def test_the_original_capsnet_of_escvm(tmp_path: Path) -> None:
    network = strangers.escvm_original()
    for write in (strangers.keras_2, strangers.keras_3):
        model = same(write(tmp_path / "original_capsnet_MNIST.h5", network[0]), network)
    assert model.spec.layers[-1] == DenseCaps(3, 5)


@pytest.mark.parametrize("kind", ["mnist", "multimnist", "smallnorb"])
def test_efficient_capsnet(kind: str, tmp_path: Path) -> None:
    network = strangers.efficient(kind)
    for write in (strangers.keras_2, strangers.keras_3):
        model = same(write(tmp_path / "a.h5", network[0]), network)
    rows = {row.kind: row.layer for row in model.spec.rows}
    assert rows["PrimaryCaps"].groups == 12
    assert rows["DenseCaps"] == DenseCaps(2, 5, SelfAttention(), bias=False)
    assert ("standardised" in str(model.provenance)) == (kind == "smallnorb") == ("InstanceNorm" in rows)


def test_efficient_capsnet_alone(tmp_path: Path) -> None:
    arrays, capsules, _ = strangers.efficient("mnist")
    name = "Efficient_CapsNet/"
    alone = {each.removeprefix(name): array for each, array in arrays.items() if each.startswith(name)}
    for write in (strangers.keras_2, strangers.keras_3):
        path = write(tmp_path / "a.h5", alone)
        with pytest.raises(ModelFileError, match="--input 1,13,13 or 1,14,14 or 1,19,19 or 1,20,20 or"):
            convert(path)
        model = convert(path, input=(1, 14, 14))
        assert model.spec.decoder is None
        images = np.random.default_rng(0).random((2, 1, 14, 14))
        close(NUMPY.CapsNet(model.spec, model.params, dtype="float64")(images).capsules, capsules(images), 1e-6)


def test_heinsen(tmp_path: Path) -> None:
    arrays, capsules, _ = strangers.heinsen()
    path = strangers.pytorch(tmp_path / "a.pt", arrays)
    assert convert(path).spec.input == (2, 96, 96)
    model = convert(path, input=(2, 9, 8))
    assert (model.spec.classes, model.provenance["imported"]["notes"]) == (3, [])
    images = np.random.default_rng(0).random((3, 2, 9, 8))
    found, wanted = NUMPY.CapsNet(model.spec, model.params, dtype="float64")(images), capsules(images)
    close(found.capsules, wanted[:, :, :16], 1e-6)
    close(found.scores, wanted[:, :, 16], 1e-6)
    assert convert(path, iterations=2).spec.layers[-1].routing.iterations == 2


def test_heinsens_heads(tmp_path: Path) -> None:
    arrays, scores, _ = strangers.heinsen_vectors()
    path = strangers.pytorch(tmp_path / "a.state_dict", arrays)
    assert convert(path).spec.input == (12, 1, 197)
    assert "any number of positions" in str(convert(path).provenance)
    model = convert(path, input=(12, 1, 7))
    assert (model.spec.classes, model.provenance["imported"]["notes"]) == (3, [])
    assert model.spec.parameter_count == sum(a.size for name, a in arrays.items() if "CONST" not in name)
    states = np.random.default_rng(0).random((3, 7, 3, 4))
    images = states.transpose(0, 2, 3, 1).reshape(3, 12, 1, 7)  # depth by depth, the numbers of every position
    found = NUMPY.CapsNet(model.spec, model.params, dtype="float64")(images)
    close(found.scores, scores(states), 1e-6)
    assert convert(path, iterations=1).spec.capsules[-1].routing.iterations == 1
    with pytest.raises(ModelFileError, match="have 11 channels; the weights are for 3·4 of them"):
        convert(path, input=(11, 1, 7))


def test_iterations_are_told(tmp_path: Path) -> None:
    path = strangers.pytorch(tmp_path / "a.pt", strangers.gram_ai()[0])
    last = convert(path, iterations=2, classes=["a", "b", "c"])
    assert last.spec.layers[-1] == DenseCaps(3, 5, DynamicRouting(2, over="inputs"), bias=False)
    assert last.classes == ("a", "b", "c")


@pytest.mark.parametrize("format", ["npz", "safetensors", "wrapped", "parallel", "legacy", "half"])
def test_a_familys_arrays_in_any_format(format: str, tmp_path: Path) -> None:
    network = strangers.gram_ai()
    arrays, path = network[0], tmp_path / "file"
    if format == "npz":
        with open(path, "wb") as file:
            np.savez(file, **arrays)
    elif format == "safetensors":
        save_file(arrays, path)
    elif format == "wrapped":
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        torch.save({"epoch": 3, "state_dict": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, path)
    elif format == "parallel":
        strangers.pytorch(path, {f"module.{name}": array for name, array in arrays.items()})
    elif format == "legacy":
        strangers.pytorch(path, arrays, _use_new_zipfile_serialization=False)
    else:
        state = {name: torch.from_numpy(array).bfloat16() for name, array in arrays.items()}
        torch.save(state, path)
        for name, array in state.items():
            arrays[name][...] = array.float().numpy()
    same(path, network)


def test_an_import_is_a_model_like_any_other(tmp_path: Path) -> None:
    model = convert(strangers.pytorch(tmp_path / "a.pt", strangers.guo_pytorch()[0]), input=(2, 9, 11))
    modelfile.save(tmp_path / "b.safetensors", model)
    read = modelfile.read(tmp_path / "b.safetensors")
    assert (read.spec, read.provenance) == (model.spec, model.provenance)
    close(read.params["capsules.0.weight"], model.params["capsules.0.weight"], 0)


def test_the_axis_of_the_softmax_matters(tmp_path: Path) -> None:
    model = convert(strangers.pytorch(tmp_path / "a.pt", strangers.gram_ai()[0]))
    images = np.random.default_rng(0).random((2, *model.spec.input), dtype=np.float32)
    other = model.spec.replace(capsules=(DenseCaps(3, 5, bias=False),))
    found = [NUMPY.CapsNet(spec, model.params)(images).capsules for spec in (model.spec, other)]
    assert np.abs(found[0] - found[1]).max() > 0.1


# ------------------------------------------------------------------------------------------------ spec and mapping


def theirs() -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, np.ndarray]]:
    """TINY in a layout of no family: arrays, the mapping, and what it must give."""
    params = random_params(TINY, dtype="float32")
    arrays = {
        "a/kernel": params["stem.0.weight"].transpose(2, 3, 1, 0),
        "a/bias": params["stem.0.bias"],
        "b": params["primary.weight"].reshape(4, -1) * 4,
        "primary.bias": params["primary.bias"],
        "rows": params["capsules.0.weight"].reshape(2, 4, 3, 2, 2).swapaxes(0, 1).reshape(8, 3, 2, 2),
        "extra": np.ones(7, "f4"),
    }
    mapping = {
        "a/kernel": {"to": "stem.0.weight", "transpose": [3, 2, 0, 1]},
        "a/bias": "stem.0.bias",
        "b": {"to": "primary.weight", "scale": 0.25, "reshape": [4, 3, 2, -1]},
        "rows": {"to": "capsules.0.weight", "last_first": 2},
        "extra": None,
    }
    return arrays, mapping, params | {"capsules.0.bias": np.zeros((3, 2), "f4")}


def written(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return path


def test_a_spec_and_a_mapping(tmp_path: Path) -> None:
    arrays, mapping, params = theirs()
    model = convert(written(tmp_path / "a", arrays), TINY, mapping)
    assert model.spec == TINY
    for name, array in params.items():
        close(model.params[name], array, 0, name)
    assert model.provenance["imported"]["notes"] == ["capsules.0.bias is 0: the file has nothing for it"]


def test_what_a_norm_lacks_is_neutral(tmp_path: Path) -> None:
    spec = CapsNetSpec((1, 4, 4), (Conv(2, 2), BatchNorm(), PrimaryCaps(1, 2, 3), DenseCaps(2, 2)), decoder=None)
    params = random_params(spec, dtype="float32")
    gone = {"stem.1.weight", "primary.bias"}
    model = convert(written(tmp_path / "a", {n: a for n, a in params.items() if n not in gone}), spec)
    assert model.params["stem.1.weight"].tolist() == [1, 1]
    assert model.params["primary.bias"].tolist() == [0, 0]
    with pytest.raises(ModelFileError, match=r"stem.1.mean \(2,\) has nothing"):
        convert(written(tmp_path / "b", {n: a for n, a in params.items() if n != "stem.1.mean"}), spec)


def test_what_is_left_over_is_told_with_what_would_fit(tmp_path: Path) -> None:
    arrays, mapping, _ = theirs()
    path = written(tmp_path / "a", arrays)
    with pytest.raises(ModelFileError) as error:
        convert(path, TINY, {"rows": "capsules.0.weight"})
    lines = str(error.value).splitlines()[1:]
    assert [line.strip() for line in lines] == [
        'stem.0.weight (3, 1, 2, 2) has nothing; nearest is a/kernel (2, 2, 1, 3): "transpose": [3, 2, 0, 1] would fit',
        "stem.0.bias (3,) has nothing; nearest is a/bias (3,), which fits as it is",
        'primary.weight (4, 3, 2, 2) has nothing; nearest is b (4, 12): "reshape": [4, 3, 2, 2] would fit',
        "capsules.0.bias (3, 2) has nothing; nearest is extra (7,)",
        "a/bias (3,) is left over; null in the mapping leaves it out",
        "a/kernel (2, 2, 1, 3) is left over; null in the mapping leaves it out",
        "b (4, 12) is left over; null in the mapping leaves it out",
        "extra (7,) is left over; null in the mapping leaves it out",
    ]
    wrong = mapping | {"a/kernel": "stem.0.weight"}
    with pytest.raises(ModelFileError, match=r'stem.0.weight is \(2, 2, 1, 3\), wanted \(3, 1, 2, 2\): "transpose"'):
        convert(path, TINY, wrong)


MAPPINGS: list[tuple[dict[str, Any], str]] = [
    ({"nobody": "stem.0.bias"}, r"the mapping names 'nobody', which is not in the file: a/bias \(3,\)"),
    ({"a/bias": "stem.9.bias"}, r"a/bias is mapped to 'stem.9.bias'; the spec has stem.0.weight"),
    (
        {"a/bias": "stem.0.bias", "extra": "stem.0.bias"},
        r"'stem.0.bias' is mapped to twice, the second time by 'extra'",
    ),
    ({"a/bias": 3}, r"a/bias: 3 is neither a name nor null nor"),
    ({"a/bias": {"to": "stem.0.bias", "flip": 1}}, r"neither a name nor null nor .* with transpose, reshape, scale"),
    ({"a/bias": {"transpose": [0]}}, "neither a name"),
    ({"a/bias": {"to": "stem.0.bias", "transpose": [1, 0]}}, r"transpose \[1, 0\] of \(3,\) is not possible"),
    ({"a/bias": {"to": "stem.0.bias", "transpose": "x"}}, "transpose 'x' of"),
    ({"a/bias": {"to": "stem.0.bias", "reshape": [10**30]}}, "is not possible"),
    ({"a/bias": {"to": "stem.0.bias", "reshape": {}}}, "is not possible"),
    ({"a/bias": {"to": "stem.0.bias", "scale": [1]}}, "is not possible"),
    ({"a/bias": {"to": "stem.0.bias", "scale": 10**400}}, "is not possible"),
    ({"a/bias": {"to": "stem.0.bias", "scale": 1e300}}, "is not possible"),
    ({"a/bias": {"to": "stem.0.bias", "scale": float("nan")}}, "it is not finite"),
    ({"a/bias": {"to": "stem.0.bias", "scale": float("inf")}}, "it is not finite"),
    ({"a/bias": {"to": "stem.0.bias", "last_first": 0}}, "is not possible"),
    ({"a/bias": {"to": "stem.0.bias", "last_first": 2}}, "is not possible"),
]


@pytest.mark.parametrize(("change", "message"), MAPPINGS)
def test_a_mapping_that_is_wrong_says_so(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    arrays, mapping, _ = theirs()
    with pytest.raises(ModelFileError, match=message):
        convert(written(tmp_path / "a", arrays), TINY, mapping | change)


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, "3", b"\xff"])
def test_a_mapping_that_is_no_json(text: Any) -> None:
    with pytest.raises(ModelFileError, match="the mapping"):
        read_mapping(text)


def test_what_goes_together(tmp_path: Path) -> None:
    path = written(tmp_path / "a", theirs()[0])
    with pytest.raises(ModelFileError, match=r"of no family that capscore knows \(Xifeng Guo.*a/kernel \(2, 2, 1, 3\)"):
        convert(path)
    with pytest.raises(ModelFileError, match="a mapping needs a spec"):
        convert(path, mapping={})
    hints: list[dict[str, Any]] = [{"input": (1, 5, 5)}, {"iterations": 2}]
    for hint in hints:
        with pytest.raises(ModelFileError, match="the spec says the input and the iterations"):
            convert(path, TINY, **hint)


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        ({"iterations": 0}, "iterations must be a whole number from 1"),
        ({"iterations": 10**9}, "iterations must be a whole number from 1"),
        ({"input": (1, 28)}, r"input must be \(channels, height, width\)"),
        ({"input": 28}, "input must be whole numbers"),
        ({"input": (1, 0, 28)}, "input must be whole numbers"),
        ({"input": (10**6, 10**6, 10**6)}, "do not make the 48 capsules"),
        ({"classes": ["a"]}, "classes must be 3 names"),
    ],
)
def test_hints_of_strangers(hint: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = strangers.pytorch(tmp_path / "a.pt", strangers.gram_ai()[0])
    with pytest.raises(ModelFileError, match=message):
        convert(path, **hint)


def test_self_attention_has_no_iterations(tmp_path: Path) -> None:
    path = strangers.keras_2(tmp_path / "a.h5", strangers.efficient("mnist")[0])
    with pytest.raises(ModelFileError, match="has no iterations; leave them out"):
        convert(path, iterations=3)


def test_a_wrapper_is_taken_off_only_where_all_wear_it(tmp_path: Path) -> None:
    strangers.pytorch(tmp_path / "a.pt", {"module.a": np.ones(1, "f4"), "a": np.zeros(1, "f4")})
    assert [*read_tensors(tmp_path / "a.pt")] == ["module.a", "a"]
    strangers.pytorch(
        tmp_path / "a.pt", {"module._orig_mod.a": np.ones(1, "f4"), "module._orig_mod.b": np.zeros(1, "f4")}
    )
    assert [*read_tensors(tmp_path / "a.pt")] == ["a", "b"]


# ---------------------------------------------------------------------------------------------------- wrong shapes


@pytest.mark.parametrize("name", list(GUO))
def test_any_array_of_a_wrong_shape_is_refused(name: str, tmp_path: Path) -> None:
    wrong = GUO | {name: np.zeros([n + 1 for n in GUO[name].shape], "f4")}
    with pytest.raises((ModelFileError, ShapeError)):
        convert(strangers.keras_2(tmp_path / "a.h5", wrong))


@pytest.mark.parametrize("family", [strangers.guo_pytorch, strangers.gram_ai])
def test_any_array_missing_misshapen_or_nan_is_refused(family: Any, tmp_path: Path) -> None:
    arrays = family()[0]
    for name, array in arrays.items():
        others = {other: a for other, a in arrays.items() if other != name}
        for changed in ({}, {name: array[..., None]}, {name: array.ravel()[:1]}, {name: np.full_like(array, np.nan)}):
            with pytest.raises(ModelFileError):
                convert(
                    written(tmp_path / "a", others | changed),
                    input=(2, 9, 11) if "digitcaps.weight" in arrays else None,
                )


# ------------------------------------------------------------------------------------------------------ hostile files


class Evil:
    """Would run a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


def test_code_in_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for how in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"state_dict": {"a": torch.ones(2)}, "args": Evil()}, "a.pt", **how)
        with pytest.raises(
            ModelFileError, match=r"it holds posix\.system, no tensor.*save model\.state_dict\(\) alone"
        ):
            read_tensors("a.pt")
    Path("b.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ModelFileError):
        read_tensors("b.pt")
    torch.save(torch.nn.Linear(2, 2), "c.pt")
    with pytest.raises(ModelFileError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_tensors("c.pt")
    assert not Path("hacked").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1, 2], "it holds 'list'"),
        (torch.ones(2) if torch else None, "it holds 'Tensor'"),
        ({"g": {"a": torch.ones(1)}, "d": {"b": torch.ones(1)}}, "it holds 'g', 'd', and no network by itself"),
        ({"a": torch.eye(3).to_sparse()}, "is torch.sparse_coo"),
        ({"a": torch.ones(1).expand(1 << 31)}, r"needs 8,589,934,592 bytes of memory.*CAPSCORE_MEMORY"),
        ({"a": torch.ones(2, device="meta")}, "on meta"),
        ({}, "it holds no arrays"),
    ],
)
def test_other_things_of_pytorch(state: Any, message: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ModelFileError, match=message):
        read_tensors(tmp_path / "a.pt")


def hdf5(path: Path, write: Callable[[Any], Any]) -> Path:
    with h5py.File(path, "w") as file:
        write(file)
    return path


def _loop(file: Any) -> None:
    group = file.create_group("a")
    group["b"] = group


def _virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "a", (2,))
    file.create_virtual_dataset("a", layout)


HDF5: list[tuple[Callable[[Any], Any], str]] = [
    (lambda f: f.__setitem__("a", h5py.ExternalLink("/etc/passwd", "/")), "a is a link to elsewhere"),
    (lambda f: f.__setitem__("a", h5py.SoftLink("/nowhere")), "a is a link to elsewhere"),
    (lambda f: f.create_dataset("a", (4,), "u1", external=[("/etc/passwd", 0, 4)]), "its numbers in another file"),
    (_virtual, "a has its numbers in another file"),
    (_loop, "groups within groups beyond all need"),
    (lambda f: f.create_dataset("a", (1 << 40,), "f4"), r"a of shape \(1099511627776,\) needs .* CAPSCORE_MEMORY"),
    (lambda f: f.create_dataset("a", (1 << 40,), "f4", chunks=(1 << 20,), compression="gzip"), "CAPSCORE_MEMORY"),
    (lambda f: f.create_dataset("a", (1 << 20,), "f4"), "declares 4,194,304 bytes that it does not hold"),
    (lambda f: f.create_dataset("a", data=np.array([b"x"])), "a is no array of numbers"),
    (lambda f: f.create_dataset("a", data=h5py.Empty("f4")), "a is no array of numbers"),
    (lambda f: f.create_dataset("a", data=np.array([np.nan, 1])), "a holds NaN or infinity"),
    (lambda f: f.create_dataset("a", data=np.zeros((3, 0))), r"a of shape \(3, 0\) is empty"),
    (lambda f: f.create_group("a"), "it holds no arrays"),
    (lambda f: f.attrs.__setitem__("layer_names", np.zeros((2, 2))), "layer_names is float64 .*, no list of names"),
    (lambda f: f.attrs.__setitem__("layer_names", ["a" * 600] * 3000), "names that may be as long as the file"),
    (lambda f: f.create_dataset("a", (1 << 40, 1 << 40), "f4", chunks=(1, 1)), "CAPSCORE_MEMORY"),
    (lambda f: f.attrs.__setitem__("layer_names", np.array([b"conv1"])), "link to elsewhere"),
    (lambda f: f.attrs.__setitem__("layer_names", np.array([b"/"])), "cannot read"),
]


@pytest.mark.parametrize(("write", "message"), HDF5)
def test_hostile_hdf5(write: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5", write)
    with peak_below(64 << 20), pytest.raises(ModelFileError, match=message):
        read_tensors(path)


def test_a_link_within_the_names_of_keras_2_is_refused(tmp_path: Path) -> None:
    path = strangers.keras_2(tmp_path / "a.h5", GUO)
    with h5py.File(path, "r+") as file:
        del file["conv1/conv1"]
        file["conv1/conv1"] = h5py.ExternalLink("b.h5", "/conv1/conv1")
    strangers.keras_2(tmp_path / "b.h5", GUO)
    with pytest.raises(ModelFileError, match="conv1 is a link to elsewhere"):
        convert(path)


def bomb(name: str, size: int, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, bytes(size))
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["model.weights.h5", "a.npy", "x/data.pkl"])
def test_zip_bombs(name: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bomb(name, 64 << 20))
    with peak_below(8 << 20), pytest.raises(ModelFileError, match="CAPSCORE_MEMORY"):
        read_tensors(tmp_path / "a", memory="16M")
    (tmp_path / "a").write_bytes(bomb(name, 1000, zipfile.ZIP_BZIP2))
    with pytest.raises(ModelFileError, match="packed in an unusual way"):
        read_tensors(tmp_path / "a")


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"PK\3\4" + bytes(50), b"\x89HDF\r\n\x1a\n", b"hello, world", b"\x80\2."]
)
def test_what_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ModelFileError, match="cannot read"):
        read_tensors(tmp_path / "a")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="there is no such file"):
        read_tensors(tmp_path / "a")
    with pytest.raises(ModelFileError, match="it is a folder"):
        read_tensors(tmp_path)
    NUMPY.CapsNet(small_spec()).save(tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError, match="a model of capscore's already"):
        read_tensors(tmp_path / "m.safetensors")
    save_file({"a": np.ones(3, "f4")}, tmp_path / "b")
    with pytest.raises(ModelFileError, match="CAPSCORE_MEMORY"):
        read_tensors(tmp_path / "b", memory=50)


@pytest.mark.parametrize("kind", ["h5", "keras", "pt", "legacy", "npz", "safetensors"])
def test_a_truncated_file_is_refused(kind: str, tmp_path: Path) -> None:
    arrays, path = strangers.gram_ai()[0], tmp_path / "a"
    if kind in ("h5", "keras"):
        arrays = GUO
    write: dict[str, Callable[[], Any]] = {
        "h5": lambda: strangers.keras_2(path, arrays),
        "keras": lambda: strangers.keras_archive(path, arrays),
        "pt": lambda: strangers.pytorch(path, arrays),
        "legacy": lambda: strangers.pytorch(path, arrays, _use_new_zipfile_serialization=False),
        "npz": lambda: path.write_bytes(_npz(arrays)),
        "safetensors": lambda: save_file(arrays, path),
    }
    write[kind]()
    whole = path.read_bytes()
    assert read_tensors(path)
    for share in np.linspace(0, 1, 20, endpoint=False):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ModelFileError):
            read_tensors(path)


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------ command line


def run(*args: Any) -> Any:
    return CliRunner().invoke(app, ["import", *map(str, args)], catch_exceptions=True)


def test_the_command_writes_a_model_and_says_what_it_is(tmp_path: Path) -> None:
    path = strangers.pytorch(tmp_path / "epoch_1.pt", strangers.gram_ai()[0])
    done = run(path, "--iterations", 2, "--classes", "a, b,c")
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "epoch_1.safetensors: gram-ai's CapsNet for PyTorch, 1×12×12 images, 3 classes," in said
    assert "note: their code returns the softmax" in said
    model = modelfile.read(tmp_path / "epoch_1.safetensors")
    assert model.classes == ("a", "b", "c")
    assert model.spec.layers[-1] == DenseCaps(3, 5, DynamicRouting(2, over="inputs"), bias=False)


def test_the_command_takes_a_spec_and_a_mapping(tmp_path: Path) -> None:
    arrays, mapping, params = theirs()
    path = written(tmp_path / "a.safetensors", arrays)
    (tmp_path / "spec.json").write_text(TINY.to_json())
    (tmp_path / "names.json").write_text(json.dumps(mapping))
    options = "--spec", tmp_path / "spec.json", "--mapping", tmp_path / "names.json"
    assert "would be written over" in str(run(path, *options).exception)
    assert run(path, *options, "--out", tmp_path / "b.safetensors").exit_code == 0
    close(NUMPY.load(tmp_path / "b.safetensors").params["primary.weight"], params["primary.weight"], FLOAT32)
    assert "cannot read" in str(
        run(path, "--spec", tmp_path / "spec.json", "--mapping", "no.json", "--out", "b").exception
    )


def test_the_command_takes_the_size_of_images(tmp_path: Path) -> None:
    path = strangers.pytorch(tmp_path / "a.pt", strangers.guo_pytorch()[0])
    assert "--input 2,9,11 or 2,11,9" in str(run(path).exception)
    assert "--input takes channels,height,width" in str(run(path, "--input", "9x11").exception)
    assert run(path, "--input", "2,9,11").exit_code == 0
    assert backend("torch").load(tmp_path / "a.safetensors").spec.input == (2, 9, 11)
