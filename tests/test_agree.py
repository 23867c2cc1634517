"""The proof: whatever differs from float64 is found on every engine, and its first layer or node is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import NUMPY, need, random_images, random_params, small_spec

from capscore import BatchNorm, CapsNetSpec, Conv, CrossEntropy, DenseCaps, GlobalPool, Linear, PrimaryCaps, agree
from capscore.errors import ModelFileError
from capscore.layer import Capsules
from capscore.modelfile import Model
from capscore.routing import DynamicRouting, Routing
from capscore.squash import lengths, squash

SPEC = small_spec()
VECTOR = CapsNetSpec((2, 6, 5), (Conv(4, 3), BatchNorm(), GlobalPool(), Linear(3)), decoder=None, loss=CrossEntropy())


@dataclass(frozen=True)
class UniformCouplings(Routing):
    """UniformCouplings couplings; each capsule has an activation that is not its length."""

    activates = True

    def multiply_adds(self, votes: Any) -> int:
        return votes.n_in * votes.n_out * votes.d_out * votes.d_in  # type: ignore[no-any-return]

    def __call__(self, ops: Any, votes: Any, p: Any, run: Any) -> Capsules[Any]:
        v = squash(ops, votes.combine(1 / votes.n_out))
        run.iteration(1 / votes.n_out, v)
        v = ops.transpose(v, (1, 0, 2))
        size = lengths(ops, v)
        return Capsules(v, ops.sigmoid(size * 3))


ACTIVE = CapsNetSpec((2, 6, 5), (PrimaryCaps(2, 4, 3), DenseCaps(4), DenseCaps(3, routing=UniformCouplings())))


def with_fault(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Have one more backend, `odd`, which computes with other parameters than it was given."""

    def build(spec: CapsNetSpec, params: dict[str, Any], dtype: str) -> Any:
        return NUMPY.CapsNet(spec, params | change(params), dtype=dtype)

    monkeypatch.setattr(
        agree, "available_backends", lambda: [("numpy", NUMPY), ("odd", SimpleNamespace(CapsNet=build))]
    )


def verified(spec: CapsNetSpec) -> dict[tuple[str, str], agree.Comparison]:
    params = random_params(spec, dtype="float32")
    params |= {name: np.abs(p) + np.float32(0.5) for name, p in params.items() if name.endswith("variance")}
    return {(row.engine, row.dtype): row for row in agree.verify(Model(spec, params, ()))}


@pytest.mark.parametrize(
    "spec", [SPEC, small_spec(decoder=None), VECTOR, ACTIVE], ids=["all", "bare", "vector", "active"]
)
def test_every_engine_agrees_in_every_output(spec: CapsNetSpec) -> None:
    rows = verified(spec)
    assert all(row.agrees and row.first is None for row in rows.values()), rows
    capsules = ["lengths", "capsules"] if spec is not VECTOR else []
    own = ["scores"] if spec in (VECTOR, ACTIVE) else []
    drawn = ["reconstruction"] if spec.decoder else []
    for row in rows.values():
        assert [difference.output for difference in row.differences] == own + capsules + drawn
    assert ("numpy", "float64") in rows


@pytest.mark.parametrize(
    ("spec", "name"),
    [(SPEC, row.name) for row in (*SPEC.rows, *SPEC.decoder_rows)]
    + [(VECTOR, "stem.0"), (VECTOR, "stem.1"), (VECTOR, "head.1"), (ACTIVE, "capsules.0"), (ACTIVE, "capsules.1")],
    ids=lambda x: x if isinstance(x, str) else "",
)
@pytest.mark.parametrize("by", [1.1, 1 + 1e-4])
def test_a_backend_with_one_faulty_layer_is_named(
    monkeypatch: pytest.MonkeyPatch, spec: CapsNetSpec, name: str, by: float
) -> None:
    with_fault(monkeypatch, lambda params: {f"{name}.weight": params[f"{name}.weight"] * by})
    rows = verified(spec)
    assert {engine for (engine, _), row in rows.items() if not row.agrees} == {"odd"}
    for dtype in ("float64", "float32"):
        assert rows["odd", dtype].first.startswith(f"{name}: "), rows["odd", dtype].first
        assert rows["odd", dtype].first.endswith(" from float64")


def test_an_op_that_is_wrong_is_named_by_its_first_layer(
    monkeypatch: pytest.MonkeyPatch, torch_caps: ModuleType
) -> None:
    softmax = torch_caps.softmax
    monkeypatch.setattr(torch_caps, "softmax", lambda x, axis, leaky=False: softmax(x, axis, leaky) * 1.01)
    rows = verified(small_spec(capsules=(DenseCaps(4, routing=DynamicRouting(1)), DenseCaps(3))))
    wrong = {engine: row.first for (engine, _), row in rows.items() if not row.agrees}
    assert list(wrong) == ["torch"]
    assert wrong["torch"].startswith("capsules.1: ")


def test_activations_that_are_wrong_are_found(monkeypatch: pytest.MonkeyPatch, torch_caps: ModuleType) -> None:
    sigmoid = torch_caps.sigmoid
    monkeypatch.setattr(torch_caps, "sigmoid", lambda x: sigmoid(x) * 1.01)
    row = verified(ACTIVE.replace(decoder=None))["torch", "float32"]
    assert [difference.output for difference in row.differences if not difference.fits] == ["scores"]
    assert row.first.startswith("capsules.1: ")


def test_a_network_that_runs_its_layers_wrongly_is_no_layer_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(NUMPY.CapsNet):
        def __call__(self, images: Any) -> Any:
            return super().forward(images[::-1])

    monkeypatch.setattr(agree, "available_backends", lambda: [("odd", SimpleNamespace(CapsNet=Odd))])
    row = verified(SPEC)["odd", "float64"]
    assert not row.agrees
    assert row.first.startswith("no layer by itself")


@pytest.mark.parametrize(("precision", "counts"), [("int8", False), ("fp16", True)])
def test_in_int8_the_pose_of_a_capsule_that_is_hardly_there_does_not_count(precision: str, counts: bool) -> None:
    spec = ACTIVE.replace(decoder=None)
    expected = agree.Truth(spec, random_params(spec, dtype="float32")).expect(random_images(spec, 2))
    expected.exact["scores"] = np.array([[0.9, 0.01, 0.5], [0.02, 0.8, 0.01]])
    absent, present = (expected.exact["capsules"].copy() for _ in range(2))
    absent[1, 2] += 2
    present[0, 0] += 2
    fit = [expected.differences({"capsules": found}, precision)[0].fits for found in (absent, present)]
    assert fit == [not counts, False]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_does_not_agree(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    out = NUMPY.CapsNet(SPEC)(random_images(SPEC, 2))
    expected = agree.Truth(SPEC, NUMPY.CapsNet(SPEC).params).expect(random_images(SPEC, 2))
    (fine,) = expected.differences({"lengths": out.lengths}, "float32")
    assert fine.fits
    out.lengths[0, 0] = value
    (broken,) = expected.differences({"lengths": out.lengths}, "float32")
    assert not broken.fits


def test_a_node_that_onnx_runtime_computes_wrongly_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    onnx, providers = need("onnx", "onnx"), need("capscore.export.providers", "onnx")
    check, ort = need("capscore.export.check", "onnx"), need("onnxruntime", "onnx")

    def broken(model: Any) -> Any:
        for tensor in model.graph.initializer:
            if tensor.name == "decoder.1.weight.folded":
                tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1.5, tensor.name))
        return model

    def start(path: Path, *_: Any) -> Any:
        model = broken(onnx.load(path)).SerializeToString()
        return ort.InferenceSession(model, providers=["CPUExecutionProvider"])

    session = check._session
    monkeypatch.setattr(providers, "start", start)
    monkeypatch.setattr(check, "_session", lambda model, level: session(broken(model), level))
    row = verified(SPEC)["ONNX Runtime", "float32"]
    assert [difference.output for difference in row.differences if not difference.fits] == ["reconstruction"]
    assert row.first == "decoder.1/matmul"


def test_one_table_governs_the_command_and_the_gate_of_exports(
    monkeypatch: pytest.MonkeyPatch, onnx_export: ModuleType, tmp_path: Path
) -> None:
    net = NUMPY.CapsNet(SPEC, random_params(SPEC, dtype="float32"))
    assert onnx_export.export(net, tmp_path / "m.onnx").differences
    monkeypatch.setattr(agree, "ROUNDING", 0)
    monkeypatch.setitem(agree.TOLERANCE, "fp32", 1e-12)
    assert not verified(SPEC)["ONNX Runtime", "float32"].agrees
    with pytest.raises(ModelFileError, match="allowed: 1e-12"):
        onnx_export.export(net, tmp_path / "n.onnx")


def test_couplings_are_told_apart_by_their_layer(
    monkeypatch: pytest.MonkeyPatch, onnx_export: ModuleType, tmp_path: Path
) -> None:
    """A layer whose couplings are uniform, or that notes none, moves no other's name."""
    spec = CapsNetSpec(
        (2, 6, 5), (PrimaryCaps(2, 4, 3), DenseCaps(4, routing=UniformCouplings()), DenseCaps(3)), decoder=None
    )
    net = NUMPY.CapsNet(spec, random_params(spec, dtype="float32"))
    with_notes = onnx_export.export(net, tmp_path / "m.onnx", outputs=["lengths", "couplings"]).differences
    monkeypatch.setattr(
        UniformCouplings,
        "__call__",
        lambda self, ops, votes, p, run: Capsules(
            ops.transpose(squash(ops, votes.combine(1 / votes.n_out)), (1, 0, 2))
        ),
    )
    without = onnx_export.export(net, tmp_path / "n.onnx", outputs=["lengths", "couplings"]).differences
    assert set(with_notes) == set(without) == {"lengths", "couplings.1.1", "couplings.1.2"}


def test_an_exported_decoder_of_a_network_with_activations_draws_the_longest(
    onnx_export: ModuleType, tmp_path: Path
) -> None:
    @dataclass(frozen=True)
    class Shortest(UniformCouplings):
        def __call__(self, ops: Any, votes: Any, p: Any, run: Any) -> Capsules[Any]:
            v = super().__call__(ops, votes, p, run).pose
            return Capsules(v, ops.sigmoid(lengths(ops, v) * -3))

    spec = ACTIVE.replace(capsules=(DenseCaps(3, routing=Shortest()),))
    net = NUMPY.CapsNet(spec, random_params(spec, dtype="float32"))
    assert onnx_export.export_decoder(net, tmp_path / "d.onnx").differences["reconstruction"] < agree.TOLERANCE["fp32"]


@pytest.mark.parametrize(
    ("op", "wrong", "spec", "layer"),
    [
        ("relu", lambda recorder, x: recorder.node("Abs", x), SPEC, "stem.0"),
        ("relu", lambda recorder, x: recorder.node("Abs", x), SPEC.replace(stem=()), "decoder.0"),
        ("softmax", lambda recorder, x, axis, leaky=False: recorder.node("Softmax", x, axis=-1), SPEC, "capsules.0"),
        ("sigmoid", lambda recorder, x: recorder.node("Tanh", x), SPEC, "decoder.2"),
        ("sigmoid", lambda recorder, x: recorder.node("Tanh", x), ACTIVE, "capsules.1"),
        ("sum", lambda recorder, x, axis, keepdims=False: recorder._reduce(
            "ReduceMax", x, axis if isinstance(axis, tuple) else (axis,), keepdims, "sum"), VECTOR, "head.0"),
    ],
)  # fmt: skip
def test_a_layer_that_is_written_down_wrongly_is_named(
    onnx_export: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: str, wrong: Any, spec: Any, layer: str
) -> None:
    """ONNX Runtime computes every node of such a graph as it should."""
    monkeypatch.setattr(onnx_export.Recorder, op, wrong)
    params = random_params(spec, dtype="float32")
    params |= {name: np.abs(p) + np.float32(0.5) for name, p in params.items() if name.endswith("variance")}
    with pytest.raises(ModelFileError, match=f"first layer that the graph computes otherwise is {layer}; nothing was"):
        onnx_export.export(NUMPY.CapsNet(spec, params), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    row = verified(spec)["ONNX Runtime", "float32"]
    assert row.first == f"the first layer that the graph computes otherwise is {layer}"
