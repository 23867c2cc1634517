"""Export options: what the graph computes in every precision, in three engines, and that a wrong one is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import EXPORTED, FLOAT32, backend, close, random_images, random_params, small_spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capscore import PRESETS, CapsNetSpec, Conv, Decoder, DenseCaps, DynamicRouting, MaxPool, PrimaryCaps
from capscore.errors import CapscoreError, ModelFileError, ShapeError
from capscore.fast.streaming import VOTES_BYTES
from capscore.layers import Activation, AsCaps, BatchNorm, Concat, Concurrent, ConvCaps, ConvCaps3D, Residual, Upsample
from capscore.net import primary_capsules
from capscore.routing import InvertedAttention

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from capscore.export.places import places  # noqa: E402

NUMPY = backend("numpy")
SPEC = small_spec()


def network(spec: CapsNetSpec = SPEC) -> Any:
    return NUMPY.CapsNet(spec, random_params(spec, dtype="float32"))


def run(path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    """Run a file in ONNX Runtime, without anything of capscore."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))


def expected(net: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    truth = NUMPY.CapsNet(net.spec, net.params, dtype="float64")
    out = truth(x, couplings=True)
    found = {"lengths": out.lengths, "capsules": out.capsules, "reconstruction": truth.reconstruct(out.capsules)}
    return found | {f"couplings.{i}.{r}": c for i, cs in enumerate(out.couplings) for r, c in enumerate(cs)}


def test_the_report_tells_the_size_and_the_differences(onnx_export: ModuleType, tmp_path: Path) -> None:
    report = onnx_export.export(network(), tmp_path / "m.onnx")
    assert report.path == tmp_path / "m.onnx"
    assert report.bytes == report.path.stat().st_size
    assert set(report.differences) == {"lengths", "capsules", "reconstruction"}
    assert max(report.differences.values()) < FLOAT32
    about = json.loads(onnx.load(report.path).metadata_props[0].value)
    told = about["provenance"]["export"]
    assert told["precision"] == "fp32"
    assert told["largest_differences"] == {k: float(f"{v:.0e}") for k, v in report.differences.items()}
    assert about["preprocessing"] == {
        "color": None, "height": 7, "width": 6, "resize": "bilinear", "scale": 1 / 255,
    }  # fmt: skip
    assert onnx_export.export(network(), tmp_path / "n.onnx", verify=False).differences is None


PAPER = {"mnist", "multimnist", "cifar10", "smallnorb", "svhn", "small"}
MANY = 100_000_000  # multiply-adds of an image: half a minute for the proof
PROVEN = {n for n in PRESETS if n in PAPER or PRESETS[n].multiply_adds < MANY} - {"em-smallnorb"}  # as "em-small"


@pytest.mark.parametrize("name", sorted(PROVEN))
def test_presets_within_the_tolerance_of_float32(onnx_export: ModuleType, tmp_path: Path, name: str) -> None:
    """On black, white, noise and saturated images at batches 1, 2 and 7 of one file."""
    report = onnx_export.export(NUMPY.CapsNet(PRESETS[name]), tmp_path / "m.onnx")
    assert report.differences is not None
    if name in PAPER:  # of deep networks and EM, which amplify it, the proof takes four times what rounding costs NumPy
        assert max(report.differences.values()) < FLOAT32


ONCE = InvertedAttention(iterations=1)
STEM = Conv(4, kernel=3), PrimaryCaps(2, dim=4, kernel=2)
ROUTED = {  # layers after the stem: the names of all couplings that are not uniform
    "a grid": (
        (ConvCaps(3, 4, kernel=2), DenseCaps(3)),
        {"couplings.0.1", "couplings.0.2", "couplings.1.1", "couplings.1.2"},
    ),
    "in 3-D": ((ConvCaps3D(3, 4, kernel=2, routing=DynamicRouting(2)), DenseCaps(3, routing=DynamicRouting(1))),
               {"couplings.0.1"}),
    "at the same time": (
        (Concurrent((ConvCaps(3, 4, 2, routing=ONCE), DenseCaps(4, 4, routing=ONCE), DenseCaps(3, 4, ONCE)), 3),),
        {"couplings.0.layers.1.1", "couplings.0.layers.2.1", "couplings.0.layers.2.2"},
    ),
    "in two ways": (
        (Concat((ConvCaps3D(3, 4, kernel=2),), (ConvCaps(2, 4, kernel=2),)), DenseCaps(3, routing=DynamicRouting(1))),
        {f"couplings.0.{way}.0.{r}" for way in ("layers", "shortcut") for r in (1, 2)},
    ),
    "in a block of a block": (
        (Residual((DenseCaps(3, 4), Residual((DenseCaps(3, 4),), activation="none")), (DenseCaps(3, 4),), "none"),),
        {f"couplings.0.{way}.{r}" for way in ("layers.0", "layers.1.layers.0", "shortcut.0") for r in (1, 2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUTED)
def test_every_layer_that_routes_tells_its_couplings(
    onnx_export: ModuleType, runtime: ModuleType, tmp_path: Path, name: str
) -> None:
    """Of grids, and of layers within layers: in the proof, in the file, and in a session in the network's order."""
    layers, names = ROUTED[name]
    spec, rng = CapsNetSpec((2, 9, 8), (*STEM, *layers), decoder=None), np.random.default_rng(0)
    params = {name: rng.normal(0, 0.5, shape).astype("float32") for name, shape in spec.parameters.items()}
    net = NUMPY.CapsNet(spec, params)
    report = onnx_export.export(net, tmp_path / "m.onnx", outputs=["lengths", "couplings"])
    assert set(report.differences) == {"lengths"} | names
    x = random_images(net.spec, 3, dtype="float32")
    found, wanted = runtime.Session(tmp_path / "m.onnx")(x).couplings, net(x, couplings=True).couplings
    assert len(found) == len(net.spec.routed)
    for layer, of_net in zip(found, wanted, strict=True):
        for c, expected in zip(layer, of_net[1:], strict=True):
            close(c, expected, FLOAT32)
            assert np.ptp(expected) > 1e-3  # something was routed


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(outputs=st.sets(st.sampled_from(["lengths", "capsules", "reconstruction", "couplings"]), min_size=1))
def test_only_what_is_asked_for_is_computed(onnx_export: ModuleType, tmp_path: Path, outputs: set[str]) -> None:
    path = onnx_export.export(network(), tmp_path / "m.onnx", outputs=sorted(outputs), verify=False).path
    x = random_images(SPEC, 3, dtype="float32")
    found, wanted = run(path, x), expected(network(), x)
    couplings = {"couplings.0.1", "couplings.1.1", "couplings.1.2"} if "couplings" in outputs else set()
    assert set(found) == outputs - {"couplings"} | couplings
    for name in found:
        close(found[name], wanted[name], FLOAT32, name)
    graph = onnx.load(path).graph
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    assert {name for node in graph.node for name in node.output} <= used
    assert {tensor.name for tensor in graph.initializer} <= used
    if "reconstruction" not in outputs:
        assert not [tensor.name for tensor in graph.initializer if tensor.name.startswith("decoder")]


def test_the_steps_of_every_routing(onnx_export: ModuleType, tmp_path: Path) -> None:
    """How present the capsules are that come in, and how long those are that each iteration makes."""
    report = onnx_export.export(network(), tmp_path / "m.onnx", outputs=["lengths", "steps"])
    x = random_images(SPEC, 3, dtype="float32")
    found = run(report.path, x)
    steps = {0: 2, 1: 3}
    assert set(found) == {"lengths", "inputs.0", "inputs.1"} | {
        f"lengths.{i}.{r}" for i in steps for r in range(steps[i])
    }
    close(found["lengths.1.2"], found["lengths"], 0)
    close(found["inputs.1"], found["lengths.0.1"], 0)
    given = primary_capsules(NUMPY, SPEC, network().params, x)
    close(found["inputs.0"], np.linalg.norm(given, axis=-1), FLOAT32)
    for r, iterations in enumerate((1, 2)):  # fewer iterations end where more of them have been
        layers = (*SPEC.capsules[:-1], replace(SPEC.capsules[-1], routing=DynamicRouting(iterations)))
        short = NUMPY.CapsNet(replace(SPEC, capsules=layers), network().params)
        close(found[f"lengths.1.{r}"], short(x).lengths, FLOAT32)
    assert max(np.abs(found["lengths.1.0"] - found["lengths"]).ravel()) > 1e-3


def test_steps_of_capsules_with_activations(onnx_export: ModuleType, tmp_path: Path) -> None:
    """Their presence is the activation, and how long their poses are says nothing; windows tell couplings alone."""
    net = NUMPY.CapsNet(PRESETS["small-em"])
    report = onnx_export.export(net, tmp_path / "m.onnx", outputs=["scores", "couplings", "steps"])
    found = run(report.path, random_images(net.spec, 2, dtype="float32"))
    assert set(found) == {"scores", "inputs.1"} | {f"couplings.{i}.{r}" for i in range(2) for r in range(2)}
    assert found["inputs.1"].shape == (2, net.spec.rows[-1].input.dims[0])
    assert 0 <= found["inputs.1"].min() < found["inputs.1"].max() <= 1


def test_where_the_capsules_lie_that_a_routing_takes_in() -> None:
    """A capsule sees what its `first` and `step` say: nothing else of the image moves it."""
    layers = Conv(4, 5, 2, padding=1), MaxPool(2), PrimaryCaps(2, 4, 3), DenseCaps(3)
    spec = CapsNetSpec((1, 30, 26), layers, decoder=None)
    told = places(spec, ["lengths", "inputs.0", "lengths.0.1"])
    assert told == {"inputs.0": {"grid": (2, 5, 4), "first": [6, 6], "step": [4, 4]}}
    params = random_params(spec, dtype="float64")
    black = primary_capsules(NUMPY, spec, params, np.zeros((1, *spec.input)))
    seen = {(y, x): np.zeros(2) for y in range(5) for x in range(4)}
    count = dict.fromkeys(seen, 0)
    for down in range(30):
        for across in range(26):
            image = np.zeros((1, *spec.input))
            image[0, 0, down, across] = 50
            moved = np.abs(primary_capsules(NUMPY, spec, params, image) - black)[0].sum(-1).reshape(2, 5, 4).sum(0) > 0
            for place in zip(*np.nonzero(moved), strict=True):
                seen[place] += (down, across)
                count[place] += 1
    y, x = 2, 1  # whose window lies within the image
    assert seen[y, x] / count[y, x] == pytest.approx((6 + 4 * y, 6 + 4 * x), abs=1)


def test_capsules_behind_layers_of_other_kinds_are_spread_evenly() -> None:
    spec = CapsNetSpec((1, 8, 12), (Conv(4, 3), Upsample(2), PrimaryCaps(2, 4, 5, 2), DenseCaps(3)), decoder=None)
    (told,) = places(spec, ["inputs.0"]).values()
    assert told == {"grid": (2, 4, 8), "first": [0.5, 0.25], "step": [2, 1.5]}


def test_half_precision_keeps_scalars_that_it_cannot_tell(onnx_export: ModuleType, tmp_path: Path) -> None:
    """GELU multiplies by 71,355, which float16 has no number for."""
    layers = Conv(4, 3, activation="none"), Activation("gelu"), PrimaryCaps(2, 4, 3), DenseCaps(3, 4)
    net = backend("numpy").CapsNet(CapsNetSpec((2, 13, 11), layers, None), seed=0)
    report = onnx_export.export(net, tmp_path / "m.onnx", precision="fp16")
    assert max(report.differences.values()) < EXPORTED["fp16"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-weights"])
def test_calibration_images_of_another_shape_are_refused(
    onnx_export: ModuleType, tmp_path: Path, precision: str
) -> None:
    for shape in ((4, 3, 28, 28), (28, 28)):
        with pytest.raises(ShapeError, match="calibration images have shape"):
            onnx_export.export(network(), tmp_path / "m.onnx", precision=precision, calibration=np.zeros(shape, "f4"))


def test_calibration_images_with_nothing_to_see_are_refused(onnx_export: ModuleType, tmp_path: Path) -> None:
    blank = np.zeros((4, *SPEC.input), "f4")
    with pytest.raises(ShapeError, match="nothing but one value: they show int8 no range"):
        onnx_export.export(network(), tmp_path / "m.onnx", precision="int8", calibration=blank)


def test_half_precision_keeps_norms_and_softmax_in_float32(onnx_export: ModuleType, tmp_path: Path) -> None:
    report = onnx_export.export(network(), tmp_path / "m.onnx", precision="fp16")
    x = random_images(SPEC, 4, dtype="float32")
    found, wanted = run(report.path, x), expected(network(), x)
    assert max(report.differences.values()) < EXPORTED["fp16"]
    for name, array in found.items():
        assert array.dtype == np.float32
        close(array, wanted[name], EXPORTED["fp16"], name)
    graph = onnx.shape_inference.infer_shapes(onnx.load(report.path), strict_mode=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for node in graph.node:
        if node.op_type in ("Conv", "MatMul"):
            assert kinds[node.output[0]] == half, node.name
        if any(part in node.name for part in ("norm/", "softmax")) and node.op_type != "Cast":
            assert kinds[node.output[0]] == single, node.name
    for tensor in graph.initializer:
        if tensor.name.split(".folded")[0] in SPEC.parameters:
            assert tensor.data_type == half, tensor.name


def test_half_precision_says_which_parameter_is_too_large(onnx_export: ModuleType, tmp_path: Path) -> None:
    params = random_params(SPEC, dtype="float32")
    params["primary.weight"][0, 0, 0, 0] = 7e4
    with pytest.raises(CapscoreError, match=r"primary\.weight has values beyond 65504.*export it as fp32"):
        onnx_export.export(NUMPY.CapsNet(SPEC, params), tmp_path / "m.onnx", precision="fp16")


def test_int8_quantises_convolutions_and_decoder_per_channel(onnx_export: ModuleType, tmp_path: Path) -> None:
    spec = small_spec(decoder=Decoder((64, 64)))
    images = random_images(spec, 64, dtype="float32")
    report = onnx_export.export(network(spec), tmp_path / "m.onnx", precision="int8", calibration=images)
    found, wanted = run(report.path, images[:8]), expected(network(spec), images[:8])
    for name, array in found.items():
        close(array, wanted[name], EXPORTED["int8"], name)
    graph = onnx.load(report.path).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert stored["primary.weight_quantized"].dtype == np.int8
    assert stored["primary.weight_scale"].shape == (spec.parameters["primary.weight"][0],)
    assert stored["stem.0.weight"].dtype == np.float32  # the first sees the pixels
    assert stored["decoder.1.weight.folded_quantized"].dtype == np.int8
    assert not [node.name for node in graph.node if node.op_type == "QuantizeLinear" and "route" in node.name]
    assert stored["capsules.0.weight.folded_quantized"].dtype == np.int8
    assert stored["capsules.0.weight.folded_scale"].shape == (4, 5, 1)


def test_int8_rounds_behind_a_relu(onnx_export: ModuleType, tmp_path: Path) -> None:
    """Of a kernel that answers to hardly anything: before it, the range is that of all that it does not answer to."""
    spec = small_spec(stem=(Conv(4, 3, padding="same"), Conv(4, 3, padding="same")))
    params = random_params(spec, dtype="float32")
    params["stem.1.weight"], params["stem.1.bias"] = (
        params["stem.1.weight"] * np.float32(30),
        np.full(4, -30, "float32"),
    )
    net, images = NUMPY.CapsNet(spec, params), random_images(spec, 64, dtype="float32")
    report = onnx_export.export(net, tmp_path / "m.onnx", precision="int8", calibration=images)
    nodes = onnx.load(report.path).graph.node
    (rounded,) = (node for node in nodes if node.op_type == "QuantizeLinear" and node.input[0].startswith("stem.1"))
    assert not [node for node in nodes if node.op_type == "Relu" and node.input[0].startswith("stem.1")]
    assert rounded


@pytest.mark.parametrize(
    ("channels", "rounded"),
    [
        ((4, 8, 64), ["stem.2"]),
        ((4, 32, 32), ["stem.1", "stem.2"]),
        ((16, 16), ["stem.1"]),
        ((8,), ["stem.0"]),
    ],
    ids=str,
)
def test_int8_leaves_the_first_convolutions_where_that_costs_little(
    onnx_export: ModuleType, tmp_path: Path, channels: tuple[int, ...], rounded: list[str]
) -> None:
    """They may make a tenth of all products; of several convolutions, the first never is rounded."""
    stem = [Conv(count, 3, padding="same") for count in channels]
    spec = CapsNetSpec((1, 8, 8), (*stem, AsCaps(channels[-1] // 4, 4), DenseCaps(3, 4)), decoder=None)
    images = random_images(spec, 8, dtype="float32")
    net = NUMPY.CapsNet(spec, random_params(spec, dtype="float32"))
    onnx_export.export(net, tmp_path / "m.onnx", precision="int8", calibration=images, verify=False)
    graph = onnx.load(tmp_path / "m.onnx").graph
    weights = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    assert [name.split("/")[0].split(".weight")[0] for name in weights if "DequantizeLinear" in name] == rounded


def test_int8_of_a_decoder_that_draws_sharp_edges(onnx_export: ModuleType, tmp_path: Path) -> None:
    """As training makes them: small differences of the capsules then are large ones of pixels."""
    params = random_params(SPEC, dtype="float32")
    params["decoder.2.weight"] = params["decoder.2.weight"] * np.float32(15)
    images = random_images(SPEC, 64, dtype="float32")
    report = onnx_export.export(NUMPY.CapsNet(SPEC, params), tmp_path / "m", precision="int8", calibration=images)
    assert report.differences["capsules"] < EXPORTED["int8"]
    assert report.differences["reconstruction"] > 0.2


def test_int8_without_capsules_is_verified_as_well(onnx_export: ModuleType, tmp_path: Path) -> None:
    from capscore.export import check

    params = random_params(SPEC, dtype="float32")
    moved = params | {"decoder.2.bias": params["decoder.2.bias"] + np.float32(3)}
    how = {"outputs": ["reconstruction"], "verify": False}
    graphs = []
    for precision in ("int8", "fp32"):
        images = random_images(SPEC, 64, dtype="float32")
        onnx_export.export(
            NUMPY.CapsNet(SPEC, moved), tmp_path / "m.onnx", precision=precision, calibration=images, **how
        )
        graphs.append(onnx.load(tmp_path / "m.onnx"))
    with pytest.raises(ModelFileError, match="reconstruction differs"):
        check.check(NUMPY.CapsNet(SPEC, params), *graphs, "int8")
    assert check.check(NUMPY.CapsNet(SPEC, moved), *graphs, "int8")["reconstruction"] < 0.2


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_network_of_nan_is_not_exported(onnx_export: ModuleType, tmp_path: Path, precision: str) -> None:
    params = random_params(SPEC, dtype="float32")
    params["primary.weight"][0, 0, 0, 0] = np.nan
    images = random_images(SPEC, 64, dtype="float32")
    with pytest.raises(CapscoreError, match=r"primary\.weight holds NaN"):
        onnx_export.export(NUMPY.CapsNet(SPEC, params), tmp_path / "m", precision=precision, calibration=images)


def test_int8_needs_images_that_fit(onnx_export: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(CapscoreError, match="int8 needs calibration images"):
        onnx_export.export(network(), tmp_path / "m.onnx", precision="int8")
    with pytest.raises(ShapeError, match=r"calibration images have shape \[3, 1, 7, 6\]; wanted \[N, 2, 7, 6\]"):
        onnx_export.export(network(), tmp_path / "m.onnx", precision="int8", calibration=np.zeros((3, 1, 7, 6)))
    images = random_images(SPEC, 3)
    for some, batch, least in ((images, 5, 5), (images[:0], None, 1)):
        with pytest.raises(ShapeError, match=f"{len(some)} calibration images are too few: wanted at least {least}"):
            onnx_export.export(network(), tmp_path / "m.onnx", precision="int8", calibration=some, batch=batch)
    bare = NUMPY.CapsNet(CapsNetSpec((1, 4, 4), (AsCaps(1, 1), DenseCaps(3)), decoder=None))
    with pytest.raises(CapscoreError, match="of which this network has none: export it as int8-weights"):
        onnx_export.export(bare, tmp_path / "m.onnx", precision="int8", calibration=random_images(bare.spec, 3))
    with pytest.raises(ShapeError, match="calibration images hold NaN"):
        onnx_export.export(network(), tmp_path / "m.onnx", precision="int8", calibration=images * np.nan)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_same_options_give_the_same_bytes(onnx_export: ModuleType, tmp_path: Path, precision: str) -> None:
    images = random_images(SPEC, 64)
    content = []
    for name in ("a.onnx", "b.onnx"):
        onnx_export.export(network(), tmp_path / name, precision=precision, calibration=images)
        content.append((tmp_path / name).read_bytes())
    assert content[0] == content[1]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_bytes_as_images_and_a_fixed_batch(onnx_export: ModuleType, tmp_path: Path, precision: str) -> None:
    images = random_images(SPEC, 40)
    report = onnx_export.export(
        network(), tmp_path / "m.onnx", precision=precision, batch=4, byte_images=True, calibration=images
    )
    graph = onnx.load(report.path).graph
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [4, 2, 7, 6]
    x = np.random.default_rng(1).integers(0, 256, (4, 2, 7, 6), np.uint8)
    tolerance = EXPORTED[precision]
    for name, array in run(report.path, x).items():
        assert array.shape[0] == 4
        close(array, expected(network(), x / 255)[name], tolerance, name)


def test_numbers_for_each_channel_are_not_stored_as_int8(onnx_export: ModuleType, tmp_path: Path) -> None:
    """Of a normalisation whose factors differ by a thousand, as trained ones do: the small ones would become zero."""
    spec = small_spec().replace(layers=(Conv(4, 3, padding="same"), BatchNorm(), *small_spec().layers))
    params = random_params(spec, dtype="float32")
    factors = np.array([1e-3, 0.1, 1, 3], np.float32)
    params["stem.1.weight"], params["stem.1.variance"] = factors, np.ones(4, np.float32)
    params["stem.0.weight"] = params["stem.0.weight"] / factors[:, None, None, None]
    params["stem.0.bias"] = params["stem.0.bias"] / factors
    report = onnx_export.export(NUMPY.CapsNet(spec, params), tmp_path / "m.onnx", precision="int8-weights")
    narrowed = {x.name for x in onnx.load(report.path).graph.initializer if x.data_type == onnx.TensorProto.INT8}
    assert {name.split(".")[0] for name in narrowed} == {"stem", "primary", "capsules", "decoder"}
    assert not any(name.startswith("stem.1.") for name in narrowed)


def test_weights_of_few_numbers_are_not_stored_as_int8(
    onnx_export: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = sorted(p.size for p in network().params.values() if p.ndim > 1)
    monkeypatch.setattr("capscore.export.precision.FEW", sizes[-1])
    onnx_export.export(network(), tmp_path / "m.onnx", precision="int8-weights")
    stored = [x for x in onnx.load(tmp_path / "m.onnx").graph.initializer if x.data_type == onnx.TensorProto.INT8]
    assert [np.prod(x.dims) for x in stored] == [size for size in sizes if size == sizes[-1]]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8-weights"])
def test_the_decoder_alone(onnx_export: ModuleType, tmp_path: Path, precision: str) -> None:
    report = onnx_export.export_decoder(network(), tmp_path / "d.onnx", precision=precision)
    v = np.random.default_rng(0).normal(0, 0.3, (5, 3, 6)).astype(np.float32)
    truth = NUMPY.CapsNet(SPEC, random_params(SPEC, dtype="float32"), dtype="float64").reconstruct(v)
    close(run(report.path, v)["reconstruction"], truth, EXPORTED[precision])
    stored = {tensor.name.split(".")[0] for tensor in onnx.load(report.path).graph.initializer}
    assert not stored & {"stem", "primary", "capsules"}
    with pytest.raises(CapscoreError, match="no decoder"):
        onnx_export.export_decoder(network(small_spec(decoder=None)), tmp_path / "n.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision must be one of fp32, fp16, int8, int8-weights, not 'fp8'"),
        ({"batch": 0}, "batch must be a whole number of at least 1"),
        ({"outputs": "votes"}, "no output 'votes'; it has capsules, couplings, lengths, reconstruction"),
        ({"opset": 11}, "opset must be from 13"),
        ({"outputs": ["lengths", "votes.0"]}, "no output 'votes.0'"),
    ],
)
def test_options_that_are_not_offered(
    onnx_export: ModuleType, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CapscoreError, match=message):
        onnx_export.export(network(), tmp_path / "m.onnx", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("relu", lambda recorder, x: recorder.node("Abs", x)),
        ("softmax", lambda recorder, x, axis, leaky=False: recorder.node("Softmax", x, axis=-1)),
    ],
)
def test_a_wrong_graph_is_refused(
    onnx_export: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, wrong: Any
) -> None:
    """A recorder with a fault: what is compared is the network, which has none."""
    monkeypatch.setattr(onnx_export.Recorder, kind, wrong)
    with pytest.raises(ModelFileError, match=r"differs from the network's by .* nothing was written"):
        onnx_export.export(network(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "by", "steep", "fits"),
    [
        ("capsules.0.bias", 1e-6, 30, True),  # within what capsules may differ, and thirty times that in the pixels
        ("capsules.0.bias", 1e-4, 30, False),  # not within
        ("decoder.1.bias", 1e-7, 30, True),
        ("decoder.1.bias", 1e-5, 30, False),  # the decoder's own, of a size that such capsules would make
        ("decoder.1.bias", 1e-4, 1, False),
        ("decoder.1.bias", 1e-2, 30, False),
    ],
)
def test_pixels_may_differ_as_much_as_capsules_make_them(
    onnx_export: ModuleType, tmp_path: Path, name: str, by: float, steep: float, fits: bool
) -> None:
    from capscore.export import check

    params = random_params(SPEC, dtype="float32")
    params["decoder.0.weight"] = params["decoder.0.weight"] * np.float32(steep)
    moved = params | {name: params[name] + np.float32(by)}
    onnx_export.export(NUMPY.CapsNet(SPEC, moved), tmp_path / "m.onnx", verify=False)
    graph = onnx.load(tmp_path / "m.onnx")
    if fits:
        found = check.check(NUMPY.CapsNet(SPEC, params), graph, graph, "fp32")
        assert found["reconstruction"] > (FLOAT32 if name == "capsules.0.bias" else 0)
    else:
        with pytest.raises(ModelFileError, match="differs from the network's"):
            check.check(NUMPY.CapsNet(SPEC, params), graph, graph, "fp32")


def test_a_runtime_that_computes_a_node_wrong_is_named(
    onnx_export: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that change between the graph and the engine, as a faulty kernel would: the node is told."""
    from capscore.export import check

    start = check._session

    def faulty(model: Any, level: Any) -> Any:
        broken = onnx.ModelProto()
        broken.CopyFrom(model)
        for tensor in broken.graph.initializer:
            if tensor.name == "decoder.1.weight.folded":
                array = onnx.numpy_helper.to_array(tensor) * 1.5
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return start(broken, level)

    monkeypatch.setattr(check, "_session", faulty)
    with pytest.raises(
        ModelFileError, match=r"reconstruction differs .* first node that differs is decoder\.1/matmul;"
    ):
        onnx_export.export(network(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_openvino_runs_the_same_files(onnx_export: ModuleType, tmp_path: Path, precision: str) -> None:
    openvino = pytest.importorskip("openvino")
    images = random_images(SPEC, 64)
    report = onnx_export.export(network(), tmp_path / "m.onnx", precision=precision, calibration=images)
    compiled = openvino.Core().compile_model(
        str(report.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )  # which bf16 hardware would otherwise not be asked about
    for batch in (1, 5):
        x = random_images(SPEC, batch, dtype="float32")
        found = {output.get_any_name(): array for output, array in compiled([x]).items()}
        tolerance = EXPORTED[precision]
        for name, array in found.items():
            close(array, expected(network(), x)[name], tolerance, name)


def test_the_reference_evaluator_runs_the_same_file(onnx_export: ModuleType, tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    report = onnx_export.export(network(), tmp_path / "m.onnx")
    evaluator = ReferenceEvaluator(str(report.path))
    x = random_images(SPEC, 3, dtype="float32")
    for name, array in zip(evaluator.output_names, evaluator.run(None, {"images": x}), strict=True):
        close(array, expected(network(), x)[name], FLOAT32, name)


def test_stacked_leaky_and_decoderless_networks_pass_their_verification(
    onnx_export: ModuleType, tmp_path: Path
) -> None:
    spec = CapsNetSpec(
        input=(3, 11, 9),
        primary=PrimaryCaps(4, 6, kernel=4, stride=2),
        capsules=(DenseCaps(7, 5, DynamicRouting(4, leaky=True)), DenseCaps(6, 4, DynamicRouting(1)), DenseCaps(5, 3)),
        decoder=None,
    )
    report = onnx_export.export(network(spec), tmp_path / "m.onnx")
    assert max(report.differences.values()) < FLOAT32


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_so_few_images_have_their_votes_in_memory(onnx_export: ModuleType, tmp_path: Path, precision: str) -> None:
    """A file for one image is faster so; one for many, or for any number, has no votes."""
    spec = small_spec(capsules=(DenseCaps(5, 7, bias=False), DenseCaps(3, 6, DynamicRouting(4, leaky=True))))
    n, j, d, _ = spec.parameters["capsules.0.weight"]
    many = VOTES_BYTES // (4 * n * j * d) + 1
    for batch, votes in ((1, True), (many, False), (None, False)):
        path = tmp_path / f"{batch}.onnx"
        shown = random_images(spec, many)
        options = {"batch": batch, "calibration": shown, "outputs": ("lengths", "capsules")}
        onnx_export.export(network(spec), path, precision=precision, **options)
        assert ("capsules.0/votes/matmul" in {node.name for node in onnx.load(path).graph.node}) == votes
        x = random_images(spec, batch or 3, dtype="float32")
        tolerance = EXPORTED[precision]
        for name, array in run(path, x).items():
            close(array, expected(network(spec), x)[name], tolerance, name)


def test_a_json_file_for_those_who_cannot_read_the_graph(onnx_export: ModuleType, tmp_path: Path) -> None:
    onnx_export.export(network(), tmp_path / "digits.onnx", json=True, byte_images=True, batch=3, verify=False)
    told = json.loads((tmp_path / "digits.json").read_text())
    model = onnx.load(tmp_path / "digits.onnx")
    inside = json.loads(model.metadata_props[0].value)
    assert {name: told[name] for name in inside} == inside
    assert told["inputs"] == {"images": {"dtype": "uint8", "shape": [3, 2, 7, 6]}}
    assert told["outputs"]["capsules"] == {"dtype": "float32", "shape": [3, 3, 6]}
    onnx_export.export(network(), tmp_path / "any.onnx", json=True, verify=False)
    assert json.loads((tmp_path / "any.json").read_text())["inputs"]["images"]["shape"] == [None, 2, 7, 6]
    onnx_export.export(network(), tmp_path / "plain.onnx", verify=False)
    assert not (tmp_path / "plain.json").exists()
    with pytest.raises(ModelFileError, match=r"m\.json would be written over by its own \.json: name it \.onnx"):
        onnx_export.export(network(), tmp_path / "m.json", json=True, verify=False)
    assert not (tmp_path / "m.json").exists()
