"""The exported file: one flat graph with names that read, the same bytes each time, and a session that says no."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import FLOAT32, NUMPY, close, need, random_images, random_params, small_spec, specs
from hypothesis import HealthCheck, given, settings

from capscore import PRESETS, CapsNetSpec, DenseCaps, DynamicRouting
from capscore.errors import CapscoreError, ModelFileError, ShapeError
from capscore.net import forward

onnx = need("onnx", "onnx")
FORBIDDEN = {"Loop", "Scan", "If", "Shape", "Einsum", "Size", "ConstantOfShape", "Expand", "Where", "Constant"}


@pytest.fixture
def export(onnx_export: ModuleType, tmp_path: Path) -> Callable[..., Any]:
    """Export a spec with random parameters and read the graph back."""

    def run(spec: CapsNetSpec, name: str = "model.onnx", **options: Any) -> Any:
        net = NUMPY.CapsNet(spec, random_params(spec, dtype="float32"), classes=options.pop("classes", None))
        onnx_export.export(net, tmp_path / name, verify=False, **options)
        return onnx.load(tmp_path / name)

    return run


def names(model: Any) -> list[str]:
    return [node.name for node in model.graph.node]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=specs())
def test_the_graph_is_flat(export: Callable[..., Any], spec: CapsNetSpec) -> None:
    model = export(spec)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & FORBIDDEN
    assert not any(a.type in (a.GRAPH, a.GRAPHS) for node in model.graph.node for a in node.attribute)
    assert len(model.functions) == 0
    assert {node.domain for node in model.graph.node} == {""}
    assert all(tensor.data_location == tensor.DEFAULT for tensor in model.graph.initializer)
    iterations = sum(layer.routing.iterations for layer in spec.capsules)
    assert sum(
        "/softmax" in n and node.op_type == "Div" for n, node in zip(names(model), model.graph.node, strict=True)
    ) == (iterations - len(spec.capsules))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=specs())
def test_names_are_paths_and_each_is_used(export: Callable[..., Any], spec: CapsNetSpec) -> None:
    model = export(spec)
    assert len(set(names(model))) == len(names(model))
    made = {"images"} | {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        assert set(node.input) <= made, "values come before their use"
        assert not set(node.output) & made
        made |= set(node.output)
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    assert made == used, "nothing is stored or computed in vain"
    for name in names(model):
        assert name.split("/")[0].split(".")[0] in {"stem", "primary", "capsules", "decoder", "norm", "longest"}, name


def test_the_path_of_a_node_tells_where_it_is(export: Callable[..., Any]) -> None:
    found = set(names(export(small_spec())))
    for name in (
        "stem.0/conv", "stem.0/relu", "primary/conv", "primary/squash/norm/length", "capsules.0/route/0/matmul",
        "capsules.0/route/1/softmax", "capsules.0/route/1/softmax/leak", "capsules.1/route/2/softmax",
        "capsules.1/route/2/squash/div", "decoder.0/matmul", "decoder.2/sigmoid", "longest/cumsum",
    ):  # fmt: skip
        assert name in found, sorted(found)
    assert "capsules.1/route/3/softmax" not in found
    assert "capsules.1/route/2/softmax/leak" not in found


def test_initialisers_are_named_after_the_parameters_they_come_from(export: Callable[..., Any]) -> None:
    spec = small_spec()
    params = random_params(spec, dtype="float32")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in export(spec).graph.initializer}
    for name, p in params.items():
        whole = stored.get(name, stored.get(f"{name}.folded"))
        assert whole is not None, name
        assert whole.dtype == np.float32
        np.testing.assert_array_equal(np.sort(whole.ravel()), np.sort(p.ravel()))
    rest = [name for name in stored if name.removesuffix(".folded") not in params]
    assert all(stored[name].size <= 8 for name in rest if not name.split("_")[0].endswith(".folded"))
    total = sum(array.size for array in stored.values())
    assert total < 2.2 * spec.parameter_count  # capsule weights twice: the first iteration transposes them


def test_two_exports_are_the_same_bytes(onnx_export: ModuleType, torch_caps: ModuleType, tmp_path: Path) -> None:
    spec = small_spec()
    nets = [caps.CapsNet(spec, random_params(spec), provenance={"b": 1, "a": 2}) for caps in (NUMPY, NUMPY, torch_caps)]
    for i, net in enumerate(nets):
        onnx_export.export(net, tmp_path / str(i), verify=False)
    assert len({(tmp_path / str(i)).read_bytes() for i in range(3)}) == 1


def test_signature_and_metadata(export: Callable[..., Any]) -> None:
    spec = small_spec()
    model = export(spec, classes=("a", "b", "ß"))
    dims = lambda value: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]  # noqa: E731
    assert [(v.name, dims(v)) for v in model.graph.input] == [("images", ["batch", 2, 7, 6])]
    assert [(v.name, dims(v)) for v in model.graph.output] == [
        ("lengths", ["batch", 3]),
        ("capsules", ["batch", 3, 6]),
        ("reconstruction", ["batch", 2, 7, 6]),
    ]
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {onnx.TensorProto.FLOAT}
    assert model.producer_name == "capscore"
    about = json.loads({p.key: p.value for p in model.metadata_props}["capscore"])
    assert CapsNetSpec.from_json(json.dumps(about["spec"])) == spec
    assert about["classes"] == ["a", "b", "ß"]
    assert about["preprocessing"]["scale"] == 1 / 255
    without = export(small_spec(decoder=None))
    assert [v.name for v in without.graph.output] == ["lengths", "capsules"]


@pytest.mark.parametrize("opset", range(13, onnx.defs.onnx_opset_version() + 1))
def test_every_opset_offered(export: Callable[..., Any], runtime: ModuleType, tmp_path: Path, opset: int) -> None:
    spec = small_spec()
    model = export(spec, opset=opset)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]
    net, images = NUMPY.CapsNet(spec, random_params(spec)), random_images(spec, 2, dtype="float32")
    close(runtime.Session(tmp_path / "model.onnx")(images).lengths, net(images).lengths, FLOAT32)


@pytest.mark.parametrize("opset", [12, 99, 0, "18", None])
def test_opsets_not_offered(onnx_export: ModuleType, tmp_path: Path, opset: Any) -> None:
    with pytest.raises(CapscoreError, match=f"opset must be from 13 to {onnx.defs.onnx_opset_version()}"):
        onnx_export.export(NUMPY.CapsNet(small_spec()), tmp_path / "a", opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_more_iterations_are_more_nodes_and_no_more_weights(export: Callable[..., Any]) -> None:
    def spec(n: int) -> CapsNetSpec:
        return small_spec(capsules=(DenseCaps(3, dim=4, routing=DynamicRouting(n)),))

    one, two, three = (export(spec(n)) for n in (1, 2, 3))
    assert len(three.graph.node) - len(two.graph.node) == len(two.graph.node) - len(one.graph.node) + 1  # b + a
    floats = lambda m: sum(t.raw_data.__len__() for t in m.graph.initializer if t.data_type == t.FLOAT)  # noqa: E731
    assert floats(two) == pytest.approx(floats(three), abs=16)


def test_a_folder_that_is_not_there(onnx_export: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot write"):
        onnx_export.export(NUMPY.CapsNet(small_spec()), tmp_path / "no" / "model.onnx")


def test_a_value_has_no_array_while_it_is_recorded(onnx_export: ModuleType) -> None:
    recorder = onnx_export.Recorder()
    x = onnx_export.Value(recorder, "x", shape=(4,))
    with pytest.raises(CapscoreError, match="relu has no value while a graph is recorded"):
        recorder.to_numpy(recorder.relu(x))
    np.testing.assert_array_equal(recorder.to_numpy(recorder.asarray([1.0, 2.0])), [1, 2])


def test_equal_constants_are_stored_once_and_others_apart(onnx_export: ModuleType) -> None:
    recorder = onnx_export.Recorder()
    x = onnx_export.Value(recorder, "x", shape=(4,))
    four, square, ints = np.zeros(4, np.float32), np.zeros((2, 2), np.float32), np.zeros(2, np.int64)
    for array in (four, four.copy(), square, ints, np.zeros(4, np.int32)):
        recorder.node("Add", x, recorder.constant(array, "zero"))
    assert [(name, tuple(t.dims)) for name, t in recorder.initializers.items()] == [
        ("zero", (4,)), ("zero_1", (2, 2)), ("zero_2", (2,)), ("zero_3", (4,)),
    ]  # fmt: skip


def test_scopes_close_even_after_an_error(onnx_export: ModuleType) -> None:
    recorder = onnx_export.Recorder()
    with pytest.raises(KeyError), recorder.scope("outer"):
        forward(recorder, PRESETS["small"], {}, recorder.input("images", (1, 28, 28)))
    assert recorder.relu(onnx_export.Value(recorder, "x", shape=(4,))).name == "relu"


# ---------------------------------------------------------------------------------------------------------- sessions


@pytest.fixture
def session(export: Callable[..., Any], runtime: ModuleType, tmp_path: Path) -> Any:
    export(small_spec(), classes=("a", "b", "c"))
    return runtime.Session(tmp_path / "model.onnx", threads=1)


def test_a_session_is_called_like_a_network(session: Any) -> None:
    spec = small_spec()
    net = NUMPY.CapsNet(spec, random_params(spec, dtype="float32"), classes=("a", "b", "c"))
    assert (session.spec, session.classes) == (net.spec, net.classes)
    images = random_images(spec, 5)
    out, expected = session(images), net(images)  # float64 images too
    assert type(out) is type(expected)
    close(out.lengths, expected.lengths, FLOAT32)
    close(out.reconstruction, net.reconstruct(expected.capsules), FLOAT32)
    assert out.couplings is None
    for batch in (1, 2, 5, 128):
        close(session.predict(images, batch), net.predict(images, batch), FLOAT32)
    strided = np.asfortranarray(images.astype(np.float32))
    close(session(strided[::-1]).lengths, expected.lengths[::-1], FLOAT32)
    close(session(images.astype(">f4")).lengths, expected.lengths, FLOAT32)


BAD_IMAGES = [
    (
        np.zeros((2, 7, 6), np.float32),
        r"images have shape \[2, 7, 6\]; wanted \[batch, 2, 7, 6\]; images\[None\] makes",
    ),
    (np.zeros((1, 7, 6, 2), np.float32), r"images\.(transpose|permute)\(0, 3, 1, 2\) puts the channels first"),
    (np.zeros((1, 2, 7, 6), np.uint8), r"uint8; wanted floats .* images / 255 of whole numbers"),
    (np.zeros((1, 2, 8, 6), np.float32), r"images have shape \[1, 2, 8, 6\]"),
    (np.float32(3), r"images have shape \[\]"),
]


@pytest.mark.parametrize(("images", "message"), BAD_IMAGES)
def test_images_that_do_not_fit(session: Any, caps: ModuleType, images: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        session(images)
    with pytest.raises(ShapeError, match=message):
        caps.CapsNet(small_spec())(images)


def test_the_cures_of_these_messages_cure(caps: ModuleType) -> None:
    net = caps.CapsNet(small_spec())
    for dtype in ("uint8", "int64", "uint16", "bool"):
        images = caps.asarray(np.ones((1, 2, 7, 6), dtype))
        with pytest.raises(ShapeError, match="wanted floats in") as refused:
            net(images)
        for cure in re.findall(r"images [/*] [\d.]+", str(refused.value)):
            assert net(eval(cure, {"images": images})).lengths.shape == (1, 3)
    for images in (np.zeros((1, 7, 6, 2), np.float32), np.zeros((2, 7, 6), np.float32)):
        with pytest.raises(ShapeError, match=r"images") as refused:
            net(caps.asarray(images))
        (cure,) = re.findall(r"; (images\S* ?[\d, ()]*)", str(refused.value))
        assert net(eval(cure.split(" makes")[0], {"images": caps.asarray(images)})).lengths.shape == (1, 3)


def test_grey_images_without_their_channel(caps: ModuleType) -> None:
    net = caps.CapsNet(PRESETS["small"])
    for shape in ((5, 28, 28), (28, 28)):
        with pytest.raises(ShapeError, match=r"images\.reshape\(-1, 1, 28, 28\) names their one channel"):
            net(np.zeros(shape, np.float32))


def test_labels_and_capsules_that_do_not_fit(caps: ModuleType) -> None:
    net = caps.CapsNet(small_spec())
    v = net(random_images(small_spec(), 2)).capsules
    for labels, message in [
        ([0, 3], "labels go from 0 to 3; wanted 0 to 2"),
        ([-1, 0], "labels go from -1 to 0"),
        ([0], r"labels have shape \(1,\) .* wanted 2 whole numbers"),
        ([0.0, 1.0], "dtype float64; wanted 2 whole numbers"),
    ]:
        with pytest.raises(ShapeError, match=message):
            net.reconstruct(v, labels)
    with pytest.raises(ShapeError, match=r"capsules have shape \(2, 3\); wanted \[batch, 3, 6\]"):
        net.reconstruct(np.zeros((2, 3), np.float32))
    with pytest.raises(ShapeError, match="has no decoder"):
        caps.CapsNet(small_spec(decoder=None)).reconstruct(v)


def test_labels_may_be_weights(caps: ModuleType) -> None:
    net = caps.CapsNet(small_spec(), random_params(small_spec()), dtype="float64")
    v = net(random_images(small_spec(), 2)).capsules
    by_label = caps.to_numpy(net.reconstruct(v, [2, 0]))
    np.testing.assert_array_equal(caps.to_numpy(net.reconstruct(v, np.array([[0, 0, 1], [1, 0, 0]]))), by_label)
    np.testing.assert_array_equal(caps.to_numpy(net.reconstruct(v, caps.asarray(np.array([2, 0])))), by_label)
    both = caps.to_numpy(net.reconstruct(v, np.array([[0, 1, 1], [1, 0, 0]])))
    assert (both[0] != by_label[0]).any()
    np.testing.assert_array_equal(both[1], by_label[1])


def test_files_a_session_does_not_take(runtime: ModuleType, export: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    with pytest.raises(ModelFileError, match="there is no such file"):
        runtime.Session(path)
    with pytest.raises(ModelFileError, match="there is no such file"):
        runtime.Session(tmp_path)
    model = export(small_spec(decoder=None))
    about = model.metadata_props[0].value
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match="no capscore metadata; `capscore export` writes files that do"):
        runtime.Session(path)
    onnx.helper.set_model_props(model, {"capscore": about.replace('"format": 2', '"format": 99')})
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match="has format 99; this version reads 1 to 2"):
        runtime.Session(path)


def test_a_foreign_graph_under_our_metadata(runtime: ModuleType, export: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    model = export(small_spec(decoder=None))
    del model.graph.output[0]
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match=r"it turns \['images'\] into \['capsules'\], not images into lengths"):
        runtime.Session(path)
    model = export(small_spec(decoder=None))
    text = small_spec(decoder=None, input=(2, 9, 9)).to_json()
    about = json.loads(model.metadata_props[0].value) | {"spec": json.loads(text)}
    onnx.helper.set_model_props(model, {"capscore": json.dumps(about)})
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match=r"its images are \[2, 7, 6\]; its spec says \[2, 9, 9\]"):
        runtime.Session(path)
